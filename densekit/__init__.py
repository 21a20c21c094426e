"""densekit: dense prediction with any ResNet-family backbone."""

__version__ = "0.1.0"
