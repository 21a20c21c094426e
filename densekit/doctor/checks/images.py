"""Image files: there, readable, of the right size, upright, and stored alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from densekit.doctor.pictures import Picture
from densekit.doctor.report import Defect
from densekit.doctor.sources import Item, Split

_KINDS = {
    "palette": ("image-palette", "is stored with a palette"),
    "alpha": ("image-alpha", "has an alpha channel"),
    "16-bit": ("image-16-bit", "has 16 bits a channel"),
}
_TURNS = {
    2: "mirrors it", 3: "turns it by half", 4: "turns it upside down, mirrored", 5: "turns and mirrors it",
    6: "turns it to the right", 7: "turns and mirrors it", 8: "turns it to the left",
}  # fmt: skip


def check_images(split: Split, pictures: Mapping[Path, Picture]) -> Iterator[Defect]:
    """Whatever is wrong with a split's image files; a file that stands twice is told once."""
    files = {item.path: item for item in split.items if item.path is not None}
    found = {path: pictures[path] for path in files}
    grey = [p for p in found.values() if p.kind == "grey"]
    mixed = 0 < len(grey) < len([p for p in found.values() if p.problem is None]) / 2
    for path, picture in found.items():
        item = files[path]
        if picture.problem is not None:
            code, message = picture.problem
            yield Defect(code, item.name, message)
            continue
        yield from _storage(item, picture, mixed)
        yield from _shape(item, picture)
    yield from _without_annotations(split, found)


def _storage(item: Item, picture: Picture, mixed: bool) -> Iterator[Defect]:
    if picture.named and picture.named != picture.format:
        message = f"the name says {picture.named}, the content is {picture.format}"
        yield Defect("image-extension", item.name, message, image=picture.path)
    if picture.kind in _KINDS:
        code, message = _KINDS[picture.kind]
        yield Defect(code, item.name, message, image=picture.path)
    elif picture.kind == "grey" and mixed:
        yield Defect("image-grey", item.name, "is grey, most others have colours", image=picture.path)


def _shape(item: Item, picture: Picture) -> Iterator[Defect]:
    """Size and orientation; a size that only the EXIF tag explains is told as the tag."""
    entry, stored, upright = item.entry, picture.size, picture.upright_size
    if stored is None or upright is None:
        return
    wanted = (entry.height, entry.width) if entry and entry.height and entry.width else None
    if wanted is not None and wanted not in (stored, upright):
        message = f"the file is {_sides(stored)}, the annotations say {_sides(wanted)} (width x height)"
        yield Defect("image-size-differs", item.name, message, image=picture.path)
    elif picture.orientation != 1:
        fits = "as it is stored" if wanted in (None, stored) else "as it is turned"
        message = f"EXIF orientation {picture.orientation} {_TURNS[picture.orientation]}"
        message += f"; the annotations fit it {fits}" if wanted else ""
        yield Defect("image-exif-orientation", item.name, message, image=picture.path)


def _sides(size: tuple[int | None, int | None]) -> str:
    return f"{size[1]} x {size[0]}"


def _without_annotations(split: Split, found: Mapping[Path, Picture]) -> Iterator[Defect]:
    if split.coco is None or not split.coco.annotations:
        return
    annotated = {a.image_id for a in split.coco.annotations}
    for item in split.items:
        if item.entry is None or item.entry.id in annotated or split.coco.image_of[item.entry.id] is not item.entry:
            continue
        readable = item.path is not None and found[item.path].problem is None
        yield Defect("image-without-annotations", item.name, "has no annotation", image=item.path if readable else None)


def openable(items: Sequence[Item]) -> list[Path]:
    """The files of items that may be opened, each once."""
    return list(dict.fromkeys(item.path for item in items if item.path is not None))
