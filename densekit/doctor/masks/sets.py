"""Masks as a set: which belong to which image, and what differs from one to the other."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from densekit.data.formats.masks.files import MASK_SUFFIXES, MaskCode, read_classes
from densekit.data.formats.masks.pairs import settled_suffixes
from densekit.data.formats.masks.suffixes import has_longer
from densekit.data.images.read import IMAGE_SUFFIXES
from densekit.doctor.defects import Defect
from densekit.doctor.file_lists import list_files
from densekit.doctor.images.checks import Look
from densekit.doctor.masks.checks import MaskLook, MaskQuestion
from densekit.errors import DensekitError, nearest
from densekit.types import IGNORE

_MASKS, _MOST = 3, 0.8  # masks, and their part, that must show what is said of the set
_NUMBERED = 4  # objects in a mask from which on values may be their numbers
_ONE_PIECE = 0.8  # part of the values with one region alone: classes mostly have several
_RARE, _ENOUGH = 0.02, 50  # a value in fewer masks than that, of at least so many, is a surprise


def mask_questions(
    images: Path, masks: Path, image_suffix: str | None, mask_suffix: str | None, code: MaskCode | None, max_pixels: int
) -> tuple[list[MaskQuestion], list[Defect]]:
    """Pairs of files by their common names, and what has no partner."""
    for option, folder in (("images", images), ("masks", masks)):
        if not folder.is_dir():
            raise DensekitError(f"{option}: there is no folder {folder}; correct the path")
    image_suffix, mask_suffix = settled_suffixes(images, masks, image_suffix, mask_suffix)
    found = _by_stem(images, image_suffix, IMAGE_SUFFIXES, mask_suffix)
    others = _by_stem(masks, mask_suffix, MASK_SUFFIXES, image_suffix)
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
        "ignore" in options,
    )


def set_defects(
    questions: Sequence[MaskQuestion], looks: Sequence[MaskLook], images: Mapping[Path, Look]
) -> Iterator[Defect]:
    """Defects of the masks of a set: of the set, of each file, against its image, and against the others."""
    of_set = _instances(questions, looks) or _unnamed(questions, looks)
    yield from (defect for defect, _ in of_set)
    told = {path for _, paths in of_set for path in paths}
    for question, look in zip(questions, looks):
        picture = question.image
        for code, message in look.problems:
            if code != "mask_values" or look.path not in told:
                yield Defect(code, str(look.path), message, picture=picture)
        image = None if picture is None else images.get(picture)
        if image is not None and image.size is not None and look.size is not None and not _fits(image, look.size):
            message = f"the mask is {look.size[0]} x {look.size[1]}, its image {image.size[0]} x {image.size[1]}"
            yield Defect("mask_size", str(look.path), message, picture=picture)
    yield from _palettes(questions, looks)
    if questions and questions[0].code is None and not of_set:
        yield from _rare_values(questions, looks)


def _instances(questions: Sequence[MaskQuestion], looks: Sequence[MaskLook]) -> list[tuple[Defect, list[Path]]]:
    """Masks that number their objects: values without a gap, as many as there are objects, each in one piece."""
    many = [look for look in looks if max(look.values, default=0) >= _NUMBERED]
    numbered = [look for look in many if look.pieces]
    pieces = [n for look in numbered for n in look.pieces]
    most = {max(look.values) for look in numbered}
    if len(numbered) < max(_MASKS, _MOST * len(many)) or len(most) < _MASKS or len(many) < len(looks) / 2:
        return []
    if sum(n == 1 for n in pieces) < _ONE_PIECE * len(pieces):
        return []
    message = f"{len(numbered)} of {len(looks)} masks number their objects 1, 2, 3, ... up to {max(most)}: instances"
    defect = Defect("mask_instances", str(looks[0].path.parent), message, picture=questions[0].image)
    return [(defect, [look.path for look in looks])]


def _unnamed(questions: Sequence[MaskQuestion], looks: Sequence[MaskLook]) -> list[tuple[Defect, list[Path]]]:
    """Values of no class that most masks hold: a class or an ignored value without its name."""
    code = questions[0].code if questions else None
    refused = [look for look in looks if look.values and any(code == "mask_values" for code, _ in look.problems)]
    if code is None or len(refused) < max(_MASKS, _MOST * len(looks)):
        return []
    named = {*code.classes.ids, *code.ignore}
    masks_with = Counter(v for look in refused for v in look.values if v not in named)
    common = sorted(v for v, masks in masks_with.items() if masks >= _MOST * len(refused))
    alike = [look.path for look in refused if set(look.values) - named <= set(common)]
    if not common or len(alike) < _MOST * len(refused):
        return []
    classes = ", ".join(f"{n}={i}" for n, i in zip(code.classes.names[:12], code.classes.ids))
    message = (
        f"{len(alike)} of {len(looks)} masks hold {', '.join(map(str, common[:8]))}, which is none of the classes "
        f"({classes}), nor ignored {list(code.ignore)}"
    )
    return [(Defect("mask_value_unnamed", str(looks[0].path.parent), message, picture=questions[0].image), alike)]


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


def _by_stem(folder: Path, suffix: str | None, endings: frozenset[str], other: str | None) -> dict[str, Path]:
    found = {}
    for path in list_files(folder, endings):
        name = path.relative_to(folder).as_posix()
        if suffix is None:
            found[Path(name).with_suffix("").as_posix()] = path
        elif name.endswith(suffix) and not (other is not None and has_longer(name, other, suffix)):
            found[name.removesuffix(suffix)] = path
    return found


def _hint(stem: str, others: Mapping[str, Path]) -> str:
    return nearest(stem, list(others)[:2000]) if others else "the folder is empty"


def _colour(values: Any) -> tuple[int, int, int]:
    r, g, b = values
    return int(r), int(g), int(b)
