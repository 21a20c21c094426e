"""Services that follow a run, each in a file of its own, behind one interface."""
