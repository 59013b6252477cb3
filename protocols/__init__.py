"""The wire: value types that everyone shares, their codecs and the errors."""
