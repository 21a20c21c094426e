"""What the formats of boxes with a label file an image share: records, their reading, and how they become columns."""
