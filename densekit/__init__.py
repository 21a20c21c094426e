"""densekit: dense prediction with any ResNet-family backbone."""
