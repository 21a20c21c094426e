"""A segmenter's first config from mask files: pairs, what occurs in the masks, and a proposal for their classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densekit.data.formats.labels.listing import files_below, images_below
from densekit.data.formats.labels.reading import file_sizes
from densekit.data.formats.labels.records import Found
from densekit.data.formats.masks.files import MASK_SUFFIXES
from densekit.data.formats.masks.matching import Matched, aside, match
from densekit.data.formats.masks.occurring import occurring
from densekit.data.formats.masks.pairs import Pair, pairs_by_list, pairs_by_name
from densekit.first_config.mask_classes import coding_of
from densekit.first_config.plan import Plan, training_role
from densekit.first_config.segmenter import segmenter
from densekit.first_config.split import split_images
from densekit.first_config.wishes import Wishes
from densekit.types import DensekitError


@dataclasses.dataclass(slots=True)
class _Set:
    """The pairs of a split.

    Attributes:
        options: of the data set.
        pairs: that can be used.
        listed: whether these must be named, because the folders hold more, or the names alone do not pair them.
        lines: on what is left aside.
    """

    options: dict[str, Any]
    pairs: list[Pair]
    listed: bool
    lines: list[str]

    @property
    def images(self) -> list[Path]:
        """Their files."""
        return [self.options["images"] / pair.image for pair in self.pairs]

    @property
    def masks(self) -> list[Path]:
        """Their files."""
        return [self.options["masks"] / pair.mask for pair in self.pairs]


def plan(found: Found, target: Path, wishes: Wishes) -> Plan:
    """What is learned from images and masks."""
    sets = {role: _opened(options) for role, options in found.splits.items()}
    train = training_role(list(sets))
    seen = occurring([path for one in sets.values() for path in one.masks])
    for one in sets.values():
        _without(one, seen.damaged)
    lines = [line for one in sets.values() for line in one.lines]
    lines += [f"{role or 'images'}: {len(one.pairs)} images with masks" for role, one in sets.items()]
    folder = next(iter(sets.values())).options["masks"]
    coding = coding_of(seen, _beside(folder), wishes)
    files = _parts(sets, train, target, wishes, lines)
    parts = {role or "train": {"name": "masks", **one.options, **coding.options} for role, one in sets.items()}
    images = sets["train"].images
    return segmenter(parts, files, [*lines, *coding.lines], coding.names, images, wishes, layers=seen.layers)


def _opened(options: Mapping[str, Any]) -> _Set:
    images, masks = options["images"], options["masks"]
    if "list" in options:
        pairs = pairs_by_list(options["list"], images, masks, None, None)
        return _checked(_Set(dict(options), pairs, False, []))
    matched = match(images, masks)
    lines = aside(matched, {"images": images, "masks": masks})
    if images != masks and (other := [n for n in images_below(masks) if not n.lower().endswith(tuple(MASK_SUFFIXES))]):
        lines.append(f"{masks}: {len(other)} files that can't hold classes are left aside: {', '.join(other[:3])}")
    return _checked(_Set(dict(options), matched.pairs, not _found_alone(images, masks, matched), lines))


def _found_alone(images: Path, masks: Path, matched: Matched) -> bool:
    """Whether the data set pairs the same files without being told."""
    try:
        return set(pairs_by_name(images, masks, None, None)) == set(matched.pairs)
    except DensekitError:
        return False


def _checked(one: _Set) -> _Set:
    """Without images that can't be read, and without masks of another size, in lines."""
    sizes = file_sizes(one.options["images"], [pair.image for pair in one.pairs])
    others = file_sizes(one.options["masks"], [pair.mask for pair in one.pairs])
    bad: dict[Path, str] = {}
    for path, mask, size, other in zip(one.images, one.masks, sizes, others):
        if size is None:
            bad[mask] = f"its image {path.name} can't be read"
        elif other is None:
            bad[mask] = "it can't be read"
        elif other[0] not in size and mask.suffix.lower() != ".npy":
            bad[mask] = f"it is {_by(other[0])}, and its image {path.name} {_by(size[0])} pixels"
    if bad and len(bad) == len(one.pairs):
        path, why = next(iter(bad.items()))
        raise DensekitError(f"{path}: {why}, and so with all {len(bad)} masks; nothing can be learned from them")
    _without(one, bad)
    return one


def _by(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def _without(one: _Set, bad: Mapping[Path, str]) -> None:
    """Leave masks and their images aside, with the reason."""
    hit = [path for path in one.masks if path in bad]
    if not hit:
        return
    one.lines.append(
        f"{one.options['masks']}: {len(hit)} masks are left aside with their images: {hit[0].name} ({bad[hit[0]]})"
        + ("".join(f", {path.name}" for path in hit[1:3]))
    )
    one.pairs = [pair for pair, path in zip(one.pairs, one.masks) if path not in bad]
    one.listed = True


def _beside(masks: Path) -> list[Path]:
    """Small text files beside a mask folder, or above it, that may name the classes."""
    places = [masks, masks.parent, masks.parent.parent]
    return [
        place / name
        for place in places
        for name in files_below(place, frozenset({".txt", ".csv", ".names"}), deep=False)
    ]


def _parts(sets: dict[str, _Set], train: str, target: Path, wishes: Wishes, lines: list[str]) -> dict[Path, str]:
    """Split what has no ``val``; lists of the pairs, where they are needed."""
    files: dict[Path, str] = {}
    if "val" not in sets:
        whole = sets.pop(train)
        *parts, together = split_images(whole.images, wishes.seed)
        lines += together
        for role, rows in zip(("train", "val"), parts):
            pairs = [whole.pairs[i] for i in rows]
            sets[role] = _Set(dict(whole.options), pairs, True, [])
        counts = ", ".join(f"{role} {len(rows)}" for role, rows in zip(("train", "val"), parts))
        lines.append(f"split by seed {wishes.seed}: {counts} images")
    for role, one in sets.items():
        if one.listed:
            path = target.with_name(f"{target.stem}_{role}.txt").absolute()
            one.options["list"] = path
            files[path] = "".join(f"{pair.image}\t{pair.mask}\n" for pair in one.pairs)
    return files
