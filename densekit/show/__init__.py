"""What a person looks at: pictures of boxes and masks, and tables."""
