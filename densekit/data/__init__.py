"""Data sets by name, transforms, batching and sampling."""
