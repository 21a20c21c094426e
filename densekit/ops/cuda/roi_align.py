"""RoIAlign on a GPU: operators around the kernels of ``roi_align_kernels.py``, and what they compute in a few lines.

B images, R boxes, C channels, L levels, P output size, S sampling points a bin and direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from densekit.ops.cuda import trial


def pool(
    maps: Sequence[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Patches of all boxes from the maps as they lie, channels last; the same bits on every run, backward too.

    Args:
        maps: one [B, C, H, W] a level; those that do not lie channels last are copied.
        boxes: [R, 4] float32 in input pixels.
        images: [R] int64.
        levels: [R] int64.
        strides: of the levels.
        output_size: P.
        sampling_ratio: S.
        aligned: shift by half a cell.

    Returns:
        [R, C, P, P], channels last, in the dtype of the maps.
    """
    lying = [m.permute(0, 2, 3, 1) for m in maps]
    place = (tuple(strides), output_size, sampling_ratio, aligned)
    return cast(Tensor, _Pool.apply(boxes, images, levels, place, *lying)).permute(0, 3, 1, 2)


def works(device: torch.device) -> bool:
    """Whether ``pool`` may be taken on a device, see ``trial.py``."""
    return trial.works("RoIAlign", device, agrees)


def reference(
    maps: Sequence[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """What ``pool`` computes, box by box: the map between two matrices of weights."""

    def weights(start: Tensor, end: Tensor, length: int) -> Tensor:  # [P, length]
        size = (end - start) if aligned else (end - start).clamp(min=1.0)
        points = (torch.arange(output_size * sampling_ratio) + 0.5) / (output_size * sampling_ratio)
        at = start + size * points
        tents = (1 - (torch.arange(length) - at.clamp(0, length - 1)[:, None]).abs()).clamp(min=0)
        tents = tents * ((at >= -1) & (at <= length))[:, None]
        return tents.view(output_size, sampling_ratio, length).mean(1)

    patches = []
    for box, image, level in zip(boxes, images.tolist(), levels.tolist()):
        x1, y1, x2, y2 = box / strides[level] - (0.5 if aligned else 0.0)
        cells = maps[level][image]
        patches.append(weights(y1, y2, cells.shape[1]) @ cells @ weights(x1, x2, cells.shape[2]).T)
    return torch.stack(patches)


def agrees(device: torch.device) -> bool:
    """Whether the kernels give the reference's patches and gradients of two small levels on a device."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 16, side, side, generator=generator).requires_grad_() for side in (16, 8)]
    boxes = torch.tensor([[1.0, 2, 40, 63], [-9, 3, 20, 20], [0, 0, 64, 64], [60, 60, 64, 64]])
    images, levels = torch.tensor([1, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
    found = []
    for run, there in ((reference, torch.device("cpu")), (pool, device)):
        leaves = [m.detach().to(there, memory_format=torch.channels_last).requires_grad_() for m in maps]
        patches = run(leaves, boxes.to(there), images.to(there), levels.to(there), (4, 8), 2, 2, False)
        found.append([p.cpu() for p in (patches, *torch.autograd.grad(patches.square().sum(), leaves))])
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*found))


class _Pool(torch.autograd.Function):
    """[B, H, W, C] maps -> [R, P, P, C] patches; boxes take no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        boxes: Tensor,
        images: Tensor,
        levels: Tensor,
        place: tuple[tuple[int, ...], int, int, bool],
        *maps: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(boxes, images, levels)
        ctx.place = place
        ctx.sizes = len(maps[0]), [m.shape[1] for m in maps], [m.shape[2] for m in maps]
        return cast(Tensor, torch.ops.densekit.pool_patches(list(maps), boxes, images, levels, *place))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        strides, _, samples, aligned = ctx.place
        back = torch.ops.densekit.pool_patches_backward
        maps = back(gradients[0], *ctx.saved_tensors, *ctx.sizes, strides, samples, aligned)
        return None, None, None, None, *maps


# Not by torch.library.custom_op or triton_op: both import torch's compiler on the first call.
torch.library.define(
    "densekit::pool_patches",
    "(Tensor[] maps, Tensor boxes, Tensor images, Tensor levels, int[] strides, int size, int samples, bool aligned) "
    "-> Tensor",
)
torch.library.define(
    "densekit::pool_patches_backward",
    "(Tensor gradient, Tensor boxes, Tensor images, Tensor levels, SymInt batch, SymInt[] heights, SymInt[] widths, "
    "int[] strides, int samples, bool aligned) -> Tensor[]",
)


@torch.library.impl("densekit::pool_patches", "default")
def _pool_patches(
    maps: list[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    strides: list[int],
    size: int,
    samples: int,
    aligned: bool,
) -> Tensor:
    from densekit.ops.cuda import roi_align_kernels

    return roi_align_kernels.pool(maps, boxes, images, levels, strides, size, samples, aligned)


@torch.library.register_fake("densekit::pool_patches")  # type: ignore[untyped-decorator]
def _(
    maps: list[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    strides: list[int],
    size: int,
    samples: int,
    aligned: bool,
) -> Tensor:
    return maps[0].new_empty(boxes.shape[0], size, size, maps[0].shape[3])


@torch.library.impl("densekit::pool_patches_backward", "default")
def _pool_patches_backward(
    gradient: Tensor,
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    batch: int,
    heights: list[int],
    widths: list[int],
    strides: list[int],
    samples: int,
    aligned: bool,
) -> list[Tensor]:
    from densekit.ops.cuda import roi_align_kernels

    shapes = [(batch, height, width) for height, width in zip(heights, widths)]
    return roi_align_kernels.gradients(gradient, boxes, images, levels, shapes, strides, samples, aligned)


@torch.library.register_fake("densekit::pool_patches_backward")  # type: ignore[untyped-decorator]
def _(
    gradient: Tensor,
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    batch: int,
    heights: list[int],
    widths: list[int],
    strides: list[int],
    samples: int,
    aligned: bool,
) -> list[Tensor]:
    return [gradient.new_empty(batch, height, width, gradient.shape[3]) for height, width in zip(heights, widths)]
