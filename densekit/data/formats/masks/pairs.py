"""Which mask belongs to which image: by name, by a list file, or by a seeded part of what is there."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from densekit.data.formats.masks.files import MASK_SUFFIXES
from densekit.data.formats.masks.suffixes import found_suffixes, has_longer
from densekit.data.images.read import IMAGE_SUFFIXES, inside
from densekit.files import read_list
from densekit.types import DensekitError, nearest


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """An image and its mask, relative to their folders."""

    image: str
    mask: str


def pairs_by_name(images: Path, masks: Path, image_suffix: str | None, mask_suffix: str | None) -> list[Pair]:
    """Pair the files of two folders and their subfolders by their relative names without suffix.

    Args:
        images: folder.
        masks: folder.
        image_suffix: what follows the common name, such as ``_leftImg8bit.png``; None: any image ending.
        mask_suffix: likewise, such as ``_gtFine_labelIds.png``. Where both are None and no names are the same, or there
            is one folder, they are found (``found_suffixes``).

    Raises:
        DensekitError: a folder is missing or empty, an image has no mask, or a mask has no image.
    """
    image_suffix, mask_suffix = settled_suffixes(images, masks, image_suffix, mask_suffix)
    found_images = _by_stem(images, image_suffix, IMAGE_SUFFIXES, "images", other=mask_suffix)
    found_masks = _by_stem(masks, mask_suffix, MASK_SUFFIXES, "masks", other=image_suffix)
    _check_all_paired(found_images, found_masks, images, masks, "image", "mask")
    _check_all_paired(found_masks, found_images, masks, images, "mask", "image")
    return [Pair(found_images[stem], found_masks[stem]) for stem in sorted(found_images)]


def pairs_by_list(
    source: Path, images: Path, masks: Path, image_suffix: str | None, mask_suffix: str | None
) -> list[Pair]:
    """Pairs from a text file: a line holds a common name (as in Pascal VOC), or an image and a mask.

    Two names stand apart by a tab, or by blanks where none of them has any.

    Args:
        source: the list; blank lines and those that begin with # are skipped.
        images: folder that names of images are relative to.
        masks: folder that names of masks are relative to.
        image_suffix: what is to be added to a common name; None: whatever image ending the folder has.
        mask_suffix: likewise.

    Raises:
        DensekitError: the list can't be read, is empty, or names a file that is not there or outside of its folder.
    """
    lines = read_list(source, "a name a line, or an image and a mask", option="list:")
    entries = [line.split("\t") if "\t" in line else line.split() for line in lines]
    search = any(len(entry) == 1 for entry in entries)
    known_images = _by_stem(images, None, IMAGE_SUFFIXES, "images") if search and image_suffix is None else {}
    known_masks = _by_stem(masks, None, MASK_SUFFIXES, "masks") if search and mask_suffix is None else {}
    pairs = []
    for entry in entries:
        if len(entry) > 2:
            raise DensekitError(
                f"{source}: {' '.join(entry)!r} has {len(entry)} parts; write a name, or image and mask"
            )
        image = entry[0] if len(entry) == 2 else _named(entry[0], image_suffix, known_images)
        mask = entry[1] if len(entry) == 2 else _named(entry[0], mask_suffix, known_masks)
        for folder, name in ((images, image), (masks, mask)):
            if not inside(folder, name, source).is_file():
                raise DensekitError(_missing(source, folder, name))
        pairs.append(Pair(image, mask))
    return pairs


def settled_suffixes(
    images: Path, masks: Path, image_suffix: str | None, mask_suffix: str | None
) -> tuple[str | None, str | None]:
    """The suffixes given; those found where none is given and names alone do not make pairs.

    Raises:
        DensekitError: images and masks are in one folder, and the names do not tell which are which.
    """
    if image_suffix is not None or mask_suffix is not None or not _need_suffixes(images, masks):
        return image_suffix, mask_suffix
    ends = found_suffixes(sorted(_files(images)), sorted(_files(masks)))
    if ends is None and os.path.samefile(images, masks):
        raise DensekitError(
            f"masks: {masks} is the folder of the images too, and the names do not tell which are the masks; set "
            f"image_suffix and mask_suffix, such as .jpg and _mask.png"
        )
    return ends or (None, None)


def _need_suffixes(images: Path, masks: Path) -> bool:
    """Whether names without their endings do not pair the files as they are."""
    if not images.is_dir() or not masks.is_dir():
        return False
    if os.path.samefile(images, masks):
        return True
    these, those = (
        {os.path.splitext(n)[0] for n in _files(folder) if n.lower().endswith(tuple(endings))}
        for folder, endings in ((images, IMAGE_SUFFIXES), (masks, MASK_SUFFIXES))
    )
    return not these & those


def part_of(pairs: Sequence[Pair], fraction: float, rest: bool, seed: int) -> list[Pair]:
    """A seeded part of the pairs, or what it leaves, in the order given.

    Raises:
        DensekitError: nothing is left of so few images.
    """
    order = np.random.default_rng(seed).permutation(len(pairs))
    count = round(len(pairs) * fraction)
    chosen = np.sort(order[count:] if rest else order[:count])
    if not len(chosen):
        raise DensekitError(f"fraction: {fraction} of {len(pairs)} images leaves none for this part; change it")
    return [pairs[i] for i in chosen]


def _by_stem(
    folder: Path, suffix: str | None, endings: Iterable[str], option: str, other: str | None = None
) -> dict[str, str]:
    """Relative file names of a folder (the option ``images`` or ``masks``) by their common name.

    Where the ``other`` suffix ends in this one, as ``_mask.png`` in ``.png``, names with it are the other's.
    """
    suffix_option = f"{option[:-1]}_suffix"
    if not folder.is_dir():
        raise DensekitError(f"{option}: there is no folder {folder}; correct the path")
    found: dict[str, str] = {}
    endings = tuple(endings)
    for name in sorted(_files(folder)):
        fits = name.endswith(suffix) if suffix is not None else name.lower().endswith(endings)
        if not fits or (suffix is not None and other is not None and has_longer(name, other, suffix)):
            continue
        stem = name[: -len(suffix)] if suffix else os.path.splitext(name)[0]
        if stem in found:
            raise DensekitError(
                f"{option}: {found[stem]} and {name} in {folder} have the same name; set {suffix_option} to say which"
            )
        found[stem] = name
    if not found:
        wanted = f"name ends in {suffix!r}" if suffix else f"ending is one of {', '.join(sorted(endings))}"
        raise DensekitError(f"{option}: {folder} holds no file whose {wanted}; correct the folder or {suffix_option}")
    return found


def _files(folder: Path) -> Iterable[str]:
    """Files below a folder, relative to it, with forward slashes; hidden ones are left out."""
    for root, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        below = os.path.relpath(root, folder).replace(os.sep, "/")
        for name in names:
            if not name.startswith("."):
                yield name if below == "." else f"{below}/{name}"


def _check_all_paired(
    these: dict[str, str], others: dict[str, str], folder: Path, other_folder: Path, kind: str, other: str
) -> None:
    lonely = [these[stem] for stem in sorted(these.keys() - others.keys())]
    if not lonely:
        return
    stem = next(stem for stem, name in these.items() if name == lonely[0])
    more = f" (and {len(lonely) - 1} more)" if len(lonely) > 1 else ""
    raise DensekitError(
        f"{folder}/{lonely[0]}: there is no {other} of this {kind} in {other_folder}{more}; {nearest(stem, others)} "
        f"Add it, set {other}_suffix, or give a list of what to use"
    )


def _named(name: str, suffix: str | None, known: dict[str, str]) -> str:
    if suffix is not None:
        return name + suffix
    return known.get(name) or known.get(os.path.splitext(name)[0], name)


def _missing(source: Path, folder: Path, name: str) -> str:
    beside = (folder / name).parent
    names = os.listdir(beside) if beside.is_dir() else []
    hint = nearest(Path(name).name, names) if names else f"the folder {beside} is empty or missing"
    return f"{source}: {name!r} is not in {folder}; {hint}"
