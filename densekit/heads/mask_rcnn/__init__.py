"""Mask R-CNN: Faster R-CNN with a branch that gives the mask of each object."""

from densekit.heads.mask_rcnn.head import MaskRCNN, mask_rcnn

__all__ = ["MaskRCNN", "mask_rcnn"]
