"""Mask R-CNN with ResNet-50-FPN against torchvision's: a training step, inference, and memory with many objects.

    python benchmarks/mask_rcnn.py [--short] [--device cpu|cuda] [--json FILE]

As ``detector.py`` does it: the same weights, images and objects on both sides, and detections compared before anything
is timed. Faster R-CNN's step comes first, to see what the masks change in the ratio. Memory is the most that a process
of its own holds until a training step is done, on the CPU (read as Linux tells it).
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from common import Row, arguments, device_of, in_turn, report
from detector import compare, our_inference, our_step, pair, random_batch, their_inference, their_step

from densekit.types import Batch, BoxTargets, InstanceMasks, Targets

PEER = "torchvision fp32"
OBJECTS = (10, 100, 1000)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--peak-of", nargs=2, metavar=("SIDE", "OBJECTS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        print(peak(args.peak_of[0], int(args.peak_of[1])))
        return
    device = device_of(args)
    size, count = ((320, 320), 2 if args.short else 4) if device.type == "cpu" else ((800, 1344), 8)
    repeats = 2 if args.short else 5
    rows = [boxes_alone(size, count, device, repeats)]
    theirs, ours = pair(size, device, masks=True)
    agreement = compare(ours, theirs, random_batch(1, size, device))
    for number in (10, 100):
        batch = with_masks(count, size, number).to(device)
        times = in_turn(our_step(ours, batch), their_step(theirs, batch, False), repeats=repeats)
        rows.append(Row(f"training step, {count} x {size[0]} x {size[1]}, {number} objects", PEER, *times, agreement))
    some = random_batch(1, size, device)
    times = in_turn(our_inference(ours, some), their_inference(theirs, some, False), repeats=repeats)
    rows.append(Row(f"inference, 1 x {size[0]} x {size[1]}", PEER, *times, agreement))
    for number in OBJECTS[: 2 if args.short else 3]:
        held = [[measured(side, number)] for side in ("ours", "theirs")]
        rows.append(Row(f"GB of a training step, 1 x 512 x 512, {number} objects", PEER, *held, agreement))
    report("Mask R-CNN, ResNet-50-FPN", rows, args)


def boxes_alone(size: tuple[int, int], count: int, device: torch.device, repeats: int) -> Row:
    """Faster R-CNN's training step."""
    theirs, ours = pair(size, device)
    agreement = compare(ours, theirs, random_batch(1, size, device))
    batch = random_batch(count, size, device)
    times = in_turn(our_step(ours, batch), their_step(theirs, batch, False), repeats=repeats)
    return Row(f"Faster R-CNN, training step, {count} x {size[0]} x {size[1]}", PEER, *times, agreement)


def with_masks(count: int, size: Sequence[int], objects: int) -> Batch:
    """Noise images with that many ellipses each, smaller the more they are."""
    batch = random_batch(count, tuple(size), torch.device("cpu"))
    generator = torch.Generator().manual_seed(2)
    most = min(size) * (0.4 if objects <= 10 else 0.12)
    sides = (8 + torch.rand(count, objects, 2, generator=generator) * (most - 8)).floor()
    corners = (torch.rand(count, objects, 2, generator=generator) * (torch.tensor(size).flip(0) - sides)).floor()
    cuts = torch.cat([corners, sides], -1).to(torch.int64)
    pixels = [ellipse(width, height).flatten() for width, height in cuts.flatten(0, 1)[:, 2:].tolist()]
    areas = cuts[..., 2:].prod(-1).flatten()
    masks = InstanceMasks(torch.cat(pixels), (areas.cumsum(0) - areas).view(count, objects), cuts)
    no = torch.zeros(count, objects, dtype=torch.bool)
    labels = torch.randint(0, 20, (count, objects), generator=generator)
    boxes = BoxTargets(torch.cat([corners, corners + sides], -1), labels, no, ~no, masks)
    return dataclasses.replace(batch, targets=Targets(boxes=boxes))


def ellipse(width: int, height: int) -> torch.Tensor:
    """[height, width] uint8."""
    x, y = ((torch.arange(side) + 0.5) / side * 2 - 1 for side in (width, height))
    return (y[:, None].square() + x.square() < 1).to(torch.uint8)


def measured(side: str, objects: int) -> float:
    """GB that a process of its own holds at the most; infinite where it does not come to an end."""
    command = [sys.executable, str(Path(__file__).resolve()), "--peak-of", side, str(objects), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else float("inf")


def peak(side: str, objects: int) -> float:
    """GB that this process has held at the most after a training step of a side."""
    size = (512, 512)
    theirs, ours = pair(size, torch.device("cpu"), masks=True)
    batch = with_masks(1, size, objects)
    step = our_step(ours, batch) if side == "ours" else their_step(theirs, batch, False)
    step()
    # Not getrusage's: that begins with what the process which started this one held.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


if __name__ == "__main__":
    main()
