"""Images of more than 8 bits: the range of their values over the set, and which of them are black on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from densekit.data.images.pixel_values import Range
from densekit.data.images.value_range import Values, as_option, pooled
from densekit.doctor.defects import Defect
from densekit.doctor.images.checks import Look
from densekit.doctor.sets import ImageEntry, Split


def deep_image_defects(
    splits: Sequence[Split], looks: Mapping[Path, Look], value_range: Range | None
) -> Iterator[Defect]:
    """What there is to say about the values of deep images.

    Args:
        splits: the first of which is learned from.
        looks: at each image.
        value_range: that the config declares; None: that training would measure over the first split that has such
            images.
    """
    for split in splits:
        deep = [(e, v) for e in split.images if (v := looks[e.path].values) is not None]
        if not deep:
            continue
        found = pooled([values for _, values in deep])
        value_range = value_range or found.range()
        folder, option = str(deep[0][0].path.parent), as_option(value_range)
        message = f"{len(deep)} of {len(split.images)} images ({found.kind}) have values from {found.low:g} to "
        yield Defect("image_deep", folder, f"{message}{found.high:g}; data.range {option} becomes black to white")
        if found.faint(value_range):
            usual = found.usual_option()
            message = f"most values lie in {usual}, a small part of data.range {option}; {usual} would show them"
            yield Defect("range_too_wide", folder, message, picture=deep[0][0].path)
        else:
            yield from _dark_images(deep, value_range)


def _dark_images(deep: Sequence[tuple[ImageEntry, Values]], value_range: Range) -> Iterator[Defect]:
    """Images that lie on another scale than the others, such as 0..1 beside 0..4095."""
    for entry, values in deep:
        if values.dark(value_range):
            message = (
                f"its values ({values.kind}) go from {values.low:g} to {values.high:g} on {as_option(value_range)}"
            )
            row = -1 if entry.row is None else entry.row.row
            yield Defect("image_dark", str(entry.path), message, picture=entry.path, row=row)
