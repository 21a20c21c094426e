"""Faster R-CNN with ResNet-50-FPN against torchvision's: a training step, inference in batches and of single images.

    python benchmarks/detector.py [--short] [--device cpu|cuda] [--json FILE]

The same weights and images on both sides. Before anything is timed the detections of densekit's plain fp32 path are
compared with torchvision's; then densekit runs at its defaults (channels last, bf16 where the hardware has it) against
torchvision as its users run it: fp32 eager, and with automatic mixed precision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
import torchvision
from common import Row, arguments, check, compared_on, device_of, in_turn, report, whole_float32, with_mixed
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

from densekit.heads.faster_rcnn.torchvision import from_torchvision
from densekit.model import DenseModel
from densekit.packed import packed
from densekit.precision import DTYPES, autocast, choose_precision
from densekit.registry import BACKBONES, HEADS
from densekit.types import Batch, BoxTargets, Classes, Targets

CLASSES = Classes(tuple(f"class {i}" for i in range(20)), tuple(range(20)))


def main() -> None:
    args = arguments(__doc__).parse_args()
    device = device_of(args)
    size = (320, 320) if device.type == "cpu" else (800, 1344)
    batch_size = 4 if device.type == "cpu" else 8
    repeats = 3 if args.short else 5
    theirs, ours = pair(size, device)
    batch = random_batch(batch_size, size, device)
    rows = []
    agreement = compare(ours, theirs, random_batch(1, size, device))
    for amp in with_mixed(False, True, device):
        peer = "torchvision AMP" if amp else "torchvision fp32"
        goals = (None, None) if amp == (device.type == "cpu") else (5.0, 3.0) if device.type == "cpu" else (3.0, 3.0)
        shape = f"{batch_size} x {size[0]} x {size[1]}"
        times = in_turn(our_step(ours, batch), their_step(theirs, batch, amp), repeats=repeats)
        rows.append(Row(f"training step, {shape}", peer, *times, agreement, goals[0]))
        for count in (batch_size, 1):
            some = random_batch(count, size, device)
            times = in_turn(our_inference(ours, some), their_inference(theirs, some, amp), repeats=repeats)
            rows.append(Row(f"inference, {count} x {size[0]} x {size[1]}", peer, *times, agreement, goals[1]))
    report("Faster R-CNN, ResNet-50-FPN", rows, args)


def pair(size: tuple[int, int], device: torch.device, *, masks: bool = False) -> tuple[nn.Module, DenseModel]:
    """The detector of torchvision and densekit's with the same weights, spread out so that scores do not tie.

    As they are fine-tuned: norms fixed, stem and first stage frozen, which torchvision does wherever it starts from
    pretrained weights. There are none here, so the norms take the statistics of noise.
    """
    torch.manual_seed(0)
    theirs = torchvision_detector(nn.BatchNorm2d, size, masks)
    for part in theirs.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the plain mean of what is seen
    with torch.no_grad():
        theirs.backbone(torch.randn(4, 3, *size))
    weights, theirs = theirs.state_dict(), torchvision_detector(FrozenBatchNorm2d, size, masks)
    theirs.load_state_dict({k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")})
    spread_out(theirs, size)
    backbone = BACKBONES.build("resnet50", {"norm": "frozen", "frozen_stages": 2})
    head = HEADS.build("mask_rcnn" if masks else "faster_rcnn", {}, backbone.levels, num_classes=len(CLASSES))
    ours = DenseModel(backbone, {"boxes": head}, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), classes=CLASSES)
    ours.load_state_dict({**ours.state_dict(), **from_torchvision(theirs.state_dict(), head="boxes")})
    return theirs.to(device), ours.to(device)


def torchvision_detector(norm: type[nn.Module], size: tuple[int, int], masks: bool) -> nn.Module:
    """``fasterrcnn_resnet50_fpn`` or ``maskrcnn_resnet50_fpn``, built as for pretrained weights, without downloads."""
    backbone = _resnet_fpn_extractor(torchvision.models.resnet50(norm_layer=norm), trainable_layers=3)
    detector = detection.MaskRCNN if masks else detection.FasterRCNN
    return detector(backbone, len(CLASSES) + 1, min_size=min(size), max_size=max(size))


@torch.no_grad()
def spread_out(model: nn.Module, size: tuple[int, int]) -> None:
    """Scale the random classifiers so that anchors and boxes get every score between 0 and 1, and none ties."""
    image = [torch.rand(3, *size)]
    for classify in (model.rpn.head.cls_logits, model.roi_heads.box_predictor.cls_score):
        outputs: list[Tensor] = []
        hook = classify.register_forward_hook(lambda module, given, output, seen=outputs: seen.append(output))
        model.eval()(image)
        hook.remove()
        logits = torch.cat([x.transpose(0, 1).flatten(1) if x.dim() == 4 else x.T for x in outputs], 1)
        scale = 2 / logits.std(1)
        classify.bias.copy_((classify.bias - logits.mean(1)) * scale)
        classify.weight.mul_(scale.view(-1, *[1] * (classify.weight.dim() - 1)))


def random_batch(count: int, size: tuple[int, int], device: torch.device) -> Batch:
    """Noise images with ten boxes each."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)
    corners = torch.rand(count, 10, 2, generator=generator) * torch.tensor([size[1] * 0.6, size[0] * 0.6])
    sides = 16 + torch.rand(count, 10, 2, generator=generator) * min(size) * 0.3
    boxes = torch.cat([corners, corners + sides], -1)
    labels = torch.randint(0, len(CLASSES), (count, 10), generator=generator)
    no = torch.zeros(count, 10, dtype=torch.bool)
    sizes = torch.tensor([size] * count)
    targets = Targets(boxes=BoxTargets(boxes, labels, no, ~no))
    return Batch(images, sizes, sizes, list(range(count)), torch.arange(count), targets).to(device)


@torch.inference_mode()
def compare(ours: DenseModel, theirs: nn.Module, batch: Batch) -> str:
    """Detections of both in fp32: each has its partner of the same class on the other side.

    Random weights give many boxes that suppression nearly keeps, or keeps by a hair: where rounding decides, one of
    fifty may lack its partner.
    """
    with whole_float32():
        found, expected = ours.eval().predict(batch), theirs.eval()(their_images(batch))[0]
    count = int(found.valid[0].sum())
    check("the number of detections", count, len(expected["scores"]), atol=0)
    assert count > 10, "the random weights find nothing to compare"
    distances = torch.cdist(found.boxes[0, :count], expected["boxes"], p=float("inf"))
    same = found.labels[0, :count, None] + 1 == expected["labels"]
    nearest, partner = distances.masked_fill(~same, float("inf")).min(1)
    near = nearest < 0.05  # pixels
    alone = int((~near).sum())
    check("detections without a partner", alone, 0, atol=0.02 * count)
    mine, scores = found.scores[0, :count][near].cpu(), expected["scores"][partner][near].cpu()
    agreement = check(f"{len(mine)} scores", mine, scores, atol=1e-3)
    return f"{agreement}, {alone} without a partner{compared_on(batch.images.device)}"


def their_images(batch: Batch) -> list[Tensor]:
    return list(batch.images.float() / 255)


def our_step(model: DenseModel, batch: Batch) -> Callable[[], object]:
    """One update of the weights at densekit's defaults."""
    precision = choose_precision("auto", batch.images.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, fused=True)

    def step() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision, batch.images.device):
            losses = model(batch)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return step


def their_step(model: nn.Module, batch: Batch, amp: bool) -> Callable[[], object]:
    """One update as torchvision's reference does it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    boxes = batch.targets.boxes
    targets = [{"boxes": b, "labels": k + 1} for b, k in zip(boxes.boxes, boxes.labels)]
    if boxes.masks is not None:
        targets = [{**one, "masks": whole_masks(batch, image)} for image, one in enumerate(targets)]

    def step() -> None:
        model.train()
        with mixed(batch.images.device, amp):
            losses = model(their_images(batch), targets)
            total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step


def whole_masks(batch: Batch, image: int) -> Tensor:
    """[N, H, W] uint8: an image's instance masks as torchvision takes them."""
    masks = batch.targets.boxes.masks
    whole = torch.zeros(masks.cuts.shape[1], *batch.images.shape[2:], dtype=torch.uint8)
    for one, start, (x, y, width, height) in zip(whole, masks.starts[image].tolist(), masks.cuts[image].tolist()):
        one[y : y + height, x : x + width] = masks.pixels[start : start + width * height].view(height, width)
    return whole.to(batch.images.device)


def our_inference(model: DenseModel, batch: Batch) -> Callable[[], object]:
    precision = choose_precision("auto", batch.images.device)
    ready = packed(model, DTYPES[precision])

    @torch.inference_mode()
    def predict() -> object:
        with autocast(precision, batch.images.device):
            return ready.predict(batch)

    return predict


def their_inference(model: nn.Module, batch: Batch, amp: bool) -> Callable[[], object]:
    @torch.inference_mode()
    def predict() -> object:
        model.eval()
        with mixed(batch.images.device, amp):
            return model(their_images(batch))

    return predict


def mixed(device: torch.device, amp: bool) -> contextlib.AbstractContextManager[object]:
    if not amp:
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if device.type == "cpu" else torch.float16)


if __name__ == "__main__":
    main()
