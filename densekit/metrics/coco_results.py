"""COCO's numbers of a result list in COCO's own format, and detections as such a list."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np

from densekit.metrics.coco_numbers import IouType, category_entries, count, match
from densekit.types import DensekitError, Detections, nearest


def evaluate_coco(
    ground_truth: Path | Mapping[str, Any],
    detections: Path | Sequence[Mapping[str, Any]],
    *,
    iou_type: IouType = "bbox",
    max_detections: int = 100,
) -> dict[str, Any]:
    """COCO's numbers of a result list in COCO's own format.

    Args:
        ground_truth: a COCO json file or its content; ``iscrowd`` may be missing, and ``area`` for boxes.
        detections: a result json file or its content: ``image_id``, ``category_id``, ``score`` and ``bbox``
            (x, y, width, height) or ``segmentation`` (RLE or polygons).
        iou_type: overlap of boxes or of masks.
        max_detections: best detections of each image and class that count.

    Returns:
        As ``CocoMetric.compute``.

    Raises:
        DensekitError: unknown ids, numbers that are not finite, or a file that is not COCO.
    """
    truth, name = _loaded(ground_truth, "the ground truth")
    found, source = _loaded(detections, "the detections")
    if not isinstance(truth, Mapping) or not all(isinstance(truth.get(k), list) for k in ("images", "categories")):
        raise DensekitError(f"{name}: not a COCO file: it needs lists 'images', 'annotations' and 'categories'")
    if not isinstance(found, Sequence):
        raise DensekitError(f"{source}: not a COCO result: it must be a list of detections")
    for key in ("images", "categories"):
        if not all(isinstance(e, Mapping) and "id" in e for e in truth[key]):
            raise DensekitError(f"{name}: not a COCO file: an entry of {key!r} has no id; correct it")
    images = {e["id"]: i for i, e in enumerate(sorted(truth["images"], key=lambda e: e["id"]), 1)}
    ordered = sorted(truth["categories"], key=lambda e: e["id"])
    categories = {e["id"]: i for i, e in enumerate(ordered, 1)}
    names = [str(e.get("name", e["id"])) for e in ordered]
    if not categories:
        raise DensekitError(f"{name}: 'categories' is empty; name at least one category")

    annotated = _annotated(truth, images, categories, names, iou_type, name)
    _check_detections(found, images, categories, iou_type, source)
    if iou_type == "bbox":
        rows = [(images[d["image_id"]], *d["bbox"], d["score"], categories[d["category_id"]]) for d in found]
        detected = annotated.load_res(np.array(rows, np.float64).reshape(-1, 7))
    else:
        moved = [{**d, "image_id": images[d["image_id"]], "category_id": categories[d["category_id"]]} for d in found]
        detected = annotated.load_res(moved)
    return {**count(match(annotated, detected, iou_type, max_detections), names), "images": len(images)}


def detections_to_coco(predictions: Detections, ids: Sequence[int | str]) -> list[dict[str, Any]]:
    """Detections as COCO's result list, to be written as json.

    Args:
        predictions: boxes in the original pixels, labels as the data set's own category ids.
        ids: image ids of the batch.
    """
    boxes, scores, labels, valid = (
        getattr(predictions, name).detach().cpu() for name in ("boxes", "scores", "labels", "valid")
    )
    rows = []
    for b, image_id in enumerate(ids):
        keep = valid[b]
        for (x1, y1, x2, y2), score, label in zip(
            boxes[b][keep].double().tolist(), scores[b][keep].tolist(), labels[b][keep].tolist()
        ):
            box = [x1, y1, x2 - x1, y2 - y1]
            rows.append({"image_id": image_id, "category_id": label, "bbox": box, "score": score})
    return rows


def _loaded(given: Any, what: str) -> tuple[Any, str]:
    if not isinstance(given, str | Path):
        return given, what
    try:
        return json.loads(Path(given).read_bytes()), str(given)
    except (OSError, ValueError) as error:
        raise DensekitError(f"{given}: cannot be read as json ({error}); give a COCO json file") from None


def _annotated(
    truth: Mapping[str, Any],
    images: dict[Any, int],
    categories: dict[Any, int],
    names: Sequence[str],
    iou_type: IouType,
    source: str,
) -> Any:
    rows = truth.get("annotations", [])
    for row in rows:
        if len(row.get("bbox", ())) != 4:
            raise DensekitError(f"{source}: annotation {row.get('id')!r} has no bbox of four numbers; add it")
        _check_ids(row, images, categories, f"{source}: annotation {row.get('id')!r}")
        if iou_type == "segm" and ("segmentation" not in row or "area" not in row):
            raise DensekitError(f"{source}: annotation {row.get('id')!r} has no segmentation or no area; add both")
    boxes = np.array([r["bbox"] for r in rows], np.float64).reshape(-1, 4)
    areas = np.array([r.get("area", b[2] * b[3]) for r, b in zip(rows, boxes)], np.float64)
    entries = [{k: e[k] for k in ("height", "width") if k in e} for e in truth["images"]]
    options = {"segmentation": [r["segmentation"] for r in rows]} if iou_type == "segm" else {}
    return hotcoco.COCO.from_arrays(
        images=[{**e, "id": images[i["id"]]} for e, i in zip(entries, truth["images"])],
        categories=category_entries(names),
        image_ids=np.array([images[r["image_id"]] for r in rows], np.int64),
        category_ids=np.array([categories[r["category_id"]] for r in rows], np.int64),
        boxes=boxes,
        area=areas,
        iscrowd=np.array([int(r.get("iscrowd") or 0) for r in rows], np.int64),
        **options,
    )


def _check_ids(row: Mapping[str, Any], images: dict[Any, int], categories: dict[Any, int], where: str) -> None:
    for key, known in (("image_id", images), ("category_id", categories)):
        if row.get(key) not in known:
            near = nearest(str(row.get(key)), list(map(str, known))[:1000])
            raise DensekitError(f"{where}: {key} {row.get(key)!r} is not in the ground truth; {near}")


def _check_detections(
    found: Sequence[Mapping[str, Any]],
    images: dict[Any, int],
    categories: dict[Any, int],
    iou_type: IouType,
    source: str,
) -> None:
    part = "bbox" if iou_type == "bbox" else "segmentation"
    for i, row in enumerate(found):
        if not isinstance(row, Mapping) or part not in row or "score" not in row:
            raise DensekitError(f"{source}: detection {i} has no {part} or no score; evaluate {part!r} results")
        if row.get("image_id") not in images or row.get("category_id") not in categories:
            _check_ids(row, images, categories, f"{source}: detection {i}")
    numbers = [(*r.get("bbox", ()), r["score"]) if iou_type == "bbox" else (r["score"],) for r in found]
    try:
        values = np.array(numbers, np.float64)
    except (ValueError, TypeError):
        raise DensekitError(f"{source}: a box is not four numbers, or a score is none; correct the results") from None
    wrong = np.flatnonzero(~np.isfinite(values).all(1)) if len(found) else np.zeros(0, np.int64)
    if len(wrong):
        raise DensekitError(f"{source}: detection {wrong[0]} has a box or score that is not finite: {found[wrong[0]]}")
