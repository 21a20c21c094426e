"""Ids and names of a COCO file: unique, known, and meaning one thing."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from densekit.doctor.reader import CocoContent
from densekit.doctor.report import Defect, shown


def check_ids(content: CocoContent) -> Iterator[Defect]:
    """Whatever is wrong with ids and names of images, categories and annotations."""
    yield from _images(content)
    yield from _category_ids(content)
    yield from _category_names(content)
    yield from _annotation_ids(content)
    yield from _references(content)


def _images(content: CocoContent) -> Iterator[Defect]:
    listed: dict[str, int] = {}
    for image in content.images:
        first = content.image_of[image.id]
        if first is not image:
            message = f"image id {shown(image.id)} is also that of {shown(first.name)}"
            yield Defect("image-id-duplicate", image.name, message)
            continue
        name = posixpath.normpath(image.name)
        if name in listed:
            message = f"image ids {shown(listed[name])} and {shown(image.id)} have the same file"
            yield Defect("image-listed-twice", image.name, message)
        listed.setdefault(name, image.id)


def _category_ids(content: CocoContent) -> Iterator[Defect]:
    file = str(content.path)
    for category in content.categories:
        first = content.category_of[category.id]
        if first is not category:
            message = f"category id {category.id} stands for {shown(first.name)} and {shown(category.name)}"
            yield Defect("category-id-duplicate", file, message)
    ids = sorted(content.category_of)
    if 0 in ids:
        yield Defect("category-id-zero", file, f"category id 0 is {shown(content.category_of[0].name)}")
    if ids and ids[-1] - ids[0] + 1 != len(ids):
        yield Defect("category-id-gaps", file, f"{len(ids)} category ids from {ids[0]} to {ids[-1]}")


def _category_names(content: CocoContent) -> Iterator[Defect]:
    names: dict[str, str] = {}
    for category in content.category_of.values():
        key = "".join(category.name.split()).casefold()
        other = names.setdefault(key, category.name)
        if other is category.name:
            continue
        if other == category.name:
            yield Defect("category-name-duplicate", str(content.path), f"two categories are named {shown(other)}")
        else:
            message = f"{shown(other)} and {shown(category.name)} differ by case or blanks alone"
            yield Defect("category-name-similar", str(content.path), message)


def _annotation_ids(content: CocoContent) -> Iterator[Defect]:
    seen: dict[int | str, int] = {}
    for annotation in content.annotations:
        if annotation.id is None:
            continue
        image = content.image(annotation)
        file = image.name if image else str(content.path)
        if annotation.id in seen:
            message = f"annotations {seen[annotation.id]} and {annotation.place} (counted from 0) have this id"
            yield Defect("annotation-id-duplicate", file, message, annotation.id)
        elif annotation.id == 0:
            yield Defect("annotation-id-zero", file, "annotation id is 0", annotation.id)
        seen.setdefault(annotation.id, annotation.place)


def _references(content: CocoContent) -> Iterator[Defect]:
    for annotation in content.annotations:
        written = content.tree["annotations"][annotation.place]
        image = content.image(annotation)
        if image is None:
            message = f"image_id {shown(written.get('image_id'))} is not among the images"
            yield Defect("annotation-image-unknown", str(content.path), message, annotation.id)
        if annotation.category_id not in content.category_of:
            message = f"category_id {shown(written.get('category_id'))} is not among the categories"
            yield Defect(
                "annotation-category-unknown", image.name if image else str(content.path), message, annotation.id
            )
