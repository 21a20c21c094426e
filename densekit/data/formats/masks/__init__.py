"""Folders of mask files, and which mask belongs to which image."""
