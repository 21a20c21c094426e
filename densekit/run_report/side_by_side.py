"""Runs side by side: what differs in their configs, their numbers, their curves."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densekit.comparison import check_alike, chosen_number, compare, table, verdict
from densekit.files import printable, write_text
from densekit.metrics import MAIN_METRIC
from densekit.run_report import sections
from densekit.run_report.document import document
from densekit.run_report.story import DRAWS, Story
from densekit.show import svg


def write_side_by_side(stories: Sequence[Story], path: Path) -> None:
    """Write one page on several runs, each compared with the first.

    Raises:
        DensekitError: they were not measured on the same images.
    """
    check_alike([story.run for story in stories])
    names = _names(stories)
    parts = [
        ("Numbers", _numbers(stories, names)),
        ("What differs in the configs", _configs(stories, names)),
        ("Curves", _curves(stories, names)),
        *(
            (f"{name} (B) against {names[0]} (A)", _against(stories[0], story))
            for name, story in zip(names[1:], stories[1:])
        ),
    ]
    body = "".join(f"<h2>{html.escape(title)}</h2>{text}" for title, text in parts)
    write_text(path, document("Runs side by side", body))


def _names(stories: Sequence[Story]) -> list[str]:
    """Of the folders; the whole paths where these are the same."""
    short = [printable(story.run.path.parent.name) for story in stories]
    return short if len(set(short)) == len(short) else [printable(story.run.path) for story in stories]


def _numbers(stories: Sequence[Story], names: Sequence[str]) -> str:
    main = MAIN_METRIC[stories[0].run.model.task]
    bars = [(name, s.numbers.get(main), s.numbers["intervals"].get(main)) for name, s in zip(names, stories)]
    known = [n for n, v in stories[0].numbers.items() if isinstance(v, int | float) and not isinstance(v, bool)]
    rows = [[number, *("-" if (v := s.numbers.get(number)) is None else v for s in stories)] for number in known]
    return f"<p>{html.escape(main)}</p>{svg.bars(bars)}{sections.table(('number', *names), rows)}"


def _against(first: Story, second: Story) -> str:
    differences = compare([first.run], [second.run], count=DRAWS, seed=0)
    said = verdict(differences, chosen_number(first.run))
    return (
        f"<p>{html.escape(said)}</p>{sections.table(('number', 'A', 'B', 'B - A', '95 % between'), table(differences))}"
    )


def _configs(stories: Sequence[Story], names: Sequence[str]) -> str:
    flat = [_flat(story.run.config.model_dump(mode="json")) for story in stories]
    keys = dict.fromkeys(key for tree in flat for key in tree)
    rows = [
        [key, *(str(tree.get(key, "-")) for tree in flat)] for key in keys if len({str(t.get(key)) for t in flat}) > 1
    ]
    return sections.table(("key", *names), rows) if rows else "<p>Nothing.</p>"


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {k: v for key, value in tree.items() for k, v in _flat(value, f"{path}{key}.").items()}
    return {path.rstrip("."): tree}


def _curves(stories: Sequence[Story], names: Sequence[str]) -> str:
    main = MAIN_METRIC[stories[0].run.model.task]
    charts = []
    for kind, number in (("val", main), ("val", "loss"), ("train", "loss")):
        drawn = {}
        for name, story in zip(names, stories):
            lines = [
                line for line in story.lines if line.get("kind") == kind and isinstance(line.get(number), int | float)
            ]
            drawn[name] = [(line["step"], line[number]) for line in lines]
        charts.append(f"<p>{kind} {number}</p>{svg.chart(drawn, across='step')}" if any(drawn.values()) else "")
    return "".join(charts)
