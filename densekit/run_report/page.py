"""The report as one HTML page that needs no other file, no server and no network."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from densekit import build
from densekit.config import dump
from densekit.errors import DensekitError
from densekit.files import printable, write_text
from densekit.run_report import sections, store
from densekit.run_report.document import document
from densekit.run_report.story import Story

SUSPECTS = 50
"""Labels that are probably wrong and are listed; the JSON file has all."""


def write_report(story: Story, path: Path) -> None:
    """Write the page whole or not at all."""
    write_text(path, page(story))


def page(story: Story) -> str:
    """The page's HTML; every text that comes from the data is escaped."""
    parts = [(name, text) for name, text in _parts(story) if text]
    body = "".join(f'<h2 id="s{i}">{html.escape(name)}</h2>{text}' for i, (name, text) in enumerate(parts))
    contents = "".join(f'<a href="#s{i}">{html.escape(name)}</a>' for i, (name, _) in enumerate(parts))
    lead = "".join(f'<p class="lead">{html.escape(line)}</p>' for line in sections.lead(story))
    return document(f"Report of {printable(story.run.path.parent)}", f"{lead}<nav>{contents}</nav>{body}")


def _parts(story: Story) -> list[tuple[str, str]]:
    return [
        ("What was trained", _facts(story)),
        ("Stored features", _stores(story)),
        ("Numbers", sections.numbers(story)),
        ("Curves", sections.curves(story)),
        ("Classes", sections.classes(story)),
        ("Precision and recall", sections.precision(story)),
        ("What is taken for what", sections.confused(story, _file_list)),
        ("Sizes and crowding", sections.sizes(story)),
        ("Kinds of errors", sections.kinds(story)),
        ("Whether scores mean what they say", sections.calibration(story)),
        ("The worst images", _figures(story, "worst")),
        ("Images at random", _figures(story, "random")),
        ("Labels that are probably wrong", _suspects(story)),
        ("What the doctor says of the data", sections.items(story.doctor)),
        ("Time and memory", sections.timing(story)),
    ]


def _facts(story: Story) -> str:
    run, made = story.run, story.made
    config = run.config
    heads = " + ".join(part.name for part in config.model.heads.values())
    rows = [
        ("checkpoint", f"{printable(run.path)}, SHA-256 {run.digest}"),
        (
            "model",
            f"{config.model.backbone.name} + {heads}, {sum(p.numel() for p in run.model.parameters()):,} parameters",
        ),
        ("measured on", f"{story.split}: {len(run.data)} images, {len(run.data.classes)} classes"),
        *(
            (name, str(made[name]))
            for name in ("command", "time", "device", "ranks", "step", "seconds")
            if name in made
        ),
        ("versions", ", ".join(f"{name} {made[name]}" for name in ("densekit", "torch", "python") if name in made)),
    ]
    config_text = f"<details><summary>config</summary><pre>{html.escape(dump(config))}</pre></details>"
    return f"{sections.table(('', ''), rows)}{config_text}"


def _stores(story: Story) -> str:
    """What the manifests say of the features that the run learned from, where these are still there."""
    data = story.run.config.data
    parts = [part for part in (data.train, data.val, data.test) if part is not None and part.name == "features"]
    told = []
    for path in dict.fromkeys(Path(part.options["store"]) for part in parts):
        try:
            told.append(f"<h3>{html.escape(printable(path))}</h3>{store.section(path)}")
        except DensekitError as error:
            told.append(sections.items([str(error)]))
    return "".join(told)


def _figures(story: Story, group: str) -> str:
    shown = [picture for picture in story.pictures if picture.group == group]
    names = build.file_names(story.run.data, [picture.image for picture in shown])
    figures = []
    for name, picture in zip(names, shown):
        data = base64.b64encode(picture.jpeg).decode()
        words = f"{printable(name)}{': ' * bool(picture.words)}{picture.words}"
        figures.append(
            f'<figure><img loading="lazy" alt="truth beside prediction" src="data:image/jpeg;base64,{data}">'
            f"<figcaption>{html.escape(words)}</figcaption></figure>"
        )
    return "".join(figures)


def _file_list(story: Story, images: Sequence[int | str]) -> str:
    names = [printable(Path(name).name) for name in build.file_names(story.run.data, images)]
    return f"<ul>{''.join(f'<li>{html.escape(name)}</li>' for name in names)}</ul>"


def _suspects(story: Story) -> str:
    if not story.suspects:
        return ""
    shown, names = story.suspects[:SUSPECTS], story.run.data.classes.names
    files = build.file_names(story.run.data, [one.image for one in shown])
    rows = []
    for file, one in zip(files, shown):
        what = {
            "missing": f"{names[one.label]} is not annotated",
            "class": f"annotated as {names[one.was or 0]}, probably {names[one.label]}",
            "not found": f"{names[one.label]} that no box covers",
        }[one.kind]
        rows.append((printable(Path(file).name), what, f"{one.score:.2f}", ", ".join(f"{v:.0f}" for v in one.box)))
    head = f"<p>{len(story.suspects)} in all, the most probable first; label_errors.json has them all.</p>"
    return head + sections.table(("file", "what", "score", "box (x, y, width, height)"), rows)
