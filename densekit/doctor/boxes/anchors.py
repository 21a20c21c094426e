"""Objects, as the transforms of training leave them, against the anchors of the config's detector."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from densekit.config import Config, ModelConfig, Part
from densekit.doctor.boxes.seen import seen_boxes
from densekit.doctor.defects import Defect
from densekit.doctor.sets import Split
from densekit.errors import DensekitError
from densekit.heads.anchors import Anchors as AnchorGrid
from densekit.ops.anchors import cell_anchors
from densekit.registry import BACKBONES, HEADS

Floats = npt.NDArray[np.float64]

POOR = 0.5
"""IoU with its best anchor below which an object is hardly proposed."""

MISFITS = 0.15
"""Part of the objects below ``POOR`` from which on the anchors are a defect, not only a note."""


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

    def best_overlap(self, boxes: Floats) -> Floats:
        """[n] IoU of each of [n, 4] (x1, y1, x2, y2) with its best anchor on an endless grid."""
        best = np.zeros(len(boxes))
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        for stride, sizes in zip(self.strides, self.sizes):
            nearest = np.tile(np.round(centres / stride) * stride, 2)
            for cell in cell_anchors(sizes, self.ratios).numpy().astype(np.float64):
                best = np.maximum(best, _overlap(boxes, nearest + cell))
        return best


def anchor_defects(config: Config, split: Split, source: str) -> Iterator[Defect]:
    """Objects that no anchor of the config's detector fits, and anchors that would fit better."""
    try:
        anchors = anchors_of(config.model)
        if anchors is None or split.rows is None:
            return
        boxes = seen_boxes(split.rows, config.data.train_transforms, config.model.channels)
    except (DensekitError, ValueError) as error:
        yield Defect("data_set_unusable", source, str(error).splitlines()[0], source=source)
        return
    if not len(boxes):
        return
    better = fitting_anchors(boxes, anchors)
    now, then = ((a.best_overlap(boxes) < POOR).mean() for a in (anchors, better))
    if then < now:
        code = "anchors_misfit" if now >= MISFITS else "anchors_fit"
        name, _ = next(_with_anchors(config.model))
        yield Defect(code, source, _told(boxes, better, float(now), float(then), name), source=source)


def _told(boxes: Floats, better: Anchors, now: float, then: float, head: str) -> str:
    low, high = np.quantile(_sides(boxes), [0.05, 0.95])
    sizes = "[" + ", ".join("[" + ", ".join(f"{s:g}" for s in level) + "]" for level in better.sizes) + "]"
    return (
        f"{now:.1%} of {len(boxes)} objects (side {low:.0f} to {high:.0f} px after the transforms) overlap their best "
        f"anchor by less than {POOR}; {then:.1%} would with these options of model.heads.{head}, to be pasted: "
        f"anchor_sizes: {sizes}, anchor_ratios: {list(better.ratios)}"
    )


def anchors_of(model: ModelConfig) -> Anchors | None:
    """The anchors of the first detector of a config; None where it has none.

    Raises:
        DensekitError: the config names a part or an option that there is not.
    """
    _, part = next(_with_anchors(model), (None, None))
    if part is None:
        return None
    with torch.device("meta"):
        options, given = model.backbone.options, {"in_channels": model.channels}
        backbone = BACKBONES.build(model.backbone.name, options, path="model.backbone", **given)
    # The sizes are what the builder says, whatever its defaults are; a narrow head is built faster.
    has_width = "box_head_width" in HEADS.options(part.name) and part.options.get("neck") != "c4"
    narrow = {"box_head_width": 8} if has_width else {}
    head = HEADS.build(part.name, {**part.options, **narrow}, backbone.levels, path="model.heads", num_classes=1)
    anchors = next(m for m in head.modules() if isinstance(m, AnchorGrid))
    ratios = tuple(float(r) for r in part.options.get("anchor_ratios", (0.5, 1.0, 2.0)))
    sizes = []
    for level in range(len(head.neck.levels)):
        cell = anchors.cells(level)
        sides = (cell[:, 2:] - cell[:, :2]).reshape(len(ratios), -1, 2)
        sizes.append(tuple(float(s) for s in sides.prod(2).sqrt().mean(0).round()))
    return Anchors(tuple(level.stride for level in head.neck.levels), tuple(sizes), ratios)


def _with_anchors(model: ModelConfig) -> Iterator[tuple[str, Part]]:
    """Heads that have anchors, by their names in the config."""
    yield from ((n, part) for n, part in model.heads.items() if "anchor_sizes" in HEADS.options(part.name))


def fitting_anchors(boxes: Floats, like: Anchors) -> Anchors:
    """As many anchors on the same levels as ``like`` has, but of the objects' sizes and shapes (k-means of logs)."""
    widths, heights = (boxes[:, 2:] - boxes[:, :2]).T
    per_level = len(like.sizes[0])
    sizes = np.exp(_centres(np.log(_sides(boxes)), per_level * len(like.sizes))).round().clip(1)
    ratios = np.exp(_centres(np.log(heights / widths), len(like.ratios)))
    levels = tuple(tuple(float(s) for s in level) for level in sizes.reshape(len(like.sizes), per_level))
    return Anchors(like.strides, levels, tuple(round(float(r), 2) for r in ratios))


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


def _overlap(boxes: Floats, others: Floats) -> Floats:
    """[n] IoU of each pair of (x1, y1, x2, y2)."""
    inner = np.clip(np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2]), 0, None).prod(1)
    areas = [(b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, others)]
    return np.asarray(inner / np.maximum(areas[0] + areas[1] - inner, 1e-9))
