"""The software twin of a phase-change-memory chip and its tester."""
