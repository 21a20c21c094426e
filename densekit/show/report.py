"""Tables of an evaluation's numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from densekit.metrics import MAIN_METRIC
from densekit.metrics.intervals import SHARE, intervals
from densekit.show.drawing import write_picture
from densekit.types import Metric, Task

Rows = list[list[object]]

COCO_NUMBERS = {
    "AP": "IoU .50:.95, all areas",
    "AP50": "IoU .50",
    "AP75": "IoU .75",
    "AP_small": "small, area below 32 x 32",
    "AP_medium": "medium",
    "AP_large": "large, area above 96 x 96",
    "AR1": "recall, 1 detection an image",
    "AR10": "recall, 10 detections",
    "AR100": "recall, most detections",
    "AR_small": "recall, small",
    "AR_medium": "recall, medium",
    "AR_large": "recall, large",
    "F1": "IoU .50, best mean over the classes",
    "F1_threshold": "score from which on it is reached",
}

MASK_NUMBERS = {
    f"{prefix}_{name}": f"{what}: {words}"
    for prefix, what in (("mask", "masks"), ("boundary", "outlines of masks"))
    for name, words in COCO_NUMBERS.items()
    if not name.startswith("F1")
}
NOTHING = "(nothing)"
"""Where no object is, or none was found."""

INTERVAL = f"{round(100 * SHARE)} % between"
"""Names the column of the intervals."""

WORST = 5
"""Images that the table of the worst ones shows; the JSON file has all."""

Table = tuple[str, Sequence[str], Rows]


def per_image(metric: Metric, file_names: Callable[[Sequence[int | str]], Sequence[str]]) -> list[dict[str, Any]]:
    """Numbers of each image, in the order of the files' names; each image once, whatever the number of ranks.

    Args:
        metric: after ``evaluate``, which gave it the images of all ranks.
        file_names: the image files behind ids.

    Returns:
        ``file``, ``id`` and the metric's numbers of the image (of a segmenter ``mIoU``, ``dice``, ``mean_accuracy``
        and ``pixel_accuracy``, None where all is ignored); empty for metrics that measure the data set alone.
    """
    if not hasattr(metric, "per_image"):
        return []
    own: dict[int | str, dict[str, Any]] = metric.per_image()
    rows = [{"file": name, "id": i, **own[i]} for name, i in zip(file_names(list(own)), own)]
    return sorted(rows, key=lambda row: (str(row["file"]), str(row["id"])))


def tables(task: Task, numbers: dict[str, Any]) -> list[Table]:
    """Title, columns and rows of each table that a person wants to see.

    Args:
        task: decides what the main table explains.
        numbers: what ``evaluate`` gave; ``per_image`` and ``intervals`` where there are such numbers.
    """
    known: dict[str, Any] = numbers.get("intervals", {})
    between, of_class = [INTERVAL] if known else [], known.get("per_class", {})
    explained = {**COCO_NUMBERS, **MASK_NUMBERS} if task == "detection" else {}
    main: Rows = [
        [name, _shown(value), *(_range(known.get(name)) for _ in between), explained.get(name, "")]
        for name, value in numbers.items()
        if isinstance(value, int | float | None) and not isinstance(value, bool)
    ]
    main += [[f"loss: {n}", _shown(v), *("" for _ in between), ""] for n, v in numbers.get("losses", {}).items()]
    found: list[Table] = [("all classes", ("number", "value", *between, ""), main)]
    per_class: dict[str, dict[str, Any]] = numbers.get("per_class", {})
    if per_class:
        columns = list(next(iter(per_class.values())))
        of_classes: Rows = [
            [name, *(_shown(row.get(c)) for c in columns), *(_range(of_class[name][columns[0]]) for _ in between)]
            for name, row in per_class.items()
        ]
        found.append(("per class", ("class", *columns, *(f"{columns[0]}, {words}" for words in between)), of_classes))
    measured = [row for row in numbers.get("per_image", ()) if row["mIoU"] is not None]
    if len(measured) > 1:
        worst = sorted(measured, key=lambda row: row["mIoU"])[:WORST]
        names = ("mIoU", "dice", "pixel_accuracy")
        rows = [[row["file"], *(_shown(row[n]) for n in names)] for row in worst]
        found.append(("worst images", ("file", *names), rows))
    if numbers.get("skipped"):
        found.append(("images that could not be read", ("image",), [[line] for line in numbers["skipped"]]))
    return found


def undefined(task: Task, numbers: dict[str, Any]) -> str | None:
    """One line where the task's main number is not defined, with the reason; None where it is."""
    main = MAIN_METRIC[task]
    if numbers.get(main) is not None:
        return None
    nothing = "have no object but crowds" if task == "detection" else "have no pixel that is not ignored"
    return f"{main} is not defined: the {numbers['images']} images {nothing}"


def _range(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"


def _shown(value: Any) -> object:
    """A number that is not defined is no number."""
    return "-" if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def details(metric: Metric) -> dict[str, Any]:
    """What the numbers of a metric are made of, where it tells: of a detector ``F1``, ``curves`` and ``confusion``."""
    found: dict[str, Any] = metric.details() if hasattr(metric, "details") else {}
    return found


def all_of(
    metric: Metric, file_names: Callable[[Sequence[int | str]], Sequence[str]], *, draws: int, seed: int
) -> dict[str, Any]:
    """What stands beside a metric's numbers: those of each image, what they are made of, and intervals.

    Args:
        metric: after ``evaluate``.
        file_names: see ``per_image``.
        draws: for the intervals; 0: none.
        seed: of the draws.
    """
    rows = per_image(metric, file_names)
    known = intervals(metric, count=draws, seed=seed)
    return {
        **({"per_image": rows} if rows else {}),
        **details(metric),
        **({"intervals": known} if known else {}),
    }


def of_head(numbers: dict[str, Any], prefix: str) -> dict[str, Any]:
    """A head's own among the numbers of an evaluation, without what their names begin with (``DenseModel.prefix``)."""
    own = {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}
    losses = {n.removeprefix(prefix): v for n, v in numbers.get("losses", {}).items() if n.startswith(prefix)}
    of_losses = {"loss": sum(losses.values()), "losses": losses} if losses else {}
    return {**own, **of_losses, **({"skipped": numbers["skipped"]} if "skipped" in numbers else {})}


def write_pictures(folder: Path, numbers: dict[str, Any], names: Sequence[str], prefix: str = "") -> list[Path]:
    """Draw what can be drawn of an evaluation.

    Args:
        folder: gets ``confusion.png``, and of a detector ``precision_recall.png``.
        numbers: what ``evaluate`` gave, with ``details``.
        names: of the classes. A detector's confusion has a row for what was found where nothing is, and a column for
            what was not found.
        prefix: of the files' names.
    """
    pictures = {}
    if "confusion" in numbers:
        from densekit.show.drawing_masks import draw_confusion

        nothing = [NOTHING] * (len(numbers["confusion"]) - len(names))
        pictures["confusion"] = draw_confusion(numbers["confusion"], [*names, *nothing])
    if "curves" in numbers:
        from densekit.show.curves import draw_precision

        pictures["precision_recall"] = draw_precision(numbers["curves"]["recall"], numbers["curves"]["precision"])
    for name, picture in pictures.items():
        write_picture(folder / f"{prefix}{name}.png", picture)
    return [folder / f"{prefix}{name}.png" for name in pictures]
