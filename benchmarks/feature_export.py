"""Memory and speed of the feature export over many images.

    python benchmarks/feature_export.py [--short] [--json FILE] [--images 20000]

Small images are generated, exported with a small network, and the memory of the process is looked at after every
tenth of them: it must not grow with their number. Exits with 1 where it does.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from pathlib import Path

import cv2
import numpy as np
from common import Table, arguments, report_tables

from densekit.features.export import Exporter
from densekit.features.setup import Export, bare_model, plain_source
from densekit.features.shards import ShardFolder

MOST_GROWTH = 64
"""Megabytes that the peak may grow from the first tenth of the images to the end."""


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, help="how many (20000; 10000 with --short)")
    parser.add_argument("--side", type=int, default=32, help="of the images in pixels (32)")
    parser.add_argument("--workers", type=int, default=1, help="threads that decode (1)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "images", args.images or (10000 if args.short else 20000), args.side)
        return measure(Path(folder), args)


def generate(folder: Path, count: int, side: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(count):
        image = cv2.resize(random.integers(0, 256, (4, 4, 3), np.uint8), (side, side))
        cv2.imwrite(str(folder / f"{index:06d}.jpg"), image)


def measure(folder: Path, args: argparse.Namespace) -> int:
    model, _ = bare_model("resnet20", {}, weights=None, mean=[0.5], std=[0.25])
    source = plain_source(folder / "images", None, None, specs=[], channels=3)
    export = Export(model, source, ["c3", "c4", "pooled"], ["none"], [], batch_size=64, shard_images=200)
    store = ShardFolder(folder / "store", export.recipe())
    exporter = Exporter(source, export.extractor(), store, workers=args.workers)
    done, peaks = 0, []

    def progress() -> None:
        nonlocal done
        done += 1
        if done % (len(source) // 10) == 0:
            peaks.append(peak())
            print(f"{done:7d} images: peak {peaks[-1]:.0f} MB, now {now():.0f} MB", flush=True)

    times = exporter.run(store.missing(0, 1), progress)
    manifest = store.finish({"weights": None, "sha256": None})
    size = sum(shard["bytes"] for shard in manifest["shards"]) / 1e6
    print(f"{times.summary()}\n{manifest['rows']} rows, {size:.0f} MB; peak at the end {peak():.0f} MB")
    growth = peak() - peaks[0]
    columns = ["images", "peak after a tenth MB", "peak at the end MB"]
    table = Table("peak of memory", columns, [[manifest["rows"], peaks[0], peak()]])
    report_tables("Exporting features", [table], args)
    print(f"growth of the peak from the first tenth to the end: {growth:.0f} MB (allowed {MOST_GROWTH})")
    return int(growth > MOST_GROWTH)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def now() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    raise SystemExit(main())
