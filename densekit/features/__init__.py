"""The feature store: write, resume, verify, read."""
