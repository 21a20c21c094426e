"""From the start of ``tools/train.py`` to the end of its first step on a set of COCO's size, against torchvision's.

    python benchmarks/first_step.py [--short] [--json FILE] [--workers N] [--images N]

Both sides are processes of their own on the same generated set: 118,287 JPEGs (hard links to a few) and 860,001 objects
with polygons (--short: an eighth of it), ResNet-50-FPN with random weights, batches of 2 images with a short side of
320 pixels (800 on a GPU). The peer is ``peers/torchvision_train.py``, which does what torchvision's detection reference
does. Imports, model, loader and the step itself count on both sides. densekit's first run parses and checks the
annotations and caches them; every later run finds the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import yaml
from coco_open import IMAGES, OBJECTS, generate
from common import Row, arguments, check, device_of, report

from densekit import machine

TOOLS = Path(__file__).resolve().parents[1] / "tools"
PEER = Path(__file__).resolve().parent / "peers/torchvision_train.py"
SHAPES = 64
"""Different JPEGs: a file system allows some ten thousand links to one file."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--workers", type=int, default=max(1, min(4, machine.cores() - 1)))
    parser.add_argument("--images", type=int, help="in the set, with 7.3 objects each (default: as many as COCO)")
    args = parser.parse_args()
    images = args.images or (IMAGES // 8 if args.short else IMAGES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DENSEKIT_CACHE"] = str(folder / "cache")
        make_set(folder, images, OBJECTS * images // IMAGES)
        ours, theirs = our_run(folder, args), their_run(folder, args)
        agreement = compare(ours(), theirs())
        first, later, peer = [], [], []
        for _ in range(2 if args.short else 3):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            first.append(ours()[0])
            peer.append(theirs()[0])
            later.append(ours()[0])
        size = f"{images:,} images"
        goal = 4 if images >= IMAGES else None  # with fewer, starting Python and torch is most of it on both sides
        rows = [
            Row(f"first run on {size}", "torchvision's reference", first, peer, agreement, goal),
            Row(f"later runs on {size}", "torchvision's reference", later, peer, agreement, goal),
        ]
    report("From the start of the command to the first training step", rows, args)


def make_set(folder: Path, images: int, objects: int) -> None:
    """Annotations, and a JPEG of the right size under every name."""
    random = np.random.default_rng(0)
    shapes = random.integers(320, 641, (SHAPES, 2))
    generate(folder / "annotations.json", images, objects, shapes[np.arange(images) % SHAPES].T)
    for part in ("images", "originals"):
        (folder / part).mkdir()
    for i, (width, height) in enumerate(shapes.tolist()):
        pixels = cv2.resize(random.integers(0, 256, (height // 8, width // 8, 3), np.uint8), (width, height))
        cv2.imwrite(str(folder / f"originals/{i}.jpg"), pixels)
    for i in range(images):
        os.link(folder / f"originals/{i % SHAPES}.jpg", folder / f"images/{4 * i + 9:012d}.jpg")


Run = Callable[[], tuple[float, int]]
"""Start the process; seconds until its first step was done, and the number of images that it trains on."""


def our_run(folder: Path, args: argparse.Namespace) -> Run:
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(config_of(folder, args)))
    command = [sys.executable, str(TOOLS / "train.py"), str(config), "--device", device_of(args).type, "--out"]

    def run() -> tuple[float, int]:
        out = folder / "run"
        shutil.rmtree(out, ignore_errors=True)
        began = time.time()
        said = output([*command, str(out)])
        stamp = json.loads((out / "timing.jsonl").read_text().splitlines()[0])["time"]
        empty = re.search(r"data: (\d+) of \d+ images have no annotation", said)
        images = re.search(r" (\d+) images, \d+ classes", said)
        assert images is not None, said
        return stamp - began, int(images[1]) - (int(empty[1]) if empty else 0)

    return run


def config_of(folder: Path, args: argparse.Namespace) -> dict[str, object]:
    side = 320 if device_of(args).type == "cpu" else 800
    return {
        "seed": 0,
        "model": {
            "backbone": {"name": "resnet50", "norm": "frozen"},
            "heads": {"boxes": {"name": "faster_rcnn", "neck": "fpn"}},
        },
        "data": {
            "train": {
                "name": "coco",
                "images": str(folder / "images"),
                "annotations": str(folder / "annotations.json"),
            },
            "train_transforms": [{"name": "Resize", "short": side, "long": 1333}, {"name": "HorizontalFlip", "p": 0.5}],
            "eval_transforms": [{"name": "Resize", "short": side, "long": 1333}],
            "workers": args.workers,
        },
        "train": {"steps": 1, "batch_size": 2, "optimizer": {"name": "sgd", "lr": 0.001, "momentum": 0.9}},
        "evaluation": {"pictures": 1},
        "log": {"every": 1},
    }


def their_run(folder: Path, args: argparse.Namespace) -> Run:
    device = device_of(args).type
    command = [sys.executable, str(PEER), str(folder / "images"), str(folder / "annotations.json")]
    command += ["--side", "320" if device == "cpu" else "800", "--workers", str(args.workers), "--device", device]

    def run() -> tuple[float, int]:
        began = time.time()
        last = json.loads(output(command).splitlines()[-1])
        return last["time"] - began, last["images"]

    return run


def output(command: list[str]) -> str:
    """What a process printed; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def compare(ours: tuple[float, int], theirs: tuple[float, int]) -> str:
    """Both must learn from the same images; torchvision's reference drops those without objects."""
    check("the number of images with objects", ours[1], theirs[1], atol=0)
    return f"{ours[1]:,} images with objects on both sides"


if __name__ == "__main__":
    main()
