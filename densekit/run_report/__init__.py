"""A run told in one HTML file: what was trained on what, how good it is, what is wrong, and how sure that is."""
