"""A proposal of classes for what occurs in masks: names from a file beside them, or made up for values and colours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densekit.data.formats.masks.files import Colour, read_colour_table
from densekit.data.formats.masks.occurring import Occurring
from densekit.files import read_list
from densekit.first_config.wishes import Wishes
from densekit.types import DensekitError

_NAMED = 8  # values that are told
_SOFT, _FEW = 8, 0.4  # values between 0 and 255, and the part of all pixels, that soft edges have
_TABLES = ("class", "colo", "label", "legend", "palette")
_LISTS = ("classes", "labels", "names")


@dataclasses.dataclass(frozen=True, slots=True)
class Coding:
    """What the values or colours of masks mean.

    Attributes:
        names: of the classes.
        options: of the data set ``masks``.
        lines: on what occurs and what is proposed.
    """

    names: list[str]
    options: dict[str, Any]
    lines: list[str]


def coding_of(seen: Occurring, beside: Sequence[Path], wishes: Wishes) -> Coding:
    """Propose classes.

    Args:
        seen: what occurs.
        beside: text files near the masks; one of them may name values or colours.
        wishes: names of classes in the order of values or colours, and what is ignored.

    Raises:
        DensekitError: as many names as there are values are needed, or what is ignored does not occur so.
    """
    lines = [_told(seen)]
    if seen.layers:
        names = _names(list(range(len(seen.pixels))), wishes, None)
        return Coding(names, {"classes": names, "multi_label": True}, lines)
    wrong = [i for i in wishes.ignore if isinstance(i, tuple) != seen.coloured]
    if wrong:
        kind = "colours, such as 0,0,0" if seen.coloured else "values, such as 255"
        raise DensekitError(f"--ignore {wrong[0]}: these masks are told by {kind}")
    if seen.coloured:
        return _by_colour(seen, beside, wishes, lines)
    return _by_value(seen, beside, wishes, lines)


def _by_value(seen: Occurring, beside: Sequence[Path], wishes: Wishes, lines: list[str]) -> Coding:
    values = [v for v in seen.pixels if isinstance(v, int) and v not in wishes.ignore]
    if _has_soft_edges(seen):
        raise DensekitError(
            f"the masks hold {len(values)} values, and 0 and 255 cover most: soft edges, or traces of a JPEG; set what "
            f"is above 127 to 255 and the rest to 0, and save them as PNG"
        )
    declared = _name_list(beside, values)
    names = _names(values, wishes, None)
    if wishes.classes is None and declared is not None:
        path, given = declared
        lines.append(f"names of the classes from {path}")
        values = [0, 255] if values == [0, 255] else list(range(len(given)))
        names = given
    elif wishes.classes is None:
        lines.append(_proposed(names))
    if len(values) < 2:
        raise DensekitError(
            f"the masks hold the value {values[0] if values else 'none'} alone, so there is nothing to tell apart; "
            f"draw the objects in another value"
        )
    if 255 in values and values != [0, 255]:
        lines.append(
            "value 255 is taken as a class, as any other; --ignore 255 where it stands for what is not looked at"
        )
    ignore = [int(v) for v in wishes.ignore if isinstance(v, int)]
    return Coding(names, {"classes": dict(zip(names, values)), "ignore": ignore}, lines)


def _has_soft_edges(seen: Occurring) -> bool:
    """Whether many values up to the brightest lie between 0 and 255, on few pixels."""
    between = {value: count for value, count in seen.pixels.items() if value not in (0, 255)}
    few = sum(between.values()) < _FEW * sum(seen.pixels.values())
    bright = any(isinstance(value, int) and 127 < value < 255 for value in between)
    return {0, 255} <= set(seen.pixels) and len(between) >= _SOFT and bright and few


def _by_colour(seen: Occurring, beside: Sequence[Path], wishes: Wishes, lines: list[str]) -> Coding:
    ignored = [i for i in wishes.ignore if isinstance(i, tuple)]
    colours = [c for c in seen.pixels if isinstance(c, tuple) and c not in ignored]
    table = None if wishes.classes is not None else _table(beside, colours)
    if table is not None:
        path, given = table
        lines.append(f"names of the colours from {path}")
        found = {name: given[name] for name in given if given[name] not in ignored}
    else:
        found = dict(zip(_names(colours, wishes, "colour"), colours))
        if wishes.classes is None:
            lines.append(_proposed(list(found)))
    if len(found) < 2:
        raise DensekitError(f"the masks hold {len(found)} colour alone, so there is nothing to tell apart")
    options: dict[str, Any] = {"colors": {name: list(c) for name, c in found.items()}}
    if ignored:
        options["ignore_colors"] = [list(c) for c in ignored]
    return Coding(list(found), options, lines)


def _names(keys: Sequence[int | Colour], wishes: Wishes, kind: str | None) -> list[str]:
    """Names that the user gave, else made up of the values or colours."""
    if wishes.classes is not None:
        if len(wishes.classes) != len(keys):
            raise DensekitError(
                f"--classes: {len(wishes.classes)} names for {len(keys)} {kind or 'value'}s of the masks "
                f"({', '.join(map(_word, keys[:_NAMED]))}); give one for each, in this order"
            )
        return list(wishes.classes)
    if list(keys) == [0, 255]:
        return ["background", "foreground"]
    return ["background" if key in (0, (0, 0, 0)) and len(keys) > 1 else f"class_{_word(key)}" for key in keys]


def _word(key: int | Colour) -> str:
    return str(key) if isinstance(key, int) else "_".join(map(str, key))


def _proposed(names: Sequence[str]) -> str:
    some = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    return f"names of the classes are made up: {some}; give --classes in this order, or change them in the config"


def _told(seen: Occurring) -> str:
    total = sum(seen.pixels.values()) or 1
    some = [
        f"{_word(key).replace('_', ',')} ({count / total:.1%})" for key, count in list(seen.pixels.items())[:_NAMED]
    ]
    more = f" and {len(seen.pixels) - _NAMED} more" if len(seen.pixels) > _NAMED else ""
    what = "layers" if seen.layers else "colours" if seen.coloured else "values"
    return f"masks: {what} {', '.join(some)}{more}, in {seen.files} files that were looked at"


def _name_list(beside: Sequence[Path], values: Sequence[int]) -> tuple[Path, list[str]] | None:
    """A file with a name for each value, one a line."""
    for path in beside:
        if path.suffix == ".csv" or not any(word in path.stem.lower() for word in _LISTS):
            continue
        try:
            names = read_list(path, "a name a line")
        except DensekitError:
            continue
        fits = len(names) == 2 if list(values) == [0, 255] else bool(values) and max(values) < len(names)
        if fits and len(set(names)) == len(names) and not any("," in name or ":" in name for name in names):
            return path, names
    return None


def _table(beside: Sequence[Path], colours: Sequence[Colour]) -> tuple[Path, Mapping[str, Colour]] | None:
    """A file with a name for each colour, ``name,red,green,blue`` a line or as CVAT writes it."""
    for path in beside:
        if not any(word in path.stem.lower() for word in _TABLES):
            continue
        try:
            table = _of_cvat(path) or read_colour_table(path)
        except DensekitError:
            continue
        known = list(table.values())
        if table and set(colours) <= set(known) and len(set(known)) == len(known):
            return path, table
    return None


def _of_cvat(path: Path) -> dict[str, Colour]:
    """CVAT's ``labelmap.txt``: ``name:red,green,blue:parts:actions`` a line."""
    table: dict[str, Colour] = {}
    for line in read_list(path, "name:red,green,blue a line"):
        name, *rest = line.split(":")
        values = rest[0].split(",") if rest else []
        if len(values) != 3 or not all(v.strip().isdecimal() and int(v) < 256 for v in values):
            return {}
        table[name] = (int(values[0]), int(values[1]), int(values[2]))
    return table
