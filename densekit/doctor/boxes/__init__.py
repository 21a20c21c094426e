"""Boxes, one by one, as a set, and against what a detector can find."""
