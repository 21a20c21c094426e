"""Mask files: there, readable, of the image's size, with values and palettes that mean the same everywhere."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from densekit.data.images import MAX_PIXELS
from densekit.data.mask_files import MaskCode, read_colours, read_values
from densekit.doctor.pictures import Picture
from densekit.doctor.report import Defect
from densekit.doctor.sources import Split
from densekit.errors import DensekitError
from densekit.types import IGNORE

Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class MaskFacts:
    """What is known of a mask file.

    Attributes:
        path: the file.
        problem: code and message of what keeps it from being read, or None.
        size: (height, width).
        counts: pixels of each value (of each label where the values are colours or layers).
        palette: colour of each value that occurs, where it is a palette image.
    """

    path: Path
    problem: tuple[str, str] | None = None
    size: tuple[int, int] | None = None
    counts: dict[int, int] = dataclasses.field(default_factory=dict)
    palette: dict[int, Colour] | None = None


def look_at_mask(path: Path, code: MaskCode | None, max_pixels: int = MAX_PIXELS) -> MaskFacts:
    """Look at one mask file; whatever is wrong ends up in ``problem``."""
    labelled = code is not None and (code.colours is not None or code.layers)
    try:
        values = code.read(path, max_pixels) if labelled and code else read_values(path, max_pixels)
    except DensekitError as error:
        return MaskFacts(path, _problem(path, error, max_pixels, labelled))
    if values.ndim != 2 and not labelled:
        return MaskFacts(path, ("mask-unreadable", f"the array is {values.shape}, not [height, width]"))
    found, counts = np.unique(values, return_counts=True)
    size = (int(values.shape[-2]), int(values.shape[-1]))
    occurring = dict(zip((int(v) for v in found.tolist()), counts.tolist()))
    return MaskFacts(path, None, size, occurring, None if labelled else _palette(path, occurring))


def check_masks(split: Split, masks: Mapping[Path, MaskFacts], pictures: Mapping[Path, Picture]) -> Iterator[Defect]:
    """Whatever is wrong with a split's masks."""
    facts = [masks[item.mask] for item in split.items if item.mask is not None]
    binary = _binary_message(split, [f for f in facts if f.problem is None])
    if binary is not None:
        yield binary
    for item in split.items:
        mask = masks[item.mask] if item.mask is not None else None
        picture = pictures.get(item.path) if item.path is not None else None
        if mask is None:
            continue
        image = picture.path if picture is not None and picture.problem is None else None
        if mask.problem is not None:
            yield Defect(mask.problem[0], str(mask.path), mask.problem[1], image=image)
            continue
        if picture is not None and picture.size and mask.size not in (picture.size, picture.upright_size):
            message = f"is {_sides(mask.size)}, its image is {_sides(picture.size)} (width x height)"
            yield Defect("mask-size-differs", str(mask.path), message, image=image, other=mask.path)
        yield from _values(split, mask, image)
    yield from _palettes([f for f in facts if f.problem is None])


def _problem(path: Path, error: DensekitError, max_pixels: int, labelled: bool) -> tuple[str, str]:
    message = str(error).removeprefix(f"{path}: ").partition("; ")[0]
    try:
        read_values(path, max_pixels) if labelled and path.suffix.lower() == ".npy" else read_colours(path, max_pixels)
    except DensekitError:
        return "mask-unreadable", message
    return ("mask-value-unknown" if labelled else "mask-colours"), message


def _palette(path: Path, values: Mapping[int, int]) -> dict[int, Colour] | None:
    if path.suffix.lower() == ".npy":
        return None
    with Image.open(path) as image:
        flat = image.getpalette("RGB") if image.mode == "P" else None
    if flat is None:
        return None
    colours = [tuple(flat[i : i + 3]) for i in range(0, len(flat) - 2, 3)]
    return {v: colours[v] for v in values if v < len(colours)}  # type: ignore[misc]  # three numbers each


def _values(split: Split, mask: MaskFacts, image: Path | None) -> Iterator[Defect]:
    code = split.code
    ignored = set(code.ignore) - set(code.classes.ids) if code else {IGNORE}
    if code is None or not (code.colours or code.layers):
        if mask.counts and set(mask.counts) <= ignored:
            message = f"every pixel has the ignored value {next(iter(mask.counts))}"
            yield Defect("mask-all-ignored", str(mask.path), message, image=image)
        known = {*code.classes.ids, *code.ignore} if code else set(mask.counts)
        wrong = [f"{v} ({n} pixels)" for v, n in mask.counts.items() if v not in known]
        if wrong and code:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            classes = ", ".join(f"{n}={i}" for n, i in list(zip(code.classes.names, code.classes.ids))[:8])
            message = f"holds {', '.join(wrong[:5])}{more}, which is none of {classes}, nor ignored"
            yield Defect("mask-value-unknown", str(mask.path), message, image=image, other=mask.path)
    elif set(mask.counts) == {IGNORE}:
        yield Defect("mask-all-ignored", str(mask.path), "every pixel is ignored", image=image)


def _binary_message(split: Split, facts: Sequence[MaskFacts]) -> Defect | None:
    """Masks of 0 and 255 only, where 255 is what is ignored: told once for the set."""
    code = split.code
    if code is not None and (IGNORE in code.classes.ids or IGNORE not in code.ignore or code.colours or code.layers):
        return None
    values = {v for f in facts for v in f.counts}
    if values != {0, IGNORE}:
        return None
    both = [f for f in facts if IGNORE in f.counts]
    message = f"{len(both)} of {len(facts)} masks hold 255, and no mask holds anything but 0 and 255"
    return Defect("mask-0-255", str(both[0].path), message)


def _palettes(facts: Sequence[MaskFacts]) -> Iterator[Defect]:
    """Palette masks whose palette, or having one, sets them apart from most others."""
    with_palette = [f for f in facts if f.palette is not None]
    votes: dict[int, Counter[Colour]] = {}
    for mask in with_palette:
        for value, colour in (mask.palette or {}).items():
            votes.setdefault(value, Counter())[colour] += 1
    alone = 2 * len(with_palette) < len(facts)
    for mask in with_palette:
        palette = mask.palette or {}
        for value, colour in palette.items():
            usual, count = votes[value].most_common(1)[0]
            if colour != usual and count > votes[value][colour]:
                message = f"value {value} has the colour {colour}, in {count} other masks {usual}"
                yield Defect("mask-palette", str(mask.path), message, other=mask.path)
                break
        else:
            if alone and any(colour != (value,) * 3 for value, colour in palette.items()):
                message = f"is a palette image, {len(facts) - len(with_palette)} others hold plain values"
                yield Defect("mask-palette", str(mask.path), message, other=mask.path)


def _sides(size: Any) -> str:
    return f"{size[1]} x {size[0]}"
