"""Image files: what their first bytes say, how they are read, and which values they stand for."""
