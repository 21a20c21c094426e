"""Curves as pictures: the numbers of a run over its steps, and precision over recall."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from densekit.show.drawing import Image, colours, drawable, write_picture

Points = list[tuple[float, float]]

_WIDTH, _HEIGHT, _MARGIN = 640, 360, 60
_FONT, _GREY = cv2.FONT_HERSHEY_SIMPLEX, (90, 90, 90)
_MOST = 8  # curves in a panel
_OF_A_PART = re.compile(r"AR\d|_(small|medium|large)$")  # COCO's other numbers come before these
_CLASSES = 79  # with their mean, ten panels


def draw_curves(lines: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write a panel for the losses of training and validation, one for the validation's numbers, one for the rate.

    Args:
        lines: of ``metrics.jsonl``: ``kind``, ``step`` and numbers.
        path: a .png; nothing is written where there are no numbers.
    """
    found: defaultdict[str, Points] = defaultdict(list)
    for line in lines:
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                found[f"{line['kind']} {name}"].append((float(line["step"]), float(value)))
    losses = {n: p for n, p in found.items() if n == "val loss" or _is_train_loss(n)}
    names = [n for n, p in found.items() if n.startswith("val ") and n not in losses and _is_share(p)]
    numbers = {n: found[n] for n in sorted(names, key=lambda n: _OF_A_PART.search(n) is not None)}
    rate = {n: p for n, p in found.items() if n == "train lr"}
    panels = [panel(title, curves) for title, curves in (("loss", losses), ("validation", numbers),
                                                        ("learning rate", rate)) if curves]  # fmt: skip
    if panels:
        write_picture(path, np.concatenate(panels))


def _is_train_loss(name: str) -> bool:
    return name.startswith("train ") and name not in ("train lr", "train norm")


def _is_share(points: Points) -> bool:
    """Whether a number is one of 0 to 1, as AP, mIoU and accuracy are, and not a count."""
    return all(0 <= value <= 1 for _, value in points)


def draw_precision(recall: Sequence[float], precision: Mapping[str, Sequence[float] | None]) -> Image:
    """Picture of precision over recall at an IoU of 0.5: the mean, and a curve a class.

    Args:
        recall: from 0 to 1.
        precision: by class, at each recall; None where the class has no object. Of very many classes the first are
            drawn.

    Returns:
        RGB [H, W, 3].
    """
    known = {name: list(values) for name, values in precision.items() if values is not None}
    each = dict(list(known.items())[:_CLASSES])
    if len(known) > 1:
        each = {"mean": [sum(values) / len(known) for values in zip(*known.values())], **each}
    points = {name: list(zip(recall, values)) for name, values in zip(drawable(list(each)), each.values())}
    groups = [list(points.items())[i : i + _MOST] for i in range(0, len(points), _MOST)] or [[]]
    title = "precision over recall at IoU 0.5" + (f", the first {_CLASSES} classes" if len(known) > _CLASSES else "")
    unit = (0.0, 1.0)
    return np.concatenate([panel(title, dict(group), across="recall", ranges=(unit, unit)) for group in groups])


def panel(
    title: str,
    curves: Mapping[str, Points],
    *,
    across: str = "step",
    ranges: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> Image:
    """Axes, a curve and a name each.

    Args:
        title: above.
        curves: points by name; beside a name stands the last value.
        across: what the horizontal axis counts.
        ranges: of both axes; None: what the points reach.
    """
    picture = np.full((_HEIGHT, _WIDTH + 180, 3), 255, np.uint8)
    chosen = dict(list(curves.items())[:_MOST])
    (left, right), (low, high) = ranges or [
        _range(v[axis] for points in chosen.values() for v in points) for axis in (0, 1)
    ]
    _axes(picture, title, across, (left, right), (low, high))
    for number, (colour, (name, points)) in enumerate(zip(colours(len(chosen)), chosen.items())):
        x = [(_WIDTH - _MARGIN - 10) * (step - left) / (right - left) + _MARGIN for step, _ in points]
        y = [_HEIGHT - 40 - (_HEIGHT - 70) * (value - low) / (high - low) for _, value in points]
        line = np.stack([x, y], axis=1).round().astype(np.int32)
        cv2.polylines(picture, [line[:, None]], False, colour, 1, cv2.LINE_AA)
        for at in line[:: max(1, len(line) // 40)].tolist():
            cv2.circle(picture, at, 2, colour, -1, cv2.LINE_AA)
        words = f"{name} {points[-1][1]:.4g}" if across == "step" else name
        _write(picture, words, (_WIDTH, 36 + 18 * number), tuple(int(0.7 * c) for c in colour))
    return picture


def _axes(picture: Image, title: str, across: str, steps: tuple[float, float], values: tuple[float, float]) -> None:
    cv2.rectangle(picture, (_MARGIN, 30), (_WIDTH - 10, _HEIGHT - 40), (200, 200, 200), 1)
    _write(picture, title, (_MARGIN, 20), (0, 0, 0))
    for part in (0.0, 0.5, 1.0):
        height = round(_HEIGHT - 40 - (_HEIGHT - 70) * part)
        _write(picture, f"{values[0] + part * (values[1] - values[0]):.3g}", (4, height + 4), _GREY)
        at = round((_WIDTH - _MARGIN - 10) * part) + _MARGIN
        step = steps[0] + part * (steps[1] - steps[0])
        _write(picture, f"{step:.0f}" if across == "step" else f"{step:g}", (at - 10, _HEIGHT - 20), _GREY)
    _write(picture, across, (_WIDTH // 2 + 40, _HEIGHT - 20), _GREY)


def _range(values: Iterable[float]) -> tuple[float, float]:
    known = list(values)
    low, high = min(known), max(known)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _write(picture: Image, text: str, at: Sequence[int], colour: tuple[int, ...]) -> None:
    cv2.putText(picture, text, (at[0], at[1]), _FONT, 0.42, colour, 1, cv2.LINE_AA)
