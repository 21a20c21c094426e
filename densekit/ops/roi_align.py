"""RoIAlign over all levels of a pyramid (He et al. 2017, section 3; Lin et al. 2017, eq. 1), with constant shapes.

Three ways to the same numbers:

* ``table``: every output bin is a weighted sum of 16 rows (2 x 2 sampling points, 4 corners each) of one table that
  holds the cells of all levels and images, channels last. One call does all levels and images; its backward is the same
  sum over the transposed pairs: sorted by row, no atomics, so it is deterministic. Much the faster on a CPU.
* ``triton``: our kernels for GPUs (``cuda/roi_align.py``): maps as they lie in any precision, deterministic.
* ``kernel``: torchvision's kernel once a level over all boxes; boxes of other levels are moved off the map, where the
  kernel returns zero at once. For GPUs without Triton.

B images, R boxes an image, C channels, L levels, P output size, S sampling points a bin and direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.errors import DensekitError
from densekit.ops import boxes as box_ops
from densekit.ops.cuda import roi_align as in_triton

Method = Literal["auto", "table", "kernel", "triton"]

_OUTSIDE = -1e6
"""A coordinate that is off every map."""


def box_levels(boxes: Tensor, strides: Sequence[int], canonical_side: float = 224.0) -> Tensor:
    """The level that each box is pooled from (Lin et al. 2017, eq. 1).

    Args:
        boxes: [..., 4] in pixels.
        strides: of the levels, finest first.
        canonical_side: a square of this side belongs to stride 16.

    Returns:
        [...] int64 in 0..L-1.
    """
    finest, coarsest = int(math.log2(strides[0])), int(math.log2(strides[-1]))
    side = box_ops.area(boxes).clamp(min=0).sqrt()
    level = torch.floor(4 + torch.log2(side / canonical_side) + 1e-6)
    level = level.clamp(min=finest, max=coarsest).to(torch.int64) - finest
    return level.clamp(max=len(strides) - 1)


def roi_align(
    maps: Sequence[Tensor],
    boxes: Tensor,
    strides: Sequence[int],
    *,
    images: Tensor | None = None,
    output_size: int = 7,
    sampling_ratio: int = 2,
    aligned: bool = False,
    method: Method = "auto",
) -> Tensor:
    """Pool a P x P patch of features for every box, from the level that suits its size.

    Args:
        maps: one [B, C, H, W] a level, finest first.
        boxes: [B, R, 4] in input pixels; or [R, 4] with ``images``.
        strides: input pixels per cell of each level.
        images: [R] int64: the image of each box.
        output_size: P.
        sampling_ratio: S; each bin is the mean of S x S bilinear samples.
        aligned: shift by half a cell (Detectron2's RoIAlignV2); torchvision's detectors do not.
        method: see the module; ``auto`` takes what ``best_method`` says.

    Returns:
        [B * R, C, P, P] (or [R, C, P, P]) in the precision of the maps; coordinates are float32 throughout.

    Raises:
        DensekitError: a method that the device lacks, or that has no deterministic form where that is asked for.
    """
    if images is None:
        images = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand(boxes.shape[:2])
    levels = box_levels(boxes, strides)
    if method == "auto":
        method = best_method(maps[0].device)
    else:
        _check(method, maps[0])
    boxes, images, levels = boxes.reshape(-1, 4).float(), images.reshape(-1), levels.reshape(-1)
    if torch.compiler.is_exporting():
        run = torch.ops.densekit.roi_align
        return cast(Tensor, run(maps, boxes, images, levels, strides, output_size, sampling_ratio, aligned))
    return _pool_by(method, maps, boxes, images, levels, strides, output_size, sampling_ratio, aligned)


def best_method(device: torch.device) -> Literal["table", "kernel", "triton"]:
    """The faster way on a device; under deterministic algorithms one that has them."""
    if in_triton.works(device):
        return "triton"
    return "table" if device.type == "cpu" or torch.are_deterministic_algorithms_enabled() else "kernel"


def _check(method: Method, maps: Tensor) -> None:
    if method == "triton" and not in_triton.works(maps.device):
        raise DensekitError(f"roi_align: 'triton' needs a GPU that Triton compiles for, not {maps.device}; use auto")
    learns = maps.requires_grad and maps.device.type != "cpu"
    if method == "kernel" and learns and torch.are_deterministic_algorithms_enabled():
        raise DensekitError(
            "roi_align: 'kernel' gives other bits on each run on this device, and train.deterministic is set; use auto"
        )


def _pool_by(
    method: Method,
    maps: Sequence[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """[R, 4] boxes, [R] images, [R] levels -> [R, C, P, P]."""
    pool = {"table": _pool_from_table, "triton": in_triton.pool}.get(method, _pool_by_kernel)
    return pool(maps, boxes, images, levels, strides, output_size, sampling_ratio, aligned)


def _pool_from_table(
    maps: Sequence[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    channels = maps[0].shape[1]
    table = torch.cat([m.permute(0, 2, 3, 1).reshape(-1, channels) for m in maps])
    with torch.no_grad():
        rows, weights = _corners(maps, boxes, images, levels, strides, output_size, sampling_ratio, aligned)
    pooled = _WeightedRows.apply(table, rows, weights.to(table.dtype))
    return pooled.view(-1, output_size, output_size, channels).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


def _corners(
    maps: Sequence[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[Tensor, Tensor]:
    """Rows of the table and their weights: [R * P * P, S * S * 4] int32 and float32."""
    heights, widths = _of_level(levels, [m.shape[2] for m in maps]), _of_level(levels, [m.shape[3] for m in maps])
    cells = [m.shape[0] * m.shape[2] * m.shape[3] for m in maps]
    first = _of_level(levels, [sum(cells[:level]) for level in range(len(maps))])  # row of the level's first cell
    first = first + images.to(torch.int32) * heights * widths
    scaled = boxes * _of_level(levels, [1.0 / s for s in strides])[..., None] - (0.5 if aligned else 0.0)
    shape = (output_size, sampling_ratio, aligned)
    y, y_weight = _samples(scaled[..., 1], scaled[..., 3], heights, *shape)  # [R, P, 2 S]
    x, x_weight = _samples(scaled[..., 0], scaled[..., 2], widths, *shape)
    y = y * widths[..., None, None] + first[..., None, None]
    rows = y[..., :, None, :, None] + x[..., None, :, None, :]  # [R, P, P, 2 S, 2 S]
    weights = y_weight[..., :, None, :, None] * x_weight[..., None, :, None, :]
    corners = 4 * sampling_ratio**2
    return rows.reshape(-1, corners), weights.reshape(-1, corners)


def _samples(
    start: Tensor, end: Tensor, length: Tensor, output_size: int, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Cells and weights of the sampling points along one direction.

    Args:
        start: [R] where the boxes begin, in cells.
        end: [R] where they end.
        length: [R] int32: number of cells.
        output_size: P.
        sampling_ratio: S.
        aligned: boxes may be shorter than one cell.

    Returns:
        [R, P, 2 S] int32 cells and float32 weights, the two neighbours of each sampling point side by side.
    """
    size = end - start if aligned else (end - start).clamp(min=1.0)
    step = size[..., None, None] / output_size
    bins = torch.arange(output_size, device=start.device, dtype=torch.float32)[:, None]
    points = torch.arange(sampling_ratio, device=start.device, dtype=torch.float32) + 0.5
    at = start[..., None, None] + bins * step + points * (step / sampling_ratio)  # [R, P, S]
    last = (length - 1)[..., None, None]
    inside = (at >= -1.0) & (at <= length[..., None, None])
    at = at.clamp(min=0)
    low = torch.minimum(at.to(torch.int32), last)
    high = torch.minimum(low + 1, last)
    fraction = torch.where(low >= last, 0.0, at - low)
    share = inside / sampling_ratio
    weights = torch.stack([(1 - fraction) * share, fraction * share], dim=-1)
    return torch.stack([low, high], dim=-1).flatten(-2), weights.flatten(-2)


def _of_level(levels: Tensor, values: Sequence[float]) -> Tensor:
    """The value of each box's level; int32 or float32. Made of comparisons: a table would be a copy to the device."""
    dtype = torch.int32 if isinstance(values[0], int) else torch.float32
    picked = torch.full_like(levels, values[0], dtype=dtype)
    for level, value in enumerate(values[1:], start=1):
        picked = torch.where(levels == level, value, picked)
    return picked


class _WeightedRows(torch.autograd.Function):
    """[rows, C] table, [bags, n] rows and weights -> [bags, C] sums. The weights take no gradient."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.table_rows = table.shape[0]
        return F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        rows, weights = ctx.saved_tensors
        ordered, order = rows.flatten().sort()
        starts = torch.arange(ctx.table_rows, device=rows.device, dtype=rows.dtype)
        offsets = torch.searchsorted(ordered, starts, out_int32=True)
        corners = rows.shape[1]
        # A shift where it can be one: division of a million integers takes a tenth of the whole backward.
        bags = order >> (corners.bit_length() - 1) if corners & (corners - 1) == 0 else order // corners
        share = weights.flatten()[order].to(gradient.dtype)
        table = F.embedding_bag(
            bags.to(torch.int32), gradient.contiguous(), offsets, per_sample_weights=share, mode="sum"
        )
        return table, None, None


def _pool_by_kernel(
    maps: Sequence[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    import torchvision  # noqa: F401  # registers the kernel and its backward; 3 s that the table's user need not wait

    pooled: Tensor | None = None
    for level, (features, stride) in enumerate(zip(maps, strides)):
        here = torch.where((levels == level)[..., None], boxes, _OUTSIDE)
        rois = torch.cat([images[:, None].float(), here], dim=-1)
        part = torch.ops.torchvision.roi_align(
            features.float(), rois, 1.0 / stride, output_size, output_size, sampling_ratio, aligned
        )
        pooled = part if pooled is None else pooled + part
    assert pooled is not None, "a pyramid has at least one level"
    return pooled.to(maps[0].dtype)


# One operator in exported graphs, with boxes of all levels side by side: ONNX has its like.
torch.library.define(
    "densekit::roi_align",
    "(Tensor[] maps, Tensor boxes, Tensor images, Tensor levels, int[] strides, int output_size, int sampling_ratio, "
    "bool aligned) -> Tensor",
)


@torch.library.impl("densekit::roi_align", "default")
def _pool(
    maps: list[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    strides: list[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """[R, 4] boxes, [R] images, [R] levels -> [R, C, P, P]."""
    method = best_method(boxes.device)
    return _pool_by(method, maps, boxes, images, levels, strides, output_size, sampling_ratio, aligned)


@torch.library.register_fake("densekit::roi_align")  # type: ignore[untyped-decorator]
def _(
    maps: list[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    strides: list[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    channels = maps[0].shape[1]
    return maps[0].new_empty(boxes.shape[0], output_size, output_size, channels).permute(0, 3, 1, 2)
