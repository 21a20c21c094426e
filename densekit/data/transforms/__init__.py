"""What happens to a sample before it is batched: pixels, boxes and masks together."""
