"""Feature extractors by name: our own ResNet family and any timm network."""
