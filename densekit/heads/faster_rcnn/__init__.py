"""Faster R-CNN: neck, region proposals, second stage, and torchvision's weights."""

from densekit.heads.faster_rcnn.head import FasterRCNN, faster_rcnn

__all__ = ["FasterRCNN", "faster_rcnn"]
