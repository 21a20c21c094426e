"""The numbers of a run over its steps, as a picture."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from densekit.show.drawing import Image, colours, write_picture

Points = list[tuple[float, float]]

_WIDTH, _HEIGHT, _MARGIN = 640, 360, 60
_FONT, _GREY = cv2.FONT_HERSHEY_SIMPLEX, (90, 90, 90)
_MOST = 8  # curves in a panel
_OF_A_PART = re.compile(r"AR\d|_(small|medium|large)$")  # COCO's other numbers come before these


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
    panels = [_panel(title, curves) for title, curves in (("loss", losses), ("validation", numbers),
                                                         ("learning rate", rate)) if curves]  # fmt: skip
    if panels:
        write_picture(path, np.concatenate(panels))


def _is_train_loss(name: str) -> bool:
    return name.startswith("train ") and name not in ("train lr", "train norm")


def _is_share(points: Points) -> bool:
    """Whether a number is one of 0 to 1, as AP, mIoU and accuracy are, and not a count."""
    return all(0 <= value <= 1 for _, value in points)


def _panel(title: str, curves: Mapping[str, Points]) -> Image:
    """Axes, a curve and a name each."""
    panel = np.full((_HEIGHT, _WIDTH + 180, 3), 255, np.uint8)
    chosen = dict(list(curves.items())[:_MOST])
    (left, right), (low, high) = (_range(v[axis] for points in chosen.values() for v in points) for axis in (0, 1))
    _axes(panel, title, (left, right), (low, high))
    for number, (colour, (name, points)) in enumerate(zip(colours(len(chosen)), chosen.items())):
        x = [(_WIDTH - _MARGIN - 10) * (step - left) / (right - left) + _MARGIN for step, _ in points]
        y = [_HEIGHT - 40 - (_HEIGHT - 70) * (value - low) / (high - low) for _, value in points]
        line = np.stack([x, y], axis=1).round().astype(np.int32)
        cv2.polylines(panel, [line[:, None]], False, colour, 1, cv2.LINE_AA)
        for at in line[:: max(1, len(line) // 40)].tolist():
            cv2.circle(panel, at, 2, colour, -1, cv2.LINE_AA)
        _write(panel, f"{name} {points[-1][1]:.4g}", (_WIDTH, 36 + 18 * number), tuple(int(0.7 * c) for c in colour))
    return panel


def _axes(panel: Image, title: str, steps: tuple[float, float], values: tuple[float, float]) -> None:
    cv2.rectangle(panel, (_MARGIN, 30), (_WIDTH - 10, _HEIGHT - 40), (200, 200, 200), 1)
    _write(panel, title, (_MARGIN, 20), (0, 0, 0))
    for part in (0.0, 0.5, 1.0):
        height = round(_HEIGHT - 40 - (_HEIGHT - 70) * part)
        _write(panel, f"{values[0] + part * (values[1] - values[0]):.3g}", (4, height + 4), _GREY)
        across = round((_WIDTH - _MARGIN - 10) * part) + _MARGIN
        _write(panel, f"{steps[0] + part * (steps[1] - steps[0]):.0f}", (across - 10, _HEIGHT - 20), _GREY)
    _write(panel, "step", (_WIDTH // 2 + 40, _HEIGHT - 20), _GREY)


def _range(values: Iterable[float]) -> tuple[float, float]:
    known = list(values)
    low, high = min(known), max(known)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _write(panel: Image, text: str, at: Sequence[int], colour: tuple[int, ...]) -> None:
    cv2.putText(panel, text, (at[0], at[1]), _FONT, 0.42, colour, 1, cv2.LINE_AA)
