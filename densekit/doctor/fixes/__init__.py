"""What ``--fix`` does: repair before removal, on a copy, with a log."""
