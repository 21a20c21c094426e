"""Mask files, one by one and as a set."""
