"""How much faster a head trains from stored features than with its frozen backbone recomputed.

    python benchmarks/features_from_store.py [--short] [--json FILE] [--backbone resnet50] [--size 256]

Both ways take the same batches through the same training step (loader, forward, backward, update) on generated images;
the numbers are medians of a step in seconds. A light head on a deep backbone gains most; a heavy head has its own cost,
which no stored feature can take away.

The losses of the first step must agree before anything is timed: from a float32 store within 1e-5 of those with the
backbone, from the float16 store that is timed within 1e-3. A detector's is allowed 2e-2 at float16: where the rounding
turns the order of two proposals, another one is sampled, which moves the mean over the few sampled ones.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import Table, arguments, check, report_tables

from densekit import build
from densekit.config import Config, parse
from densekit.data.formats.shapes import generate_shapes
from densekit.engine import distributed
from densekit.features.export import Exporter
from densekit.features.recipe import Dtype
from densekit.features.setup import Export, model_of, split_to_export, views_of
from densekit.features.shards import ShardFolder

_DETECTOR = {
    "name": "faster_rcnn",
    "channels": 128,
    "box_head_width": 256,
    "samples": 64,
    "rpn_before_nms": [500, 300],
    "rpn_after_nms": [200, 100],
}
HEADS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "classifier on c5": ({"name": "classifier"}, "image_folder", ["c5"]),
    "pspnet on c5": ({"name": "pspnet", "level": "c5", "decoder_channels": 256}, "masks", ["c5"]),
    "faster_rcnn on c5": ({**_DETECTOR, "neck": "c5"}, "coco", ["c5"]),
    "faster_rcnn on an FPN": (_DETECTOR, "coco", ["c2", "c3", "c4", "c5"]),
    "deeplab_v3_plus": ({"name": "deeplab_v3_plus"}, "masks", ["c2", "c5"]),
}
"""Head, data set and stored levels, from light to heavy."""

TOLERANCES: dict[str, dict[Dtype, float]] = {"faster_rcnn": {"float32": 1e-5, "float16": 2e-2}}
USUAL: dict[Dtype, float] = {"float32": 1e-5, "float16": 1e-3}
"""How far the first step's loss from a store may be from the one with the backbone, as a fraction of it."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels (256)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8, help="steps to time after one to warm up (8)")
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS))
    args = parser.parse_args()
    if args.short:
        args.size, args.batch, args.steps = 128, 4, 3
    world = distributed.join(args.device)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        generate_shapes(Path(folder) / "shapes", train=4 * args.batch, val=2, test=2, size=args.size)
        sort_into_classes(Path(folder) / "shapes")
        for name in args.heads:
            rows.append(compare(name, Path(folder), args, world))
            print(f"{name}: {rows[-1][3]} times faster", flush=True)
    title = f"{args.backbone}, {args.size} x {args.size}, batch {args.batch}, {torch.get_num_threads()} threads"
    columns = ("head", "recomputed s", "stored s", "times faster", "loss recomputed", "float32 store", "float16 store",
               "MB an image")  # fmt: skip
    report_tables("Heads on stored features", [Table(title, columns, rows)], args)


def sort_into_classes(shapes: Path) -> None:
    for number, image in enumerate(sorted((shapes / "images" / "train").glob("*.jpg"))):
        folder = shapes / "classes" / ("even" if number % 2 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / image.name).write_bytes(image.read_bytes())


def compare(name: str, folder: Path, args: argparse.Namespace, world: distributed.World) -> tuple[Any, ...]:
    """One head both ways: name, seconds a step, ratio, losses, megabytes; stops where the losses differ."""
    head, kind, levels = HEADS[name]
    config = config_of(args, head, source_of(kind, folder / "shapes"))
    _, expected = seconds_a_step(config, 0, world)
    losses: list[float] = []
    for dtype in ("float32", "float16"):
        store = folder / f"{dtype}_{name.replace(' ', '_')}"
        size = export(config, levels, store, world, dtype)
        stored = from_store(config, store)
        losses.append(seconds_a_step(stored, 0, world)[1])
        tolerance = TOLERANCES.get(head["name"], USUAL)[dtype]
        check(f"{name}: loss of the first step, {dtype} store,", losses[-1], expected, atol=0, rtol=tolerance)
    slow, fast = (seconds_a_step(c, args.steps, world)[0] for c in (config, stored))
    shown = (f"{loss:.6g}" for loss in (expected, *losses))
    return name, round(slow, 4), round(fast, 4), round(slow / fast, 1), *shown, round(size, 2)


def from_store(config: Config, store: Path) -> Config:
    stored = config.model_dump(mode="json")
    stored["data"]["train"] = {"name": "features", "store": str(store), "data": stored["data"]["train"]}
    return parse(stored, "benchmark")


def source_of(kind: str, shapes: Path) -> dict[str, Any]:
    if kind == "coco":
        return {"name": "coco", "images": f"{shapes}/images", "annotations": f"{shapes}/annotations/train.json"}
    if kind == "masks":
        return {"name": "masks", "images": f"{shapes}/images/train", "masks": f"{shapes}/masks/train",
                "classes": f"{shapes}/classes.txt"}  # fmt: skip
    return {"name": "image_folder", "images": f"{shapes}/classes"}


def config_of(args: argparse.Namespace, head: dict[str, Any], source: dict[str, Any]) -> Config:
    resize = {"name": "Resize", "height": args.size, "width": args.size}
    return parse(
        {
            "model": {"backbone": {"name": args.backbone, "frozen_stages": 5}, "heads": {"main": head}},
            "data": {
                "train": source,
                "train_transforms": [resize, {"name": "HorizontalFlip", "p": 0.5}],
                "workers": 1,
            },
            "train": {"steps": 1000, "batch_size": args.batch, "optimizer": {"lr": 1e-4}, "precision": "fp32"},
        },
        "benchmark",
    )


def export(config: Config, levels: list[str], store: Path, world: distributed.World, dtype: Dtype) -> float:
    """Export a config's training images; megabytes an image and view."""
    split, views = split_to_export(config, "train", [])
    source = build.dataset(split, "train", training=True)
    model, _ = model_of(config)
    options: dict[str, Any] = {"precision": "fp32", "dtype": dtype}
    job = Export(model.to(world.device), source, levels, views_of(views), source.transforms.specs, **options)
    recipe = job.recipe()
    folder = ShardFolder(store, recipe)
    Exporter(source, job.extractor(), folder).run(folder.missing(0, 1))
    manifest = folder.finish({"weights": None, "sha256": None})
    return sum(shard["bytes"] for shard in manifest["shards"]) / 1e6 / manifest["rows"]


def seconds_a_step(config: Config, steps: int, world: distributed.World) -> tuple[float, float]:
    """Median seconds of so many training steps with their batches after a first one, and the loss of that one."""
    data = build.dataset(config, "train", training=True)
    model, _ = build.model(config, data.classes)
    build.check_stores(config, model, data, training=True)
    step = build.train_step(config, model.to(world.device), build.plan(config, [data], model), world)
    batches = build.train_batches(config, data, world, start=0)
    times, first = [], 0.0
    for number in range(steps + 1):
        began = time.perf_counter()
        result = step([next(batches).to(world.device)], number)
        total = float(torch.stack(list(result.losses.values())).sum())  # waits for the device
        times.append(time.perf_counter() - began)
        first = first or total
    return statistics.median(times[1:] or times), first


if __name__ == "__main__":
    main()
