"""How often an epoch shows each image, by the classes in it: one file a rule, found by its name."""
