"""The whole examination: everything behind a path, each check once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from densekit.data.coco_file import open_coco
from densekit.doctor.balance import class_defects, differing_classes, pixel_defects
from densekit.doctor.box_sets import SPOILT, findings, of_rows
from densekit.doctor.boxes import box_defects, near_duplicates
from densekit.doctor.coco_rows import CocoRows
from densekit.doctor.defects import Defect, exit_code, in_order
from densekit.doctor.duplicates import identical_images
from densekit.doctor.identities import empty_images, identity_defects
from densekit.doctor.image_checks import Look, Question, look
from densekit.doctor.mask_checks import MaskLook, MaskQuestion, look_at_mask
from densekit.doctor.mask_sets import set_defects
from densekit.doctor.parallel import over_files
from densekit.doctor.segmentations import segmentation_defects
from densekit.doctor.sets import Split, find_splits
from densekit.errors import DensekitError


@dataclasses.dataclass(slots=True)
class Report:
    """What was found.

    Attributes:
        path: what was examined.
        splits: of which it consists.
        defects: worst first.
        seconds: that it took.
    """

    path: Path
    splits: list[Split]
    defects: list[Defect]
    seconds: float

    @property
    def exit_code(self) -> int:
        """0, 3 or 4: see ``EXIT_CODES``."""
        return exit_code(self.defects)

    @property
    def images(self) -> int:
        """Image files that were named."""
        return sum(len(split.images) for split in self.splits)

    @property
    def annotations(self) -> int:
        """Annotations that were read."""
        return sum(len(split.rows.annotations) for split in self.splits if split.rows is not None)


def examine(path: Path, images: Path | None = None, *, processes: int | None = None, shown: bool = True) -> Report:
    """Examine a COCO json, a mask set, an image folder, or the data sets of a config.

    Args:
        path: see ``find_splits``.
        images: the image folder, where it is not beside the json.
        processes: that look at files; None: one a core.
        shown: whether to show a progress bar.

    Raises:
        DensekitError: there is nothing to examine.
    """
    began = time.perf_counter()
    splits, config = find_splits(path, images)
    found: list[Defect] = []
    for split in splits:
        found += split.defects
        if split.rows is not None:
            of_rows = list(row_defects(split.rows, processes=processes, shown=shown))
            found += of_rows + _refused_by_training(split.rows, [*split.defects, *of_rows])
    found += differing_classes(splits)
    looks = _look_at_images(splits, processes, shown)
    masks = _look_at_masks(splits, processes, shown)
    for split in splits:
        found += _of_images(split, looks)
        found += set_defects(split.masks, [masks[q.mask] for q in split.masks], looks)
        found += pixel_defects(split.masks, [masks[q.mask] for q in split.masks])
    found += identical_images([(s.name, _looks_of(s, looks)) for s in splits])
    if config is not None and not is_spoilt(found):
        from densekit.doctor.anchors import anchor_defects  # imports torch
        from densekit.doctor.limits import limit_defects

        found += anchor_defects(config, splits[0], str(path))
        found += limit_defects(config, splits, str(path))
    return Report(path, splits, in_order(found), time.perf_counter() - began)


def row_defects(rows: CocoRows, *, processes: int | None = 1, shown: bool = False) -> Iterator[Defect]:
    """Checks of a json that look at no image: causes first, and nothing that only follows from them."""
    yield from rows.defects
    yield from identity_defects(rows)
    path = str(rows.path)
    of_set = [Defect(code, path, message, source=path) for code, message in findings(of_rows(rows))]
    yield from of_set
    spoilt = is_spoilt(of_set)
    if not spoilt:
        yield from box_defects(rows)
        yield from near_duplicates(rows)
    follows = {"box_against_mask", "area_against_mask"} if spoilt else {"area_against_mask"}
    told = bool(of_set) and (spoilt or any(d.code == "area_of_set" for d in of_set))
    for defect in segmentation_defects(rows, processes=processes, shown=shown):
        if not (told and defect.code in follows):
            yield defect
    yield from empty_images(rows)
    yield from class_defects(rows)


def is_spoilt(found: Iterable[Defect]) -> bool:
    """Whether the boxes of a set are known to be wrong as a whole."""
    return any(defect.code in SPOILT for defect in found)


def _refused_by_training(rows: CocoRows, found: Sequence[Defect]) -> list[Defect]:
    """What training's own, stricter reader says of a file that no check calls wrong (NaN in a place it never reads)."""
    if any(defect.severity == "error" for defect in found):
        return []
    try:
        open_coco(rows.path, cache=False)
    except DensekitError as error:
        message = str(error).removeprefix(f"{rows.path}: ")
        return [Defect("refused_by_training", str(rows.path), message, source=str(rows.path))]
    return []


def _look_at_images(splits: Sequence[Split], processes: int | None, shown: bool) -> dict[Path, Look]:
    questions = {
        entry.path: Question(entry.path, entry.size, split.max_pixels) for split in splits for entry in split.images
    }
    looks = over_files(look, list(questions.values()), "images", _died, processes=processes, shown=shown)
    return {found.path: found for found in looks}


def _look_at_masks(splits: Sequence[Split], processes: int | None, shown: bool) -> dict[Path, MaskLook]:
    questions = {question.mask: question for split in splits for question in split.masks}
    looks = over_files(look_at_mask, list(questions.values()), "masks", _mask_died, processes=processes, shown=shown)
    return {found.path: found for found in looks}


_DIED = "the process that decoded it was killed: its decoder crashed, or memory ran out"


def _died(question: Question) -> Look:
    return Look(question.path, [("image_unreadable", _DIED)])


def _mask_died(question: MaskQuestion) -> MaskLook:
    return MaskLook(question.mask, [("mask_unreadable", _DIED)])


_KINDS = {"grey": "image_grey", "palette": "image_palette", "alpha": "image_alpha"}


def _of_images(split: Split, looks: dict[Path, Look]) -> Iterator[Defect]:
    """Defects of the files, and of what they store where it differs from most files of the set."""
    source = str(split.rows.path) if split.rows is not None else ""
    kinds = [looks[entry.path].kind for entry in split.images]
    usual = max(set(kinds) - {""}, key=kinds.count, default="")
    for entry in split.images:
        found = looks[entry.path]
        row = -1 if entry.row is None else entry.row.row
        picture = entry.path if found.size is not None else None
        for code, message in found.problems:
            yield Defect(code, str(entry.path), message, None, source, picture, row=row)
        if found.kind != usual and found.kind in _KINDS:
            message = f"it is stored as {found.kind}, most files of the set as {usual}"
            yield Defect(_KINDS[found.kind], str(entry.path), message, None, source, picture, row=row)
    if usual in _KINDS:
        folder = str(split.images[0].path.parent)
        yield Defect(_KINDS[usual], folder, f"{kinds.count(usual)} of {len(kinds)} files are stored as {usual}")


def _looks_of(split: Split, looks: dict[Path, Look]) -> list[Look]:
    return list({entry.path: looks[entry.path] for entry in split.images}.values())
