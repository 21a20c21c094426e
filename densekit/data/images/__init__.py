"""Image files: what their first bytes say, how they are read, and which values they stand for."""

from densekit.data.images.read import read_image as read_image
