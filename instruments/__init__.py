"""The abstraction layer: the tester interface, its drivers and links."""
