"""The checks, grouped by what they look at; each is a function from what was read to the defects that it finds."""
