"""The masks of a COCO file's objects, each cut to its own extent."""

from __future__ import annotations

import mmap
import re
from typing import Literal

import numpy as np
import numpy.typing as npt

from densekit.data.formats.coco.file import CocoFile
from densekit.ops.run_lengths import NO_MASK, cut_out
from densekit.types import DensekitError, Instance

Boxes = Literal["annotated", "from_masks"]
"""Where the boxes come from: the file; or the masks, after all transforms, so that they are tight again."""

_EMPTY = re.compile(rb"[ \t\r\n]*:?[ \t\r\n]*(null|\[[ \t\r\n]*(\[[ \t\r\n]*\][ \t\r\n]*)?\])")


def instances_of(file: CocoFile, image: int) -> list[Instance]:
    """The masks of an image's objects, without pixels where there is none.

    Raises:
        DensekitError: a segmentation breaks the format.
    """
    rows = file.annotations(image)
    height = int(file.sizes[image, 0])
    found = (file.runs(image, row) for row in range(rows.start, rows.stop))
    return [NO_MASK if runs is None else cut_out(runs, height) for runs in found]


def check_masks(file: CocoFile, boxes: Boxes) -> list[str]:
    """What is to be said of a file whose masks are asked for.

    Returns:
        A line, where some of the objects have no mask.

    Raises:
        DensekitError: no object has one.
    """
    lacking = _lacking(file)
    count, total = int(lacking.sum()), len(file.labels)
    if not count:
        return []
    if count == total:
        raise DensekitError(
            f"{file.path}: not one of its {total} objects has a segmentation, and masks are to be learned, measured or "
            f"pasted; use a file with polygons or run lengths, or a head that takes boxes alone, such as faster_rcnn, "
            f"and no CopyPaste"
        )
    effect = "left out, for boxes are to come from masks" if boxes == "from_masks" else "learned by their boxes alone"
    return [f"{file.path}: {count} of {total} objects have no segmentation: they are {effect}"]


def broken_masks(file: CocoFile, most: int = 5000) -> list[str]:
    """A line for each segmentation that breaks the format, looked for in so many objects, evenly spread."""
    found = []
    total = len(file.labels)
    for row in np.unique(np.linspace(0, max(0, total - 1), min(most, total)).astype(int)).tolist():
        try:
            file.runs(int(file.owners[row]), row)
        except DensekitError as error:
            found.append(str(error))
    return found


def _lacking(file: CocoFile) -> npt.NDArray[np.bool_]:
    """[A] which annotations have no segmentation, or an empty one; read from the few bytes where it begins."""
    lacking: npt.NDArray[np.bool_] = np.asarray(file.segmentations) < 0
    if file.polygons is not None or lacking.all():
        return lacking
    parts = file.parts or ((file.path, 0),)
    ends = [*(start for _, start in parts[1:]), 2**63 - 1]
    for (path, start), end in zip(parts, ends):
        inside = np.flatnonzero(~lacking & (file.segmentations >= start) & (file.segmentations < end))
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
            places = (file.segmentations[inside] - start).tolist()
            lacking[inside] = [_EMPTY.match(text, place) is not None for place in places]
    return lacking
