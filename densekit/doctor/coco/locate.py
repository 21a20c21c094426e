"""Where the images of a json are: their folder, their files under other spellings, the sizes that the json lacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densekit.data.images.header import read_header
from densekit.data.images.names import other_spellings
from densekit.data.images.read import MAX_PIXELS, read_bytes
from densekit.doctor.coco.rows import CocoRows, ImageRow, grouped, image_defect, malformed
from densekit.doctor.defects import Box, Defect
from densekit.errors import DensekitError

Size = tuple[int, int]


def locate(rows: CocoRows, folder: Path | None) -> CocoRows:
    """The same rows, with the files that their images mean and the sizes of these where the json gives none.

    What was found in another way than the json says is told in ``rows.defects``; images that have no size then are no
    longer among ``rows.images``.

    Args:
        rows: just read; changed in place.
        folder: of the images; None: not known.
    """
    rows.folder = folder
    if folder is not None:
        found = other_spellings(folder, [image.file_name for image in rows.images], outside=True)
        rows.spelled = {rows.images[i].row: name for i, name in found.items()}
    rows.defects += [_name_defect(rows, i) for i in rows.images if i.row in rows.spelled]
    _read_sizes(rows)
    return rows


def _name_defect(rows: CocoRows, image: ImageRow) -> Defect:
    message = f"{image.file_name!r} is not there, but {rows.spelled[image.row]!r} is"
    told = str(rows.path)
    return Defect("image_name_differs", image.file_name, message, None, told, rows.place(image), row=image.row)


def _read_sizes(rows: CocoRows) -> None:
    """Sizes that the json lacks, from the files."""
    without = [image for image in rows.images if image.width < 1]
    objects = grouped(rows.annotations) if without else {}
    for image in without:
        said = _written_size(rows, image)
        size = _size_of_file(rows.place(image), [a.box for a in objects.get(image.id, ())])
        if size is None:
            told = f"{said} are no size in pixels, and the file could not be looked at"
            rows.defects.append(malformed(rows, "images", image.row, told))
        else:
            image.width, image.height = size
            message = f"image {image.id!r}: {said} are no size in pixels; the file is {size[0]} x {size[1]}"
            rows.defects.append(image_defect(rows, image, "size_missing", message, show=True))
    if without:
        rows.images = [image for image in rows.images if image.width]
        rows.forget_ids()


def _written_size(rows: CocoRows, image: ImageRow) -> str:
    entry: dict[str, Any] = rows.content["images"][image.row]
    return " and ".join(
        f"{side} {str(repr(entry[side]))[:40]}" if side in entry else f"no {side}" for side in ("width", "height")
    )


def _size_of_file(place: Path | None, boxes: Sequence[Box]) -> Size | None:
    """(width, height) as the file is shown, unless the boxes fit it as it is stored alone."""
    sizes = [] if place is None else _sizes(place)
    fitting = [s for s in sizes if all(x + w <= s[0] + 1 and y + h <= s[1] + 1 for x, y, w, h in boxes)]
    return next(iter([*fitting, *sizes]), None)


def _sizes(path: Path) -> list[Size]:
    """The sizes that a file can be seen in: as it is shown first, then as it is stored."""
    try:
        if path.suffix.lower() == ".npy":
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
            return [(int(shape[1]), int(shape[0]))] if len(shape) in (2, 3) else []
        header = read_header(read_bytes(path, MAX_PIXELS))
    except (DensekitError, OSError, ValueError, EOFError):
        return []
    if header is None or min(header.width, header.height) < 1 or header.width * header.height > 2**40:
        return []
    stored = (header.width, header.height)
    return [stored[::-1], stored] if header.orientation >= 5 else [stored]
