"""One-stage detectors, which judge every cell of a pyramid: RetinaNet with anchors, FCOS without."""

from densekit.heads.dense.fcos import FCOS, fcos
from densekit.heads.dense.retinanet import RetinaNet, retinanet

__all__ = ["FCOS", "RetinaNet", "fcos", "retinanet"]
