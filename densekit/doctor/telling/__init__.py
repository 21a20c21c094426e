"""The examination for people: at a terminal, as JSON, and as a page."""
