"""RoIAlign over the levels of a pyramid, forward and backward, against torchvision's MultiScaleRoIAlign.

    python benchmarks/roi_align.py [--short] [--device cpu|cuda] [--json FILE]

The pyramid and the boxes of a detector's training step: 256 channels, P2 to P5 of images of 320 x 320 pixels (CPU) or
800 x 1344 (GPU), 512 boxes an image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import Row, arguments, check, compared_on, device_of, in_turn, report, whole_float32, with_mixed
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from densekit.ops.roi_align import roi_align

STRIDES = (4, 8, 16, 32)


def main() -> None:
    args = arguments(__doc__).parse_args()
    device = device_of(args)
    size = (320, 320) if device.type == "cpu" else (800, 1344)
    images, boxes_each = (2, 512) if device.type == "cpu" else (8, 512)
    rows = []
    for dtype in with_mixed(torch.float32, torch.bfloat16, device):
        maps, boxes = inputs(images, boxes_each, size, device)
        agreement = compare(maps, boxes, size)
        ours, theirs = sides(maps, boxes, size, dtype)
        times = in_turn(ours, theirs, repeats=3 if args.short else 9)
        goal = (4.0 if device.type == "cpu" else 1.5) if dtype == torch.float32 else None
        name = str(dtype).removeprefix("torch.")
        rows.append(
            Row(
                f"forward + backward, {name}, {images} x {boxes_each} boxes",
                "torchvision float32",
                *times,
                agreement,
                goal,
            )
        )
    report("Multi-level RoIAlign", rows, args)


def inputs(images: int, count: int, size: tuple[int, int], device: torch.device) -> tuple[list[Tensor], Tensor]:
    """A pyramid in channels-last layout and boxes of every size."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(images, 256, size[0] // s, size[1] // s, generator=generator) for s in STRIDES]
    limit = torch.tensor([size[1], size[0]])
    sides = 8 * (min(size) / 8) ** torch.rand(images, count, 2, generator=generator)
    corners = torch.rand(images, count, 2, generator=generator) * (limit - sides)
    boxes = torch.cat([corners, corners + sides], -1)
    return [m.to(device, memory_format=torch.channels_last) for m in maps], boxes.to(device)


def sides(
    maps: list[Tensor], boxes: Tensor, size: tuple[int, int], dtype: torch.dtype
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Both sides on the same maps, densekit's in ``dtype``.

    torchvision's kernel takes no bfloat16, and float16 only with boxes in float16, which moves them by pixels. So the
    peer stays in float32; torch's mixed precision runs it so as well.
    """
    ours = both_ways(lambda m, b: roi_align(m, b, STRIDES), [m.to(dtype) for m in maps], boxes)
    return ours, both_ways(peer(size), [m.float().contiguous() for m in maps], boxes)


def peer(size: tuple[int, int]) -> Callable[[list[Tensor], Tensor], Tensor]:
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2)

    def run(maps: list[Tensor], boxes: Tensor) -> Tensor:
        result: Tensor = pool({str(i): m for i, m in enumerate(maps)}, list(boxes), [size] * len(boxes))
        return result

    return run


def both_ways(
    pool: Callable[[list[Tensor], Tensor], Tensor], maps: list[Tensor], boxes: Tensor
) -> Callable[[], object]:
    leaves = [m.detach().requires_grad_() for m in maps]

    def run() -> object:
        return torch.autograd.grad(pool(leaves, boxes).float().square().sum(), leaves)

    return run


def compare(maps: list[Tensor], boxes: Tensor, size: tuple[int, int]) -> str:
    """Forward and gradient of both in fp32."""
    with whole_float32():
        ours, theirs = roi_align(maps, boxes, STRIDES), peer(size)(maps, boxes)
        gradients = [side() for side in sides(maps, boxes, size, torch.float32)]
    agreement = check("output", ours.cpu(), theirs.cpu(), atol=1e-4) + compared_on(boxes.device)
    for level, (x, y) in enumerate(zip(*gradients)):  # type: ignore[call-overload]
        check(f"gradient of level {level}", x.cpu(), y.cpu(), atol=1e-2, rtol=1e-3)
    return agreement


if __name__ == "__main__":
    main()
