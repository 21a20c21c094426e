"""Objects, at the size to which the config resizes them, against the anchors of its detector."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from densekit.config import Config, ModelConfig
from densekit.data.resize import Resize
from densekit.doctor.checks.boxes import has_usable_box
from densekit.doctor.overlaps import paired_iou
from densekit.doctor.report import Defect
from densekit.doctor.sources import Split
from densekit.heads.faster_rcnn import FasterRCNN
from densekit.ops.anchors import cell_anchors
from densekit.registry import BACKBONES, HEADS

Floats = npt.NDArray[np.float64]

POOR, GOOD = 0.5, 0.7
"""IoU of an object with its best anchor: below the first it is hardly proposed, from the second on it is positive."""

MISFITS = 0.05
"""Part of the objects below ``POOR`` from which on the anchors are a defect."""

_MOST = 200_000  # objects that are looked at; more are sampled evenly


@dataclasses.dataclass(frozen=True, slots=True)
class Anchors:
    """A detector's anchors.

    Attributes:
        strides: of each level, finest first.
        sizes: of each level: as many on each.
        ratios: heights over widths.
    """

    strides: tuple[int, ...]
    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...]

    def best_iou(self, boxes: Floats) -> Floats:
        """[n] IoU of each of [n, 4] xyxy boxes with its best anchor on an endless grid."""
        best = np.zeros(len(boxes))
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        for stride, sizes in zip(self.strides, self.sizes):
            nearest = np.round(centres / stride) * stride
            for cell in cell_anchors(sizes, self.ratios).numpy().astype(np.float64):
                best = np.maximum(best, paired_iou(boxes, np.concatenate((nearest, nearest), 1) + cell))
        return best


def check_anchors(config: Config, split: Split, facts: dict[str, Any]) -> Iterator[Defect]:
    """Anchors of the config's detector that do not fit the objects; what was measured goes into ``facts``."""
    anchors, boxes = anchors_of(config.model), resized_boxes(split, config.data.train_transforms)
    if anchors is None or not len(boxes):
        return
    overlaps = anchors.best_iou(boxes)
    better = fitting_anchors(boxes, anchors)
    after = better.best_iou(boxes)
    facts["anchors"] = {
        "objects": len(boxes),
        "sides": {str(q): round(float(np.quantile(_sides(boxes), q)), 1) for q in (0.0, 0.05, 0.5, 0.95, 1.0)},
        "now": _summary(anchors, overlaps),
    }
    text = (
        f"{100 * (overlaps < POOR).mean():.1f} % of {len(boxes)} objects overlap their best anchor by less than {POOR} "
        f"({100 * (overlaps < GOOD).mean():.1f} % by less than {GOOD})"
    )
    if (after < POOR).mean() < (overlaps < POOR).mean() and after.mean() > overlaps.mean():
        facts["anchors"]["suggested"] = _summary(better, after)
        options = f"anchor_sizes: {_listed(better.sizes)}, anchor_ratios: {list(better.ratios)}"
        text += f"; {100 * (after < POOR).mean():.1f} % ({100 * (after < GOOD).mean():.1f} %) would with {options}"
    if (overlaps < POOR).mean() >= MISFITS:
        yield Defect("anchors-misfit", str(split.source), text)


def anchors_of(model: ModelConfig) -> Anchors | None:
    """The anchors of the first detector of a config; None where it has none.

    Raises:
        DensekitError: the config names a part or an option that there is not.
    """
    part = next((p for p in model.heads.values() if p.name == "faster_rcnn"), None)
    if part is None:
        return None
    with torch.device("meta"):
        backbone = BACKBONES.build(
            model.backbone.name, model.backbone.options, path="model.backbone", in_channels=model.channels
        )
    # The sizes are what the builder says, whatever its defaults are; a narrow head is built faster.
    options = {**part.options, "box_head_width": 8}
    head: FasterRCNN = HEADS.build("faster_rcnn", options, backbone.levels, path="model.heads", num_classes=1)
    cells = [getattr(head.rpn, f"cells_{i}") for i in range(len(head.neck.levels))]
    ratios = tuple(float(r) for r in options.get("anchor_ratios", (0.5, 1.0, 2.0)))
    sizes = []
    for cell in cells:
        sides = (cell[:, 2:] - cell[:, :2]).reshape(len(ratios), -1, 2)
        sizes.append(tuple(float(s) for s in sides.prod(2).sqrt().mean(0).round()))
    return Anchors(tuple(level.stride for level in head.neck.levels), tuple(sizes), ratios)


def resized_boxes(split: Split, transforms: Sequence[Mapping[str, Any]]) -> Floats:
    """[n, 4] xyxy of a split's objects in the pixels that the model sees (the largest size where it is drawn)."""
    if split.coco is None:
        return np.zeros((0, 4))
    resizes = [
        Resize(**{k: v for k, v in spec.items() if k != "name"}) for spec in transforms if spec["name"] == "Resize"
    ]
    boxes, factors, scale_of = [], [], dict[int, tuple[float, float]]()
    for annotation in split.coco.annotations:
        image = split.coco.image(annotation)
        if image is None or not image.width or not image.height or annotation.crowd:
            continue
        if not has_usable_box(split.coco, annotation):
            continue
        if image.place not in scale_of:
            size = (image.height, image.width)
            for resize in resizes:
                size = resize.largest(size)
            scale_of[image.place] = (size[1] / image.width, size[0] / image.height)
        boxes.append(annotation.xyxy)
        factors.append(scale_of[image.place])
    every = -(-len(boxes) // _MOST) or 1
    return np.array(boxes[::every], np.float64).reshape(-1, 4) * np.tile(np.array(factors[::every]).reshape(-1, 2), 2)


def fitting_anchors(boxes: Floats, like: Anchors) -> Anchors:
    """As many anchors on the same levels as ``like`` has, but of the objects' own sizes and shapes (k-means of logs)."""
    widths, heights = (boxes[:, 2:] - boxes[:, :2]).T
    per_level = len(like.sizes[0])
    sizes = np.exp(_centres(np.log(_sides(boxes)), per_level * len(like.sizes)))
    ratios = np.exp(_centres(np.log(heights / widths), len(like.ratios)))
    rounded = tuple(
        tuple(max(1.0, float(round(s))) for s in level) for level in sizes.reshape(len(like.sizes), per_level)
    )
    return Anchors(like.strides, rounded, tuple(round(float(r), 2) for r in ratios))


def _centres(values: Floats, count: int) -> Floats:
    """[count] sorted centres of k-means in one dimension, started from quantiles."""
    centres = np.quantile(values, (np.arange(count) + 0.5) / count)
    for _ in range(50):
        nearest = np.abs(values[:, None] - centres).argmin(1)
        members = np.bincount(nearest, minlength=count)
        sums = np.bincount(nearest, values, minlength=count)
        moved = np.where(members > 0, sums / np.maximum(members, 1), centres)
        if np.allclose(moved, centres, atol=1e-4):
            break
        centres = moved
    return np.sort(centres)


def _sides(boxes: Floats) -> Floats:
    """[n] square roots of the areas."""
    return np.asarray(np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1)))


def _summary(anchors: Anchors, overlaps: Floats) -> dict[str, Any]:
    return {
        "anchor_sizes": [list(level) for level in anchors.sizes],
        "anchor_ratios": list(anchors.ratios),
        "mean_best_iou": round(float(overlaps.mean()), 4),
        "below_0.5": round(float((overlaps < POOR).mean()), 4),
        "below_0.7": round(float((overlaps < GOOD).mean()), 4),
    }


def _listed(sizes: Sequence[Sequence[float]]) -> str:
    return "[" + ", ".join("[" + ", ".join(f"{s:g}" for s in level) + "]" for level in sizes) + "]"
