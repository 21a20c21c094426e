"""U-Net with ResNet-34 against segmentation-models-pytorch's: a training step and inference at 256 and 512 pixels.

    python benchmarks/unet.py [--short] [--device cpu|cuda] [--json FILE]

The same weights, images and loss (cross-entropy + Dice) on both sides. Before anything is timed the output of our
plain fp32 path is compared with smp's; then densekit runs at its defaults (channels last, bf16 where the hardware has
it) against smp in fp32, and with automatic mixed precision and channels last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import segmentation_models_pytorch as smp
import torch
from common import Row, arguments, check, compared_on, device_of, in_turn, report, whole_float32, with_mixed
from torch import Tensor, nn

from densekit.engine.optim import make_optimizer, parameter_groups
from densekit.heads.segmentation.smp_weights import from_smp
from densekit.model import DenseModel
from densekit.packed import packed
from densekit.precision import DTYPES, autocast, choose_precision
from densekit.registry import BACKBONES, HEADS
from densekit.types import Batch, Classes, Targets

CLASSES = Classes(tuple("abcd"), (0, 1, 2, 3))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    args = arguments(__doc__).parse_args()
    device = device_of(args)
    ours, theirs = pair(device)
    agreement = compare(ours, theirs, random_batch(2, 128, device))
    rows, amps = [], with_mixed(False, True, device)
    for size in (256, 512):
        count = {256: 8, 512: 4}[size] if device.type == "cpu" else 32
        batch = random_batch(count, size, device)
        for amp in amps:
            peer = "smp AMP, channels last" if amp else "smp fp32"
            goal = None if amp == (device.type == "cpu") else 3.0 if device.type == "cpu" else 2.0
            model = theirs.to(memory_format=torch.channels_last if amp else torch.contiguous_format)
            for name, a, b in (
                ("training step", our_step(ours, batch), their_step(model, batch, amp)),
                ("inference", our_inference(ours, batch), their_inference(model, batch, amp)),
            ):
                times = in_turn(a, b, repeats=3 if args.short else 5)
                rows.append(Row(f"{name}, {count} x {size} x {size}", peer, *times, agreement, goal))
    report("U-Net, ResNet-34", rows, args)


def pair(device: torch.device) -> tuple[DenseModel, nn.Module]:
    """Both models with the same weights."""
    torch.manual_seed(0)
    theirs = smp.Unet("resnet34", encoder_weights=None, classes=len(CLASSES))
    with torch.no_grad():  # statistics of the norms that fit the weights: untouched ones let the logits grow to 100
        for _ in range(10):
            theirs(torch.randn(4, 3, 64, 64))
    backbone = BACKBONES.build("resnet34", {})
    head = HEADS.build("unet", {}, backbone.levels, num_classes=len(CLASSES))
    ours = DenseModel(backbone, {"masks": head}, mean=MEAN, std=STD, classes=CLASSES)
    ours.load_state_dict({**ours.state_dict(), **from_smp(theirs.state_dict(), head="masks")})
    return ours.to(device), theirs.to(device)


def random_batch(count: int, size: int, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    masks = torch.randint(0, len(CLASSES), (count, size, size), generator=generator)
    sizes = torch.tensor([[size, size]] * count)
    return Batch(images, sizes, sizes, list(range(count)), torch.arange(count), Targets(masks=masks)).to(device)


def normalised(batch: Batch) -> Tensor:
    """The peer's input; its users normalise in the loader, so this is not timed."""
    mean, std = (torch.tensor(v, device=batch.images.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (batch.images / 255 - mean) / std


@torch.inference_mode()
def compare(ours: DenseModel, theirs: nn.Module, batch: Batch) -> str:
    with whole_float32():
        found = torch.stack(ours.eval().predict(batch).probabilities).cpu()
        expected = theirs.eval()(normalised(batch)).softmax(1).cpu()
    return check("probabilities", found, expected, atol=1e-4) + compared_on(batch.images.device)


def our_step(model: DenseModel, batch: Batch) -> Callable[[], object]:
    precision = choose_precision("auto", batch.images.device)
    optimizer = make_optimizer("adamw", parameter_groups(model, lr=1e-7, weight_decay=0.01))

    def step() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision, batch.images.device):
            losses = model(batch)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return step


def their_step(model: nn.Module, batch: Batch, amp: bool) -> Callable[[], object]:
    images = laid_out(normalised(batch), amp)
    masks = batch.targets.masks
    dice = smp.losses.DiceLoss("multiclass")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-7)

    def step() -> None:
        model.train()
        with mixed(images.device, amp):
            logits = model(images)
            loss = nn.functional.cross_entropy(logits, masks) + dice(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def our_inference(model: DenseModel, batch: Batch) -> Callable[[], object]:
    precision = choose_precision("auto", batch.images.device)
    ready = packed(model, DTYPES[precision])

    @torch.inference_mode()
    def predict() -> object:
        with autocast(precision, batch.images.device):
            return ready.predict(batch).masks

    return predict


def their_inference(model: nn.Module, batch: Batch, amp: bool) -> Callable[[], object]:
    images = laid_out(normalised(batch), amp)

    @torch.inference_mode()
    def predict() -> object:
        model.eval()
        with mixed(images.device, amp):
            return model(images).softmax(1).argmax(1)

    return predict


def laid_out(images: Tensor, amp: bool) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last if amp else torch.contiguous_format)


def mixed(device: torch.device, amp: bool) -> contextlib.AbstractContextManager[object]:
    if not amp:
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if device.type == "cpu" else torch.float16)


if __name__ == "__main__":
    main()
