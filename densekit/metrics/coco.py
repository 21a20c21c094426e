"""COCO's average precision: the same 12 numbers as pycocotools, counted by hotcoco.

hotcoco is bit-identical to pycocotools on valid input and forty to a hundred times faster, but takes some invalid input
in silence; so ids, boxes and scores are checked here first, and ids are replaced by positions (pycocotools silently
miscounts an annotation with id 0). A number that is not defined, such as ``AP_large`` without large objects, is None,
where COCO's own evaluation writes -1: nothing may take it for a very bad result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import hotcoco
import numpy as np
import numpy.typing as npt

from densekit.metrics.box_errors import Found, Objects, box_errors
from densekit.types import Batch, Classes, DensekitError, Detections, nearest

IouType = Literal["bbox", "segm"]
Floats = npt.NDArray[np.float64]

_AREAS = ("all", "small", "medium", "large")
_IOU_50, _IOU_75 = 0, 5  # positions among the thresholds 0.50, 0.55, ... 0.95


class CocoTruth(Protocol):
    """The columns that the metric needs of a COCO file; annotations are ordered by image."""

    @property
    def path(self) -> Path:
        """The json file."""
        ...

    @property
    def classes(self) -> Classes:
        """Names and ids of the categories."""
        ...

    @property
    def first(self) -> npt.NDArray[np.int64]:
        """[I + 1] where each image's annotations start."""
        ...

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """[A] positions in ``classes``."""
        ...

    @property
    def boxes(self) -> Floats:
        """[A, 4] (x, y, width, height)."""
        ...

    @property
    def areas(self) -> Floats:
        """[A] areas as the file gives them."""
        ...

    @property
    def crowd(self) -> npt.NDArray[np.bool_]:
        """[A] regions of many objects."""
        ...

    def __len__(self) -> int: ...

    def image_id(self, image: int) -> int | str:
        """The file's own id of the image at a position."""
        ...


@runtime_checkable
class CocoDataset(Protocol):
    """A data set with the columns of its COCO file."""

    @property
    def file(self) -> CocoTruth:
        """The columns."""
        ...


class CocoMetric:
    """Collects detections and counts COCO's numbers for boxes, over the images that were seen.

    Args:
        data: the data set that is evaluated on.
        classes: of the model, whose ids the predictions have; matched by name with those of the data set, which may
            lack some. None: the data set's own.
        max_detections: best detections of each image and class that count; COCO's own numbers take 100.
    """

    def __init__(self, data: CocoDataset, *, classes: Classes | None = None, max_detections: int = 100) -> None:
        if max_detections < 1:
            raise DensekitError(f"max_detections must be at least 1, not {max_detections}; COCO takes 100")
        self.truth = data.file
        self.classes = classes or self.truth.classes
        self._places = np.array([self.classes.names.index(name) for name in self.truth.classes.names], np.int64)
        self.max_detections = max_detections
        self._positions = {self.truth.image_id(i): i for i in range(len(self.truth))}
        self._found: dict[int | str, tuple[Floats, Floats, npt.NDArray[np.int64]]] = {}

    def update(self, predictions: Detections, batch: Batch) -> None:
        """Add one batch; an image that was added before does not count again.

        Args:
            predictions: boxes in the original pixels, labels as ids of ``classes``.
            batch: whose ids are image ids of the data set.

        Raises:
            DensekitError: an image or category is not of this data set, or a number is not finite.
        """
        boxes, scores, labels, valid = (
            getattr(predictions, name).detach().cpu().numpy() for name in ("boxes", "scores", "labels", "valid")
        )
        for b, image_id in enumerate(batch.ids):
            if image_id not in self._positions:
                raise DensekitError(
                    f"{self.truth.path}: image {image_id!r} is not in the file; evaluate on its own data"
                )
            if image_id in self._found:
                continue
            corners = boxes[b][valid[b]].astype(np.float64)
            xywh = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1)
            own = scores[b][valid[b]].astype(np.float64)
            if not (np.isfinite(xywh).all() and np.isfinite(own).all()):
                raise DensekitError(f"image {image_id!r}: a predicted box or score is not finite; check the weights")
            self._found[image_id] = (xywh, own, self._labels(labels[b][valid[b]]))

    def state(self) -> dict[int | str, tuple[Floats, Floats, npt.NDArray[np.int64]]]:
        """Boxes, scores and labels by image id."""
        return self._found

    def merge(self, states: Sequence[dict[int | str, tuple[Floats, Floats, npt.NDArray[np.int64]]]]) -> None:
        """Take the union of the ranks' detections; the first rank that saw an image wins."""
        self._found = {image_id: found for state in reversed(states) for image_id, found in state.items()}

    def compute(self) -> dict[str, Any]:
        """Count.

        Returns:
            ``AP``, ``AP50``, ``AP75``, ``AP_small``, ``AP_medium``, ``AP_large``, ``AR1``, ``AR10``, ``AR100`` (or
            whatever ``max_detections`` is), ``AR_small``, ``AR_medium``, ``AR_large``; ``per_class``: by name ``AP``,
            ``AP50``, ``AP75``, ``AR`` and ``objects``, the annotations that are no crowd; ``images``: how many. A
            number that is not defined is None.

        Raises:
            DensekitError: there was no image.
        """
        if not self._found:
            raise DensekitError("there is no image to evaluate; give a data set with images")
        truth = self.truth
        # In the order of the ids, because ties between the scores of two images are broken by it.
        ids = sorted(self._found, key=lambda i: (isinstance(i, str), i))
        images = [self._positions[i] for i in ids]
        rows = np.concatenate([np.arange(truth.first[i], truth.first[i + 1]) for i in images])
        owners = np.repeat(np.arange(1, len(images) + 1), [truth.first[i + 1] - truth.first[i] for i in images])
        labels = self._places[truth.labels[rows]]
        annotated = hotcoco.COCO.from_arrays(
            images=_image_entries(len(images)),
            categories=_category_entries(self.classes.names),
            image_ids=owners,
            category_ids=labels + 1,
            boxes=truth.boxes[rows],
            area=truth.areas[rows],
            iscrowd=truth.crowd[rows].astype(np.int64),
        )
        detected = annotated.load_res(self._detection_rows(ids))
        numbers = _count(annotated, detected, "bbox", self.max_detections, self.classes.names)
        objects = np.bincount(labels[~truth.crowd[rows]], minlength=len(self.classes))
        for name, count in zip(self.classes.names, objects):
            numbers["per_class"][name]["objects"] = int(count)
        return {**numbers, "images": len(images)}

    def details(self) -> dict[str, Any]:
        """What the numbers are made of: precision over recall, and what is taken for what; see ``box_errors``."""
        images = []
        for image_id in sorted(self._found, key=lambda i: (isinstance(i, str), i)):
            image, (boxes, scores, labels) = self._positions[image_id], self._found[image_id][:3]
            rows = slice(self.truth.first[image], self.truth.first[image + 1])
            true = Objects(self.truth.boxes[rows], self._places[self.truth.labels[rows]], self.truth.crowd[rows])
            images.append((true, Found(boxes, scores, labels)))
        return box_errors(images, self.classes.names, self.max_detections)

    def _detection_rows(self, ids: Sequence[int | str]) -> Floats:
        """[n, 7] image position, box, score, class position."""
        parts = [
            np.column_stack((np.full(len(scores), i, np.float64), boxes, scores, labels + 1.0))
            for i, (boxes, scores, labels) in enumerate((self._found[image] for image in ids), 1)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, 7))

    def _labels(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        known = np.array(self.classes.ids, np.int64)
        order = np.argsort(known)
        at = order[np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)]
        if (known[at] != ids).any():
            wrong = ids[known[at] != ids][0]
            raise DensekitError(
                f"{self.truth.path}: category id {wrong} was predicted but is none of {list(self.classes.ids)[:20]}; "
                "evaluate on data with the classes that the model learned"
            )
        return at


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
    return {**_count(annotated, detected, iou_type, max_detections, names), "images": len(images)}


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


def _image_entries(count: int) -> list[dict[str, Any]]:
    return [{"id": i} for i in range(1, count + 1)]


def _category_entries(names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"id": i, "name": n} for i, n in enumerate(names, 1)]


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
        categories=_category_entries(names),
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


def _count(annotated: Any, detected: Any, iou_type: IouType, most: int, names: Sequence[str]) -> dict[str, Any]:
    evaluation = hotcoco.COCOeval(annotated, detected, iou_type)
    evaluation.params.max_dets = sorted({min(1, most), min(10, most), most})
    evaluation.evaluate()
    evaluation.accumulate()
    counted = evaluation.eval
    assert counted is not None
    precision, recall = counted["precision"], counted["recall"]  # [T, R, K, A, M], [T, K, A, M]
    limits = list(evaluation.params.max_dets)
    numbers: dict[str, Any] = {"AP": _mean(precision[..., 0, -1])}
    numbers["AP50"], numbers["AP75"] = (_mean(precision[t, ..., 0, -1]) for t in (_IOU_50, _IOU_75))
    numbers |= {f"AP_{area}": _mean(precision[..., a, -1]) for a, area in enumerate(_AREAS) if a}
    numbers |= {f"AR{limit}": _mean(recall[..., 0, m]) for m, limit in enumerate(limits)}
    numbers |= {f"AR_{area}": _mean(recall[..., a, -1]) for a, area in enumerate(_AREAS) if a}
    numbers["per_class"] = {
        name: {
            "AP": _mean(precision[:, :, k, 0, -1]),
            "AP50": _mean(precision[_IOU_50, :, k, 0, -1]),
            "AP75": _mean(precision[_IOU_75, :, k, 0, -1]),
            "AR": _mean(recall[:, k, 0, -1]),
        }
        for k, name in enumerate(names)
    }
    return numbers


def _mean(values: Floats) -> float | None:
    """Mean over what is defined (not -1), or None."""
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else None
