"""Using a model that has learned: packed, on batches, windows and mirrored views, to files."""
