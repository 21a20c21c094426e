"""Findings that follow from others are left out: the cause is told, and they come back if they outlive it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from densekit.doctor.defects import Defect

_IN_IMAGE = frozenset({"box_outside", "box_partly_outside", "box_off_by_one"})
_BOXES = _IN_IMAGE | {"box_not_finite", "box_negative", "box_without_area", "box_tiny", "near_duplicate"}
_AGAINST_MASK = frozenset({"box_against_mask", "area_against_mask"})

OF_SET: dict[str, frozenset[str]] = {
    "box_layout": _BOXES | _AGAINST_MASK,
    "box_layout_unlikely": _BOXES | _AGAINST_MASK,
    "boxes_of_other_images": _IN_IMAGE | _AGAINST_MASK | {"near_duplicate"},
    "boxes_without_area": frozenset({"box_without_area", "box_not_finite", "near_duplicate"}),
    "area_of_set": frozenset({"area_against_mask"}),
    "crowds_alone": frozenset({"crowd_without_rle"}),
    "no_objects": frozenset({"image_no_annotation"}),
}
"""What follows from a defect of a whole file, for the annotations of that file."""

OF_IMAGE: dict[str, frozenset[str]] = {
    "image_size": _IN_IMAGE | _AGAINST_MASK | {"box_tiny", "rle_size", "segmentation_invalid"}
}
"""What follows from a defect of an image, for its own annotations."""

_SIZES = 0.5  # part of a file's images with another size from which on its boxes are not judged as a set


def without_consequences(found: Iterable[Defect]) -> list[Defect]:
    """The findings whose cause is not among the others."""
    found = list(found)
    of_set: defaultdict[str, set[str]] = defaultdict(set)
    of_image: defaultdict[str, set[str]] = defaultdict(set)
    for defect in found:
        of_set[defect.source] |= OF_SET.get(defect.code, frozenset())
        of_image[defect.file] |= OF_IMAGE.get(defect.code, frozenset())
    return [d for d in found if d.code not in of_set[d.source] and d.code not in of_image[d.file]]


def without_sets_of_other_sizes(found: Iterable[Defect], images: dict[str, int]) -> list[Defect]:
    """Where most files have another size than the annotations say, no way of writing boxes can be seen.

    Args:
        found: of all files.
        images: how many each annotation file has.
    """
    found = list(found)
    sizes = Counter(d.source for d in found if d.code == "image_size")
    wrong = {source for source, count in sizes.items() if count >= _SIZES * images.get(source, 0)}
    judged = {"box_layout", "box_layout_unlikely", "boxes_of_other_images"}
    return [d for d in found if not (d.code in judged and d.source in wrong)]
