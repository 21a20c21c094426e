"""COCO's evaluation of 5,000 images with 100 detections each, against pycocotools' COCOeval.

    python benchmarks/coco_evaluation.py [--short] [--json FILE]

Both sides start from the same annotations and the same result list in memory, and end with the 12 numbers, which must
be equal. 80 classes, about 7 objects an image, one in fifty a crowd (--short: 500 images).
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from common import Row, arguments, check, in_turn, report
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from densekit.metrics.coco_results import evaluate_coco

CLASSES = 80
NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
NAMES += ("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")


def main() -> None:
    args = arguments(__doc__).parse_args()
    images = 500 if args.short else 5000
    truth, found = generate(images, detections=100)
    numbers = evaluate_coco(truth, found)
    agreement = check("12 numbers", [numbers[n] for n in NAMES], pycocotools(truth, found), atol=0)
    times = in_turn(
        lambda: evaluate_coco(truth, found),
        lambda: pycocotools(truth, found),
        repeats=2 if args.short else 3,
        warm_up=0,
    )
    row = Row(f"{images:,} images x 100 detections, {CLASSES} classes", "pycocotools", *times, agreement, 30)
    report("COCO evaluation of boxes", [row], args)


def generate(images: int, detections: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations, and detections that are moved objects of the image or noise."""
    random = np.random.default_rng(0)
    owners = np.sort(random.integers(0, images, 7 * images))
    boxes = draw_boxes(random, len(owners))
    classes = random.integers(0, CLASSES, len(owners))
    crowd = random.random(len(owners)) < 0.02
    truth = {
        "images": [{"id": i, "width": 640, "height": 480, "file_name": f"{i}.jpg"} for i in range(images)],
        "categories": [{"id": c + 1, "name": f"class {c}"} for c in range(CLASSES)],
        "annotations": [
            {
                "id": k + 1,
                "image_id": int(i),
                "category_id": int(classes[k]) + 1,
                "bbox": boxes[k].tolist(),
                "area": float(boxes[k, 2] * boxes[k, 3]),
                "iscrowd": int(crowd[k]),
            }
            for k, i in enumerate(owners)
        ],
    }
    first = np.searchsorted(owners, np.arange(images + 1))
    found = []
    for i in range(images):
        own = np.arange(first[i], first[i + 1])
        copied = random.choice(own, detections // 2) if len(own) else own
        moved = np.maximum(boxes[copied] + random.normal(0, 6, (len(copied), 4)), 1)
        rest = detections - len(copied)
        labels = np.concatenate((classes[copied], random.integers(0, CLASSES, rest))) + 1
        both = np.concatenate((moved, draw_boxes(random, rest))).round(2).tolist()
        scores = random.random(detections).round(3).tolist()
        found += [
            {"image_id": i, "category_id": int(c), "bbox": b, "score": s} for c, b, s in zip(labels, both, scores)
        ]
    return truth, found


def draw_boxes(random: np.random.Generator, count: int) -> np.ndarray:
    sides = np.exp(random.uniform(np.log(8), np.log(300), (count, 2)))
    return np.concatenate((random.uniform(0, (640, 480) - sides), sides), 1).round(2)


def pycocotools(truth: dict[str, Any], found: list[dict[str, Any]]) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        # loadRes writes into the dictionaries that it is given.
        evaluation = COCOeval(coco, coco.loadRes([dict(d) for d in found]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers: list[float] = evaluation.stats.tolist()
    return numbers


if __name__ == "__main__":
    main()
