"""The whole examination: everything behind a path, each check once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from densekit.data.formats.coco.file import open_coco
from densekit.doctor.balance import class_defects, differing_classes, pixel_defects
from densekit.doctor.boxes.boxes import box_defects, near_duplicates
from densekit.doctor.boxes.sets import SPOILT, findings, of_rows
from densekit.doctor.coco.identities import empty_images, identity_defects
from densekit.doctor.coco.rows import CocoRows
from densekit.doctor.coco.segmentations import segmentation_defects
from densekit.doctor.coco.sets import families, image_groups
from densekit.doctor.coco.spellings import spelling_defects
from densekit.doctor.consequences import without_consequences, without_sets_of_other_sizes
from densekit.doctor.defects import Defect, exit_code, in_order
from densekit.doctor.images.checks import Look, Question, look
from densekit.doctor.images.deep import deep_image_defects
from densekit.doctor.images.duplicates import identical_images
from densekit.doctor.images.sets import image_defects
from densekit.doctor.masks.checks import MaskLook, MaskQuestion, look_at_mask
from densekit.doctor.masks.sets import set_defects
from densekit.doctor.parallel import over_files
from densekit.doctor.sets import Split, find_splits
from densekit.errors import DensekitError


@dataclasses.dataclass(slots=True)
class Report:
    """What was found.

    Attributes:
        path: what was examined.
        splits: of which it consists.
        left_out: lines on files beside them that were not examined.
        defects: worst first.
        seconds: that it took.
        sizes: (width, height) of each image file that can be read, as training sees it.
        pixels: of each mask file that can be read: how many each value has, or each label where the classes are known.
    """

    path: Path
    splits: list[Split]
    left_out: list[str]
    defects: list[Defect]
    seconds: float
    sizes: dict[Path, tuple[int, int]] = dataclasses.field(default_factory=dict)
    pixels: dict[Path, dict[int, int]] = dataclasses.field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0, 3 or 4: see ``EXIT_CODES``."""
        return exit_code(self.defects)

    @property
    def images(self) -> int:
        """Image files that were named."""
        return len({entry.path for split in self.splits for entry in split.images})

    @property
    def annotations(self) -> int:
        """Annotations that were read."""
        return sum(len(split.rows.annotations) for split in self.splits if split.rows is not None)


def examine(
    path: Path,
    images: Path | None = None,
    *,
    name: str | None = None,
    processes: int | None = None,
    shown: bool = True,
) -> Report:
    """Examine a COCO json, labels of another format, a mask set, an image folder, or the data sets of a config.

    Args:
        path: see ``find_splits``.
        images: the image folder, where it is not beside the json.
        name: which data set of a config; None: the first head's.
        processes: that look at files; None: one a core.
        shown: whether to show a progress bar.

    Raises:
        DensekitError: there is nothing to examine.
    """
    began = time.perf_counter()
    behind = find_splits(path, images, name)
    splits, config = behind.splits, behind.config
    found: list[Defect] = []
    for split in splits:
        found += split.defects
        if split.rows is not None:
            of_rows_alone = row_defects(split.rows, processes=processes, shown=shown)
            found += of_rows_alone
            found += _refused_by_training(split.rows, [*split.defects, *of_rows_alone]) if split.is_json else []
    for family in families(splits):
        found += differing_classes(family)
    channels = None if config is None else config.model.channels
    looks = _look_at_images(splits, processes, shown, max(3, channels or 3))
    masks = _look_at_masks(splits, processes, shown)
    for split in splits:
        found += image_defects(split, looks, channels)
        found += set_defects(split.masks, [masks[q.mask] for q in split.masks], looks)
        found += pixel_defects(split.masks, [masks[q.mask] for q in split.masks])
    found += deep_image_defects(splits, looks, None if config is None else config.data.range)
    counts = {str(s.rows.path): len(s.images) for s in splits if s.rows is not None}
    found = without_consequences(without_sets_of_other_sizes(found, counts))
    sets = [(name, [looks[p] for p in paths]) for name, paths in image_groups(splits).items()]
    found += identical_images(sets, processes=processes, shown=shown)
    if config is not None and not is_spoilt(found):
        from densekit.doctor.boxes.anchors import anchor_defects  # imports torch
        from densekit.doctor.boxes.limits import limit_defects

        found += anchor_defects(config, splits[0], str(path))
        found += limit_defects(config, splits, str(path))
    sizes = {path: seen.size for path, seen in looks.items() if seen.size is not None}
    pixels = {path: seen.pixels for path, seen in masks.items()}
    return Report(path, splits, behind.left_out, in_order(found), time.perf_counter() - began, sizes, pixels)


def row_defects(rows: CocoRows, *, processes: int | None = 1, shown: bool = False) -> list[Defect]:
    """Checks of a json that look at no image: causes, and nothing that only follows from them."""
    path = str(rows.path)
    return without_consequences(
        [
            *rows.defects,
            *spelling_defects(rows),
            *identity_defects(rows),
            *(Defect(code, path, message, source=path) for code, message in findings(of_rows(rows))),
            *box_defects(rows),
            *segmentation_defects(rows, processes=processes, shown=shown),
            *near_duplicates(rows),
            *empty_images(rows),
            *class_defects(rows),
        ]
    )


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


def _look_at_images(splits: Sequence[Split], processes: int | None, shown: bool, channels: int) -> dict[Path, Look]:
    questions = {
        entry.path: Question(entry.path, entry.size, split.max_pixels, channels)
        for split in splits
        for entry in split.images
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
