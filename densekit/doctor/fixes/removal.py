"""How much a correction may remove: of a set that loses more, the whole is wrong, not so many rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from densekit.doctor.defects import Defect
from densekit.doctor.kinds import KINDS
from densekit.errors import DensekitError

MOST = 0.1
"""Largest part of the images, or of the annotations, that is removed unless more is asked for."""

WHOLE = {
    "image_missing": "the image folder is another one (give --images), or the files are not there yet",
    "image_unreadable": "the images were damaged on their way; copy them again",
    "image_truncated": "the images were damaged on their way; copy them again",
    "image_size": "the images are not those that were annotated",
    "name_leaves_folder": "the image folder is another one (give --images)",
    "row_malformed": "it was written by a program that means something else by these keys; export it as COCO",
    "unknown_image": "'images' and 'annotations' come from two different exports",
    "unknown_category": "'categories' comes from another export",
    "image_id_twice": "it was put together from files that number their images alike; give these as a list instead",
    "annotation_id_twice": "it was put together from the same file twice",
    "near_duplicate": "it holds the same objects twice",
    "box_not_finite": "its boxes were lost in the export",
    "box_without_area": "its boxes were lost in the export",
    "box_outside": "its boxes are not x, y, width, height in pixels, or belong to other images",
}
"""What is mostly wrong with a file where a code concerns many of its rows."""


def check_removal(
    path: Path, sizes: Mapping[str, int], removed: Counter[tuple[str, str]], defects: Sequence[Defect], most: float
) -> None:
    """Refuse a correction that would remove too much.

    Args:
        path: the file.
        sizes: how many rows it has, by array.
        removed: how many would go, by array and code.
        defects: of the file, for an example.
        most: largest part of an array that may go.

    Raises:
        DensekitError: more would go; the line says of what, why, and what is wrong with the whole.
    """
    for key in ("images", "annotations"):
        of_key = Counter({code: count for (array, code), count in removed.items() if array == key})
        if of_key.total() > most * sizes.get(key, 0):
            code, count = of_key.most_common(1)[0]
            example = next((d.message for d in defects if d.code == code), KINDS[code].why)
            whole = WHOLE.get(code, KINDS[code].why)
            raise DensekitError(
                f"--fix: {path}: {of_key.total()} of {sizes[key]} {key} would go, {count} for {code} ({example}); "
                f"so many are mostly one mistake of the whole: {whole}; nothing was written, --may-remove 1 does it "
                f"all the same"
            )
