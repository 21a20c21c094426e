"""Loading for detection: read, decode, augment and batch, against torchvision's reference loader.

    python benchmarks/loader.py [--short] [--json FILE] [--workers N]

The peer does what torchvision's detection reference does with its own transforms: COCO annotations, images by Pillow,
``transforms.v2`` on them and their boxes, batches as lists. Both read the same generated JPEGs (short side 480) with
the same recipes and as many workers, start them anew for each run, and are timed over the same number of images:

* multiscale: short side drawn from 480..800, at most 1333, flip
* jitter: large-scale jitter to 1024 x 1024, flip
* colour: short side 480, flip, colour jitter
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import torch
from common import Row, arguments, check, in_turn, report
from torch import Tensor
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from densekit import machine
from densekit.data.formats.coco.coco import CocoDataset, coco
from densekit.data.formats.shapes import generate_shapes
from densekit.data.loading.loader import train_loader
from densekit.data.transforms.pipeline import Pipeline

BATCH = 8
SIDES = tuple(range(480, 801, 32))
TRIPLE = [v2.ToDtype(torch.float32, scale=True), v2.SanitizeBoundingBoxes(), v2.ToPureTensor()]
RECIPES: dict[str, tuple[list[dict[str, Any]], list[v2.Transform]]] = {
    "multiscale": (
        [{"name": "Resize", "short": SIDES, "long": 1333}, {"name": "HorizontalFlip"}],
        [v2.RandomShortestSize(SIDES, 1333), v2.RandomHorizontalFlip(), v2.PILToTensor(), *TRIPLE],
    ),
    "jitter": (
        [{"name": "ScaleJitter", "size": [1024, 1024], "scale": [0.1, 2.0]}, {"name": "HorizontalFlip"}],
        [
            v2.ScaleJitter((1024, 1024), (0.1, 2.0)),
            v2.RandomCrop((1024, 1024), pad_if_needed=True, fill=128),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ClampBoundingBoxes(),
            *TRIPLE,
        ],
    ),
    "colour": (
        [{"name": "Resize", "short": 480}, {"name": "HorizontalFlip"}, {"name": "ColorJitter", "p": 1.0}],
        [
            v2.RandomShortestSize([480]),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.2, 0.2, 0.2, 0.2),
            v2.PILToTensor(),
            *TRIPLE,
        ],
    ),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--workers", type=int, default=max(1, machine.cores() - 1))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = generate(Path(folder) / "shapes", 64 if args.short else 256)
        agreement = compare(images)
        rows = [recipe_row(name, images, args, agreement) for name in RECIPES]
    report("Loader for detection", rows, args)


def generate(out: Path, count: int) -> Path:
    """Shapes with a short side of 480 pixels; images without objects go, since the peer cannot take them."""
    generate_shapes(out, train=count, val=1, test=1, size=480, objects=8)
    path = out / "annotations/train.json"
    content = json.loads(path.read_text())
    with_objects = {row["image_id"] for row in content["annotations"]}
    content["images"] = [image for image in content["images"] if image["id"] in with_objects]
    path.write_text(json.dumps(content))
    return out


def recipe_row(name: str, images: Path, args: argparse.Namespace, agreement: str) -> Row:
    batches = 8 if args.short else 40
    ours = ours_run(images, RECIPES[name][0], args.workers, batches)
    theirs = peer_run(images, RECIPES[name][1], args.workers, batches)
    times = in_turn(ours, theirs, repeats=3 if args.short else 5)
    question = f"{name}: {batches * BATCH} images, {args.workers} workers"
    return Row(question, "torchvision's reference", *times, agreement, 1.5)


def ours_dataset(images: Path, specs: list[dict[str, Any]]) -> CocoDataset:
    return coco(
        images=images / "images", annotations=images / "annotations/train.json", transforms=Pipeline(specs), seed=0
    )


def peer_dataset(images: Path, transforms: list[v2.Transform]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        data = CocoDetection(images / "images", images / "annotations/train.json", transforms=v2.Compose(transforms))
    return wrap_dataset_for_transforms_v2(data, target_keys=("boxes", "labels", "image_id"))


def ours_run(images: Path, specs: list[dict[str, Any]], workers: int, batches: int) -> Callable[[], object]:
    data = ours_dataset(images, specs)
    return lambda: sum(
        len(b.ids) for b in itertools.islice(train_loader(data, batch_size=BATCH, seed=0, workers=workers), batches)
    )


def peer_run(images: Path, transforms: list[v2.Transform], workers: int, batches: int) -> Callable[[], object]:
    data = peer_dataset(images, transforms)

    def run() -> int:
        loader = torch.utils.data.DataLoader(
            data,
            sampler=torch.utils.data.RandomSampler(data, num_samples=batches * BATCH, replacement=True),
            batch_size=BATCH,
            num_workers=workers,
            collate_fn=lambda samples: tuple(zip(*samples)),
        )
        return sum(len(images) for images, _ in loader)

    return run


def compare(images: Path) -> str:
    """The same images, resized and not drawn at random, and their boxes."""
    ours = ours_dataset(images, [{"name": "Resize", "height": 384, "width": 512}])
    theirs = peer_dataset(images, [v2.Resize((384, 512)), v2.PILToTensor(), *TRIPLE])
    pixels: list[Tensor] = []
    agreement = ""
    for i in range(16):
        sample, (image, target) = ours.sample(0, i), theirs[i]
        boxes = target.get("boxes", torch.zeros(0, 4)).reshape(-1, 4)
        agreement = check("boxes", torch.from_numpy(sample.boxes), boxes, atol=1e-3)
        pixels.append((torch.from_numpy(sample.image).permute(2, 0, 1) / 255 - image).abs().mean() * 255)
    return f"{agreement}, {check('pixels', torch.stack(pixels).max(), 0.0, atol=3.0)} of 255 on average"


if __name__ == "__main__":
    cv2.setNumThreads(0)
    main()
