"""What lies on disk: run files, recording, replay and data sets."""
