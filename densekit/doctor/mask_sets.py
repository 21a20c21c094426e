"""Masks as a set: which belong to which image, and what differs from one to the other."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from densekit.data.images import IMAGE_SUFFIXES
from densekit.data.mask_files import MASK_SUFFIXES, MaskCode, read_classes
from densekit.doctor.defects import Defect
from densekit.doctor.file_lists import list_files
from densekit.doctor.image_checks import Look
from densekit.doctor.mask_checks import MaskLook, MaskQuestion
from densekit.errors import DensekitError, nearest
from densekit.types import IGNORE

_RARE, _ENOUGH = 0.02, 50  # a value in fewer masks than that, of at least so many, is a surprise


def mask_questions(
    images: Path, masks: Path, image_suffix: str | None, mask_suffix: str | None, code: MaskCode | None, max_pixels: int
) -> tuple[list[MaskQuestion], list[Defect]]:
    """Pairs of files by their common names, and what has no partner."""
    for option, folder in (("images", images), ("masks", masks)):
        if not folder.is_dir():
            raise DensekitError(f"{option}: there is no folder {folder}; correct the path")
    found = _by_stem(images, image_suffix, IMAGE_SUFFIXES)
    others = _by_stem(masks, mask_suffix, MASK_SUFFIXES)
    questions = [MaskQuestion(m, found.get(stem), code, max_pixels) for stem, m in sorted(others.items())]
    defects = []
    for stem in sorted(found.keys() - others.keys()):
        message = f"there is no mask of this name in {masks}; {_hint(stem, others)}"
        defects.append(Defect("mask_missing", str(found[stem]), message, picture=found[stem]))
    for stem in sorted(others.keys() - found.keys()):
        message = f"there is no image of this name in {images}; {_hint(stem, found)}"
        defects.append(Defect("mask_without_image", str(others[stem]), message))
    return questions, defects


def mask_code(options: Mapping[str, Any]) -> MaskCode | None:
    """What values mean, by the options of a ``masks`` data set."""
    classes, colors = options.get("classes"), options.get("colors")
    if classes is None and colors is None:
        return None
    known = classes if classes is not None else list(colors or ())
    names = read_classes(Path(known) if isinstance(known, str) else known)
    colours = None if colors is None else tuple(_colour(colors[name]) for name in names.names)
    return MaskCode(
        names,
        tuple(options.get("ignore", (IGNORE,))),
        colours,
        tuple(_colour(c) for c in options.get("ignore_colors", ())),
        bool(options.get("multi_label", False)),
    )


def set_defects(
    questions: Sequence[MaskQuestion], looks: Sequence[MaskLook], images: Mapping[Path, Look]
) -> Iterator[Defect]:
    """Defects of the masks of a set: of each file, against its image, and against the others."""
    for question, look in zip(questions, looks):
        picture = question.image
        for code, message in look.problems:
            yield Defect(code, str(look.path), message, picture=picture)
        image = None if picture is None else images.get(picture)
        if image is not None and image.size is not None and look.size is not None and not _fits(image, look.size):
            message = f"the mask is {look.size[0]} x {look.size[1]}, its image {image.size[0]} x {image.size[1]}"
            yield Defect("mask_size", str(look.path), message, picture=picture)
    yield from _palettes(questions, looks)
    if questions and questions[0].code is None:
        yield from _rare_values(questions, looks)


def _palettes(questions: Sequence[MaskQuestion], looks: Sequence[MaskLook]) -> Iterator[Defect]:
    """Masks whose palette gives an index another colour than most do."""
    colours: dict[int, Counter[tuple[int, ...]]] = defaultdict(Counter)
    for look in looks:
        for index, colour in (look.palette or {}).items():
            colours[index][colour] += 1
    usual = {index: counts.most_common(1)[0][0] for index, counts in colours.items()}
    for question, look in zip(questions, looks):
        wrong = [i for i, colour in (look.palette or {}).items() if colour != usual[i]]
        if wrong and look.palette is not None:
            message = f"index {wrong[0]} is {look.palette[wrong[0]]} here and {usual[wrong[0]]} in most masks"
            yield Defect("mask_palette", str(look.path), message, picture=question.image)


def _rare_values(questions: Sequence[MaskQuestion], looks: Sequence[MaskLook]) -> Iterator[Defect]:
    """Where the classes are not known: values that next to no other mask has."""
    masks_with = Counter(value for look in looks for value in look.pixels)
    if len(looks) < _ENOUGH:
        return
    for question, look in zip(questions, looks):
        rare = [v for v in look.pixels if masks_with[v] <= max(1, _RARE * len(looks))]
        if len(rare) > 2 or any(v > max(masks_with.most_common(1)[0][0], 0) and masks_with[v] == 1 for v in rare):
            message = f"values {rare[:5]} are in next to no other mask; name the classes in classes.txt to be sure"
            yield Defect("mask_values", str(look.path), message, picture=question.image)


def _fits(image: Look, size: tuple[int, int]) -> bool:
    turned = any(code == "image_orientation" for code, _ in image.problems)
    return image.size is None or image.size == size or (turned and image.size == size[::-1])


def _by_stem(folder: Path, suffix: str | None, endings: frozenset[str]) -> dict[str, Path]:
    found = {}
    for path in list_files(folder, endings):
        name = path.relative_to(folder).as_posix()
        if suffix is None:
            found[Path(name).with_suffix("").as_posix()] = path
        elif name.endswith(suffix):
            found[name.removesuffix(suffix)] = path
    return found


def _hint(stem: str, others: Mapping[str, Path]) -> str:
    return nearest(stem, list(others)[:2000]) if others else "the folder is empty"


def _colour(values: Any) -> tuple[int, int, int]:
    r, g, b = values
    return int(r), int(g), int(b)
