"""Image files, one by one and as a set; and which of them show the same."""
