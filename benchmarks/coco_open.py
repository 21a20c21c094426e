"""Opening an annotation file of COCO train2017's size, against pycocotools' COCO: time and memory.

    python benchmarks/coco_open.py [--short] [--json FILE]

The file is generated: 118,287 images and 860,001 objects with polygons, 0.5 GB (--short: an eighth of it). The first
opening parses, checks and caches it; the second maps the cache. Memory is what a process and its children hold at most
beyond what it held before, shared pages counted once.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from common import Row, arguments, check, in_turn, report
from pycocotools.coco import COCO

from densekit.data.formats.coco.file import CocoFile, open_coco

IMAGES, OBJECTS = 118_287, 860_001
CATEGORIES = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def main() -> None:
    args = arguments(__doc__).parse_args()
    share = 8 if args.short else 1
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DENSEKIT_CACHE"] = str(Path(folder) / "cache")
        path = Path(folder) / "annotations.json"
        generate(path, IMAGES // share, OBJECTS // share)
        agreement = compare(open_coco(path), pycocotools(path))
        first, theirs = in_turn(
            lambda: opened_first(path), lambda: pycocotools(path), repeats=2 if args.short else 5, warm_up=0
        )
        open_coco(path)
        second, _ = in_turn(lambda: open_coco(path), lambda: None, repeats=len(theirs))
        size = f"{IMAGES // share:,} images, {OBJECTS // share:,} objects"
        rows = [
            Row(f"first opening, {size}", "pycocotools", first, theirs, agreement, 8),
            Row("second opening", "pycocotools", second, theirs, agreement, 50),
            Row(
                "first opening, GB of memory (not seconds)",
                "pycocotools",
                [memory(opened_first, path)],
                [memory(pycocotools, path)],
                agreement,
                4,
            ),
            Row(
                "second opening, GB of memory (not seconds)",
                "pycocotools",
                [memory(read_all, path)],
                [memory(pycocotools, path)],
                agreement,
                4,
            ),
        ]
    report("Opening COCO's annotation file", rows, args)


def generate(path: Path, images: int, objects: int, sizes: np.ndarray | None = None) -> None:
    """A valid file with ids, sizes and polygons like COCO's; ``sizes`` [2, images] are widths and heights."""
    random = np.random.default_rng(0)
    width, height = random.integers(320, 641, (2, images)) if sizes is None else sizes
    with path.open("w") as file:
        file.write(
            '{"info": {"description": "generated"}, "licenses": [{"id": 1, "name": "x", "url": ""}], "images": ['
        )
        file.write(", ".join(image_text(i, int(width[i]), int(height[i])) for i in range(images)))
        file.write('], "annotations": [')
        for start in range(0, objects, 10_000):
            owners = random.integers(0, images, min(10_000, objects - start))
            file.write(", " if start else "")
            file.write(annotations_text(random, owners, start, width[owners], height[owners]))
        categories = ", ".join(f'{{"supercategory": "s", "id": {c}, "name": "class {c}"}}' for c in CATEGORIES)
        file.write(f'], "categories": [{categories}]}}')


def image_text(i: int, width: int, height: int) -> str:
    number = 4 * i + 9
    return (
        f'{{"license": 3, "file_name": "{number:012d}.jpg", "coco_url": "http://example.com/{number:012d}.jpg", '
        f'"height": {height}, "width": {width}, "date_captured": "2013-11-14 16:28:13", "id": {number}}}'
    )


def annotations_text(
    random: np.random.Generator, owners: np.ndarray, start: int, width: np.ndarray, height: np.ndarray
) -> str:
    w, h = random.uniform(4, width / 2), random.uniform(4, height / 2)
    x, y = random.uniform(0, width - w), random.uniform(0, height - h)
    counts = random.integers(10, 40, len(owners))
    rows = []
    for k, n in enumerate(counts):
        angles = np.arange(n) * (2 * np.pi / n)
        points = np.stack((x[k] + w[k] / 2 * (1 + np.cos(angles)), y[k] + h[k] / 2 * (1 + np.sin(angles))), 1)
        rows.append(
            f'{{"segmentation": [{points.ravel().round(2).tolist()}], "area": {w[k] * h[k] * 0.78:.4f}, "iscrowd": 0, '
            f'"image_id": {4 * owners[k] + 9}, "bbox": [{x[k]:.2f}, {y[k]:.2f}, {w[k]:.2f}, {h[k]:.2f}], '
            f'"category_id": {CATEGORIES[(start + k) % 80]}, "id": {2 * (start + k) + 1}}}'
        )
    return ", ".join(rows)


def opened_first(path: Path) -> CocoFile:
    shutil.rmtree(os.environ["DENSEKIT_CACHE"], ignore_errors=True)
    return open_coco(path)


def read_all(path: Path) -> object:
    """Open by the cache and touch every column, as an epoch does."""
    file = open_coco(path)
    return file, [float(c.sum()) for c in (file.boxes, file.labels, file.crowd, file.sizes)], list(file.file_names)[:0]


def pycocotools(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def compare(ours: CocoFile, theirs: COCO) -> str:
    """Every box, class and flag, and a thousand polygons."""
    boxes, labels = [], []
    for i in range(len(ours)):
        for row in theirs.imgToAnns[ours.image_id(i)]:
            boxes.append(row["bbox"])
            labels.append([row["category_id"], row["iscrowd"], row["id"]])
    ids = np.array(ours.classes.ids)[ours.labels]
    check("classes", np.stack((ids, ours.crowd, ours.annotation_ids), 1), labels, atol=0)  # type: ignore[arg-type]
    for k in range(0, len(boxes), max(1, len(boxes) // 1000)):
        assert ours.segmentation(k) == theirs.anns[ours.annotation_id(k)]["segmentation"]
    return check("boxes", np.array(ours.boxes), boxes, atol=0)


def memory(action: Callable[[Path], object], path: Path) -> float:
    """GB that a fresh process and its children hold at most beyond what it held before ``action``."""
    parent, child = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(action, path, child))
    process.start()
    parent.recv()
    rest = peak = held(process.pid or 0)
    parent.send("go")
    while not parent.poll(0.02):
        peak = max(peak, held(process.pid or 0))
    peak = max(peak, held(process.pid or 0))
    parent.send("stop")
    process.join()
    return (peak - rest) / 1e9


def hold(action: Callable[[Path], object], path: Path, pipe: Connection) -> None:
    pipe.send("ready")
    pipe.recv()
    result = action(path)
    pipe.send("done")
    pipe.recv()
    del result


def held(process: int) -> int:
    """Bytes of a process and its children, pages that they share counted once (PSS)."""
    total = 0
    with contextlib.suppress(OSError, ValueError):
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
        total = 1024 * int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1])
        for thread in Path(f"/proc/{process}/task").iterdir():
            total += sum(held(int(child)) for child in (thread / "children").read_text().split())
    return total


if __name__ == "__main__":
    main()
