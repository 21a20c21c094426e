"""Labels as people keep them: one file or folder a kind; a data set has the name of its file."""
