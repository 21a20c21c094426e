"""Cascade R-CNN: Faster or Mask R-CNN whose boxes are refined stage by stage."""

from densekit.heads.cascade_rcnn.head import cascade_mask_rcnn, cascade_rcnn
from densekit.heads.faster_rcnn.cascade import Cascade

__all__ = ["Cascade", "cascade_mask_rcnn", "cascade_rcnn"]
