"""Boxes and masks from one model with two heads, one pass of its backbone, against two models with a head each.

    python benchmarks/joint_predict.py [--short] [--json FILE] [--device cpu|cuda]

The heads of ``configs/joint/bccd_nuclei.yaml`` on a ResNet-18, and on a ResNet-50, with random weights that both sides
share, predict batches of random images as ``Predictor`` runs them: packed, in fp32 and where the device has it in
mixed precision. What a second pass costs is the backbone's share of a model: the larger it is beside the heads, the
larger the ratio.
"""

from __future__ import annotations

import torch
from common import Row, arguments, check, compared_on, device_of, in_turn, report, whole_float32, with_mixed

from densekit import config as configs
from densekit.config import ModelConfig
from densekit.model import DenseModel, build_model
from densekit.packed import packed
from densekit.precision import DTYPES, Precision, autocast
from densekit.types import Batch, Classes, Detections, Segmentation

BOXES = Classes(("red cell", "white cell", "platelet"), (1, 2, 3))
MASKS = Classes(("background", "nucleus"), (0, 255))
GOAL = 1 / 0.7


def main() -> None:
    args = arguments(__doc__).parse_args()
    device = device_of(args)
    side, count, repeats = (192, 1, 3) if args.short else (320, 1, 7)
    rows = []
    for name in ("resnet18", "resnet50"):
        for precision in with_mixed("fp32", "bf16", device):
            rows.append(compare(name, precision, batch_of(count, side, device), device, repeats))
    report("Two heads from one pass", rows, args)


def batch_of(count: int, side: int, device: torch.device) -> Batch:
    """Random images of one size."""
    images = torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    sizes = torch.full((count, 2), side)
    batch: Batch = Batch(images, sizes, sizes, list(range(count)), torch.zeros(count, dtype=torch.int64)).to(device)
    return batch


def models(name: str) -> tuple[DenseModel, dict[str, DenseModel]]:
    """A model with both heads, and one with each, of the same weights."""
    torch.manual_seed(0)
    backbone, heads = {"name": name}, configs.load("bccd_nuclei").model.heads
    both = build_model(ModelConfig(backbone=backbone, heads=heads), {"boxes": BOXES, "masks": MASKS}).eval()
    alone = {}
    for head, part in heads.items():
        one = build_model(ModelConfig(backbone=backbone, heads={head: part}), both.classes_of(head)).eval()
        one.load_state_dict({key: both.state_dict()[key] for key in one.state_dict()})
        alone[head] = one
    return both, alone


def compare(name: str, precision: Precision, batch: Batch, device: torch.device, repeats: int) -> Row:
    """Time one model against two, after their predictions were found equal."""
    both, alone = models(name)
    dtype = DTYPES[precision]
    joint = packed(both.to(device), dtype)
    apart = {head: packed(one.to(device), dtype) for head, one in alone.items()}

    @torch.inference_mode()
    def together() -> dict[str, object]:
        with autocast(precision, device):
            return joint.predict_all(batch)

    @torch.inference_mode()
    def one_by_one() -> dict[str, object]:
        with autocast(precision, device):
            return {head: one.predict(batch) for head, one in apart.items()}

    with whole_float32():
        ours, theirs = together(), one_by_one()
    boxes = [found["boxes"] for found in (ours, theirs)]
    masks = [found["masks"] for found in (ours, theirs)]
    assert all(isinstance(one, Detections) for one in boxes)
    assert all(isinstance(one, Segmentation) for one in masks)
    agreement = [
        check("boxes", *(one.boxes for one in boxes), atol=0),
        check("probabilities", *(torch.stack(one.probabilities) for one in masks), atol=0),
    ]
    shape = " x ".join(map(str, batch.images.shape))
    seconds = in_turn(together, one_by_one, repeats=repeats)
    question = f"{name}, {precision}, {shape}"
    return Row(question, "two models", *seconds, "; ".join(agreement) + compared_on(device), goal=GOAL)


if __name__ == "__main__":
    main()
