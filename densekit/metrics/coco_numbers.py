"""COCO's numbers by name, from what hotcoco matched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import hotcoco
import numpy as np
import numpy.typing as npt

IouType = Literal["bbox", "segm"]
Floats = npt.NDArray[np.float64]

AREAS = ("all", "small", "medium", "large")
IOU_50, IOU_75 = 0, 5  # positions among the thresholds 0.50, 0.55, ... 0.95


def image_entries(count: int) -> list[dict[str, Any]]:
    """Images with the ids 1, 2, ..."""
    return [{"id": i} for i in range(1, count + 1)]


def category_entries(names: Sequence[str]) -> list[dict[str, Any]]:
    """Categories with the ids 1, 2, ..."""
    return [{"id": i, "name": n} for i, n in enumerate(names, 1)]


def match(annotated: Any, detected: Any, iou_type: IouType, most: int) -> Any:
    """Detections matched to the objects by hotcoco, in its own evaluation.

    Args:
        annotated: the truth, as hotcoco holds it.
        detected: what was found.
        iou_type: overlap of boxes or of masks.
        most: best detections of each image and class that count.
    """
    evaluation = hotcoco.COCOeval(annotated, detected, iou_type)
    evaluation.params.max_dets = sorted({min(1, most), min(10, most), most})
    evaluation.evaluate()
    return evaluation


def count(evaluation: Any, names: Sequence[str]) -> dict[str, Any]:
    """Accumulate and name: see ``CocoMetric.compute``.

    Args:
        evaluation: matched.
        names: of the classes.
    """
    evaluation.accumulate()
    counted = evaluation.eval
    assert counted is not None
    precision, recall = counted["precision"], counted["recall"]  # [T, R, K, A, M], [T, K, A, M]
    limits = list(evaluation.params.max_dets)
    numbers: dict[str, Any] = {"AP": _mean(precision[..., 0, -1])}
    numbers["AP50"], numbers["AP75"] = (_mean(precision[t, ..., 0, -1]) for t in (IOU_50, IOU_75))
    numbers |= {f"AP_{area}": _mean(precision[..., a, -1]) for a, area in enumerate(AREAS) if a}
    numbers |= {f"AR{limit}": _mean(recall[..., 0, m]) for m, limit in enumerate(limits)}
    numbers |= {f"AR_{area}": _mean(recall[..., a, -1]) for a, area in enumerate(AREAS) if a}
    numbers["per_class"] = {
        name: {
            "AP": _mean(precision[:, :, k, 0, -1]),
            "AP50": _mean(precision[IOU_50, :, k, 0, -1]),
            "AP75": _mean(precision[IOU_75, :, k, 0, -1]),
            "AR": _mean(recall[:, k, 0, -1]),
        }
        for k, name in enumerate(names)
    }
    return numbers


def add(numbers: dict[str, Any], others: dict[str, Any], prefix: str) -> None:
    """Put the numbers of masks beside those of boxes, under names that begin with ``prefix``."""
    per_class = others.pop("per_class")
    numbers |= {f"{prefix}{name}": value for name, value in others.items()}
    for name, row in per_class.items():
        numbers["per_class"][name] |= {f"{prefix}{key}": value for key, value in row.items()}


def _mean(values: Floats) -> float | None:
    """Mean over what is defined (not -1), or None."""
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else None
