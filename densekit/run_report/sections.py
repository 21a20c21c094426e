"""The sections of the report, each the HTML of one thing that it tells."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from densekit.metrics import MAIN_METRIC
from densekit.metrics.calibration import Judged, calibration_error, of_class, reliability
from densekit.metrics.coco_resampled import CocoResampler
from densekit.run_report.story import Story
from densekit.show import svg
from densekit.show.report import NOTHING, tables

MOST_CLASSES = 30
"""Classes of a confusion matrix that is shown as one; of more, the commonest confusions."""

_UNIT = (0.0, 1.0)
_KINDS = {
    "Cls": "another class, in the right place",
    "Loc": "the right class, in the wrong place (IoU 0.1 to 0.5)",
    "Both": "another class, in the wrong place",
    "Dupe": "found twice",
    "Bkg": "where nothing is",
    "Miss": "not found at all",
}


def lead(story: Story) -> list[str]:
    """The result in a sentence, and the worst class with what is wrong with it."""
    main = MAIN_METRIC[story.run.model.task]
    value, between = story.numbers.get(main), story.numbers["intervals"].get(main)
    lines = [f"{main} {value:.3f}" if value is not None else f"{main} is not defined"]
    if value is not None and between is not None:
        lines[0] += f", 95 % between {between[0]:.3f} and {between[1]:.3f} ({story.numbers['images']} images)"
    rate = _rate(story)
    known = {name: row[rate] for name, row in story.numbers["per_class"].items() if row[rate] is not None}
    if len(known) > 1:
        worst = min(known, key=lambda name: known[name])
        lines.append(f"The worst class is {worst} ({rate} {known[worst]:.3f}){_why(story, worst)}.")
    return lines


def _rate(story: Story) -> str:
    """The first number of a class."""
    return str(next(iter(next(iter(story.numbers["per_class"].values())))))


def _why(story: Story, worst: str) -> str:
    """What becomes of the objects of a class."""
    if "confusion" not in story.numbers:
        return ""
    names = [*story.run.data.classes.names, "nothing"]
    at = names.index(worst)
    row = np.array(story.numbers["confusion"][at], np.float64)
    if not row.sum():
        return ""
    others = [(share, names[j]) for j, share in enumerate(row / row.sum()) if j != at and share >= 0.01]
    words = [
        f"{100 * share:.0f} % are missed" if name == "nothing" else f"{100 * share:.0f} % are taken for {name}"
        for share, name in sorted(others, reverse=True)[:2]
    ]
    extra = story.numbers["confusion"][len(names) - 1][at] if len(story.numbers["confusion"]) == len(names) else 0
    words += [f"{extra} boxes of it lie where nothing is"] if extra else []
    return f": {', '.join(words)}" if words else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table of texts and numbers."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    lines = ["".join(f"<td>{html.escape(_text(cell))}</td>" for cell in row) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def items(lines: Sequence[str]) -> str:
    """A list of texts."""
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _text(cell: object) -> str:
    return f"{cell:.4f}" if isinstance(cell, float) else str(cell)


def numbers(story: Story) -> str:
    """All numbers of the evaluation with their intervals."""
    columns, rows = tables(story.run.model.task, story.numbers)[0][1:]
    note = "Intervals hold 95 % of the values on a thousand draws of these images."
    return f'<p class="soft">{note}</p>{table(columns, rows)}'


def curves(story: Story) -> str:
    """Losses, numbers of the evaluations and the learning rate over the steps."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in story.lines:
        for name, value in line.items():
            if name not in ("step", "kind") and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(f"{line['kind']} {name}", []).append((line["step"], value))
    losses = {
        n: p
        for n, p in found.items()
        if n == "val loss" or (n.startswith("train ") and n.split()[1] not in ("lr", "norm"))
    }
    values = {
        n: p for n, p in found.items() if n.startswith("val ") and n not in losses and all(0 <= v <= 1 for _, v in p)
    }
    panels = [losses, dict(list(values.items())[:8]), {n: p for n, p in found.items() if n == "train lr"}]
    return _side_by_side([svg.chart(panel, across="step") for panel in panels])


def classes(story: Story) -> str:
    """A bar a class with its interval, and all numbers of the classes."""
    rate = _rate(story)
    between = story.numbers["intervals"].get("per_class", {})
    rows = [(name, row[rate], between.get(name, {}).get(rate)) for name, row in story.numbers["per_class"].items()]
    ordered = sorted(rows, key=lambda row: math.inf if row[1] is None else row[1])
    of_classes = next(t for t in tables(story.run.model.task, story.numbers) if t[0] == "per class")
    return f"<p>{html.escape(rate)}, the worst first.</p>{svg.bars(ordered)}{table(*of_classes[1:])}"


def precision(story: Story) -> str:
    """Precision over recall, and F1 over the score, of each class."""
    if "curves" not in story.numbers or not isinstance(story.run.resampler, CocoResampler):
        return ""
    drawn = story.numbers["curves"]
    over_recall = {
        name: list(zip(drawn["recall"], values)) for name, values in drawn["precision"].items() if values is not None
    }
    over_score = {}
    for name, matched in zip(story.run.data.classes.names, story.run.resampler.boxes()):
        objects = int(matched.objects.sum())
        if objects:
            over_score[name] = _f1(of_class(matched), objects)
    charts = [
        svg.chart(over_recall, across="recall (precision upwards, IoU 0.5)", ranges=(_UNIT, _UNIT)),
        svg.chart(over_score, across="score that boxes must have (F1 upwards)", ranges=(_UNIT, _UNIT)),
    ]
    cuts = [
        (name, cut.score, cut.precision, cut.recall)
        for name, cut in zip(story.run.data.classes.names, story.calibrated.cuts)
    ]
    head = "<p>Calibrated scores of the best F1, which tools/calibrate.py puts into the checkpoint:</p>"
    return _side_by_side(charts) + head + table(("class", "score", "precision", "recall"), cuts)


def _f1(judged: Judged, objects: int) -> list[tuple[float, float]]:
    hits = np.concatenate(([0], judged.right.cumsum()))
    cuts = np.arange(1, 100) / 100
    kept = np.searchsorted(-judged.scores, -cuts, side="right")
    return list(zip(cuts.tolist(), (2 * hits[kept] / np.maximum(kept + objects, 1)).tolist()))


def confused(story: Story, listed: Callable[[Story, Sequence[int | str]], str]) -> str:
    """What is taken for what; cells open the images behind them."""
    matrix = story.numbers.get("confusion")
    if matrix is None:
        return ""
    names = [*story.run.data.classes.names, *[NOTHING] * (len(matrix) - len(story.run.data.classes))]

    def behind(i: int, j: int) -> str:
        images = story.behind.get((i, j), [])
        return listed(story, images) if images and i != j else ""

    if len(names) <= MOST_CLASSES:
        note = "Percent of each true class. Cells open the images with most of it."
        return f'<p class="soft">{note}</p>{svg.heat(matrix, names, names, behind)}'
    counts = np.array(matrix)
    np.fill_diagonal(counts, 0)
    most = np.argsort(-counts, axis=None, kind="stable")[:MOST_CLASSES]
    pairs = [divmod(int(at), len(names)) for at in most if counts.flat[at]]
    return table(("true", "predicted", "count"), [(names[i], names[j], int(counts[i, j])) for i, j in pairs])


def sizes(story: Story) -> str:
    """AP of small, medium and large objects, and of images with few and many."""
    if not story.crowding:
        return ""
    known = story.numbers["intervals"]
    rows = [(name, story.numbers.get(f"AP_{name}"), known.get(f"AP_{name}")) for name in ("small", "medium", "large")]
    crowding = [(name, value, None) for name, value in story.crowding.items()]
    note = "AP by the area of the object (below 32 x 32 pixels, to 96 x 96, above), then by how crowded the image is."
    return f'<p class="soft">{note}</p>{svg.bars(rows)}<p></p>{svg.bars(crowding)}'


def kinds(story: Story) -> str:
    """The kinds of errors of TIDE, and what AP50 would gain without each."""
    if not story.tide:
        return ""
    gains, counts = story.tide["delta_ap"], story.tide["counts"]
    rows = [(f"{words} ({counts[kind]})", gains[kind], None) for kind, words in _KINDS.items()]
    most = max([0.01, *(gains[kind] for kind in _KINDS)])
    note = "What AP50 would gain if one kind of error were mended, and how many there are (TIDE, Bolya et al. 2020)."
    return f'<p class="soft">{note}</p>{svg.bars(rows, most=most)}'


def calibration(story: Story) -> str:
    """How often scores are right, as they are and calibrated."""
    fitted = story.calibrated.fitted
    drawn = {
        f"{name} (error {calibration_error(judged):.3f})": [
            (row["avg_confidence"], row["avg_accuracy"]) for row in reliability(judged) if row["count"]
        ]
        for name, judged in (("as they are", fitted.before), ("calibrated, held out", fitted.after))
        if len(judged.scores)
    }
    note = "Share that is right (upwards) over the score, in ten bins; on the dashed line scores mean what they say."
    picture = svg.chart(drawn, across="score", ranges=(_UNIT, _UNIT), ideal=((0, 0), (1, 1)))
    return f'<p class="soft">{note}</p>{picture}' if picture else ""


def timing(story: Story) -> str:
    """Images a second and memory over the steps."""
    panels: list[dict[str, Any]] = [
        {words: [(line["step"], line[name]) for line in story.timing if isinstance(line.get(name), int | float)]}
        for name, words in (("images_per_s", "images/s"), ("memory_gib", "GiB of memory"))
    ]
    return _side_by_side([svg.chart(panel, across="step") for panel in panels])


def _side_by_side(charts: Sequence[str]) -> str:
    shown = "".join(f"<div>{chart}</div>" for chart in charts if chart)
    return f'<div class="two">{shown}</div>' if shown else ""
