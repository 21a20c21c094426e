"""Cascade R-CNN (Cai and Vasconcelos 2018): each stage learns from the boxes of the one before, more strictly."""

from __future__ import annotations

import itertools
from typing import TypeVar

from densekit.errors import DensekitError
from densekit.heads.faster_rcnn.cascade import Cascade
from densekit.heads.faster_rcnn.head import FasterRCNN, faster_rcnn
from densekit.heads.faster_rcnn.roi import WEIGHTS
from densekit.heads.mask_rcnn.head import MaskRCNN, mask_rcnn
from densekit.ops import boxes as box_ops
from densekit.registry import HEADS

Detector = TypeVar("Detector", bound=FasterRCNN)


@HEADS.extend(faster_rcnn, class_agnostic_boxes=True)
def cascade_rcnn(
    detector: FasterRCNN,
    *,
    stage_overlaps: tuple[float, ...] = (0.6, 0.7),
    stage_weights: tuple[float, ...] = (1.0, 0.5, 0.25),
) -> FasterRCNN:
    """Cascade R-CNN on any backbone: all that ``faster_rcnn`` has, with one box for all classes, and further stages.

    ``stage_overlaps`` are the IoUs with an object from which on the boxes of the second stage and so on are positive
    (the first has ``positive_overlap``); ``stage_weights`` weigh the losses of all stages, the first among them.

    Raises:
        DensekitError: overlaps that fall, or not as many weights as stages.
    """
    return _cascaded(detector, stage_overlaps, stage_weights)


@HEADS.extend(mask_rcnn, class_agnostic_boxes=True)
def cascade_mask_rcnn(
    detector: MaskRCNN,
    *,
    stage_overlaps: tuple[float, ...] = (0.6, 0.7),
    stage_weights: tuple[float, ...] = (1.0, 0.5, 0.25),
) -> MaskRCNN:
    """Cascade Mask R-CNN: ``cascade_rcnn`` with the masks of ``mask_rcnn``, which learn from the first stage's samples.

    Raises:
        DensekitError: as ``cascade_rcnn``.
    """
    return _cascaded(detector, stage_overlaps, stage_weights)


def _cascaded(detector: Detector, overlaps: tuple[float, ...], weights: tuple[float, ...]) -> Detector:
    if detector.runs_last_stage:
        raise DensekitError(
            "neck 'c4' has one box head, the backbone's last stage, and a cascade needs one for each of its stages; "
            "use neck fpn, c5 or dc5, or the head faster_rcnn or mask_rcnn"
        )
    all_overlaps = (detector.roi.positive_overlap, *overlaps)
    if not overlaps or overlaps[-1] > 1 or any(b < a for a, b in itertools.pairwise(all_overlaps)):
        raise DensekitError(
            f"stage_overlaps {list(overlaps)}: give one a further stage, none below that of the stage before (the "
            f"first has positive_overlap {all_overlaps[0]}) or above 1"
        )
    if len(weights) != len(all_overlaps):
        raise DensekitError(
            f"stage_weights has {len(weights)} numbers for {len(all_overlaps)} stages, the first and one for each of "
            f"stage_overlaps; give one a stage"
        )
    stages = [
        # Boxes come closer to their objects from stage to stage: factors 10, 20, 30 keep the spread of the deltas at 1.
        detector.roi.another(overlap=overlap, weights=_times(WEIGHTS, number))
        for number, overlap in enumerate(overlaps, start=2)
    ]
    detector.cascade = Cascade(stages, weights=weights)
    return detector


def _times(weights: box_ops.Weights, number: int) -> box_ops.Weights:
    x, y, width, height = weights
    return number * x, number * y, number * width, number * height
