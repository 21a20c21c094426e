"""List every part that a config can name, with its options: backbones, heads, data sets, samplings, transforms.

    python tools/list_parts.py
    python tools/list_parts.py --markdown > parts.md

The Markdown form is what README's tables are made of; it also has the sizes of all our own backbones.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import types
import typing
from collections.abc import Sequence
from typing import Any

import cv2

from densekit.console import run

GIVEN = {
    "Backbones": {"in_channels"},
    "Heads": {"num_classes"},
    "Samplings": set(),
    "Data sets": {"transforms", "seed", "training", "channels", "max_pixels"},
}
"""What the program sets, not the user's options of a part."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    args = parser.parse_args(argv)

    from densekit.backbones.describe import family_table
    from densekit.data.transforms.pipeline import transform_options
    from densekit.registry import BACKBONES, DATASETS, HEADS, SAMPLINGS

    parts = {"Backbones": BACKBONES, "Heads": HEADS, "Data sets": DATASETS, "Samplings": SAMPLINGS}
    for title, registry in parts.items():
        by_options: dict[str, list[str]] = {}
        for name in registry.names():
            own = {n: p for n, p in registry.options(name).items() if n not in GIVEN[title]}
            by_options.setdefault(options_text(own), []).append(name)
        rows = [[", ".join(names), options] for options, names in by_options.items()]
        print_rows(title, ["name", "options"], rows, args.markdown)
    rows = [[name, options_text(options)] for name, options in transform_options().items()]
    print_rows("Transforms", ["name", "options"], rows, args.markdown)
    columns = ["backbone", "input", "parameters (million)", "multiply-adds (billion)", "levels: channels / stride"]
    print_rows("Our own backbones", columns, family_table(), args.markdown)
    return 0


def options_text(options: dict[str, inspect.Parameter]) -> str:
    texts = []
    for name, parameter in options.items():
        needed = parameter.default is inspect.Parameter.empty
        default = "" if needed else f" = {value_text(parameter.default)}"
        texts.append(f"{name}: {type_text(parameter.annotation)}{default}")
    return "; ".join(texts)


def value_text(value: object) -> str:
    """A default, as YAML writes it."""
    return json.dumps(value) if isinstance(value, bool | int | float | str | tuple | list | None) else str(value)


def type_text(annotation: Any) -> str:
    if isinstance(annotation, str):
        return text_of_others(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(arguments[0])
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(type_text, arguments))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(type_text, arguments))}]"
    return {types.NoneType: "null", ...: "..."}.get(annotation) or annotation.__name__


def text_of_others(annotation: str) -> str:
    """A type as albumentations writes it: OpenCV's names become their numbers, choices stand side by side."""
    text = re.sub(r"cv2\.(\w+)", lambda found: str(getattr(cv2, found[1])), annotation)
    text = re.sub(r"Literal\[([^\]]*)\]", lambda found: found[1].replace("'", "").replace(", ", " | "), text)
    return text.replace("None", "null").replace("TransformsSeqType", "list of transforms")


def print_rows(title: str, columns: list[str], rows: list[list[str]], markdown: bool) -> None:
    if markdown:
        print(f"### {title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
        for row in rows:
            print("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
        print()
        return
    print(f"{title}\n{'-' * len(title)}")
    if len(columns) == 2:
        for names, options in rows:
            print(names + "".join(f"\n    {option}" for option in options.split("; ") if option) + "\n")
        return
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


if __name__ == "__main__":
    run(main)
