"""Ids, references and names of a COCO file: what occurs twice, points nowhere, or differs by case or blanks only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from densekit.data.images.names import folded
from densekit.data.images.read import leaves_folder
from densekit.doctor.coco.rows import CocoRows, ImageRow, annotation_defect, image_defect
from densekit.doctor.defects import Defect
from densekit.errors import nearest

Row = TypeVar("Row")
Key = TypeVar("Key", bound=Hashable)


def identity_defects(rows: CocoRows) -> Iterator[Defect]:
    """All of this file's checks."""
    yield from id_kinds(rows)
    yield from image_ids(rows)
    yield from file_names(rows)
    yield from category_ids(rows)
    yield from category_names(rows)
    yield from annotation_ids(rows)
    yield from references(rows)


def id_kinds(rows: CocoRows) -> Iterator[Defect]:
    """Ids of images that are texts where most are numbers, or the other way round."""
    for image in _minority(rows.images):
        yield image_defect(
            rows, image, "id_kind", f"images[{image.row}]: the id {image.id!r} is unlike most", show=True
        )


def _minority(rows: Sequence[ImageRow]) -> list[ImageRow]:
    texts = [row for row in rows if isinstance(row.id, str)]
    return texts if 2 * len(texts) <= len(rows) else [row for row in rows if not isinstance(row.id, str)]


def image_ids(rows: CocoRows) -> Iterator[Defect]:
    """Image ids that occur twice."""
    for first, image in _repeated((i.id, i) for i in rows.images):
        message = f"images[{image.row}]: the id {image.id!r} is that of {first.file_name!r} too"
        yield image_defect(rows, image, "image_id_twice", message, show=True)


def file_names(rows: CocoRows) -> Iterator[Defect]:
    """Names that leave the folder, and names that two entries share."""
    for image in rows.images:
        leaves = leaves_folder(image.file_name) and image.row not in rows.spelled
        if leaves or (rows.folder is not None and rows.place(image) is None):
            message = f"image {image.id!r}: file_name {image.file_name!r} leaves the image folder{_found(rows, image)}"
            yield image_defect(rows, image, "name_leaves_folder", message)
    twice = {image.row for _, image in _repeated((i.id, i) for i in rows.images)}
    for first, image in _repeated((i.file_name, i) for i in rows.images if i.row not in twice):
        message = f"image {image.id!r} has the file {image.file_name!r} of image {first.id!r}"
        yield image_defect(rows, image, "file_name_twice", message, show=True)


def _found(rows: CocoRows, image: ImageRow) -> str:
    return f", which holds {rows.spelled[image.row]!r}" if image.row in rows.spelled else ""


def category_ids(rows: CocoRows) -> Iterator[Defect]:
    """Category ids that occur twice, 0 as an id, and gaps."""
    path = str(rows.path)
    for first, category in _repeated((c.id, c) for c in rows.categories):
        message = f"categories[{category.row}]: {category.name!r} has the id {category.id} of {first.name!r}"
        yield Defect("category_id_twice", path, message, source=path, row=category.row)
    ids = sorted({c.id for c in rows.categories})
    if 0 in ids:
        name = next(c.name for c in rows.categories if c.id == 0)
        yield Defect("category_id_zero", path, f"category {name!r} has the id 0", source=path)
    if ids and len(ids) <= ids[-1] - ids[0]:
        lost = ids[-1] - ids[0] + 1 - len(ids)
        yield Defect("category_id_gaps", path, f"{lost} ids are not used between {ids[0]} and {ids[-1]}", source=path)


def category_names(rows: CocoRows) -> Iterator[Defect]:
    """Names that two categories share, exactly or but for case and blanks."""
    path = str(rows.path)
    twice = {c.row for _, c in _repeated((c.id, c) for c in rows.categories)}
    categories = [c for c in rows.categories if c.row not in twice]
    same = [c.row for _, c in _repeated((c.name, c) for c in categories)]
    for first, category in _repeated((folded(c.name), c) for c in categories):
        code = "category_name_twice" if category.row in same else "category_name_similar"
        message = f"category {category.id} {category.name!r} and category {first.id} {first.name!r}"
        yield Defect(code, path, message, source=path, row=category.row)


def annotation_ids(rows: CocoRows) -> Iterator[Defect]:
    """Annotation ids that occur twice."""
    for first, annotation in _repeated((a.id, a) for a in rows.annotations):
        message = f"annotations[{annotation.row}]: the id {annotation.id!r} is that of annotations[{first.row}] too"
        yield annotation_defect(rows, annotation, "annotation_id_twice", message)


def references(rows: CocoRows) -> Iterator[Defect]:
    """Annotations of images or categories that the file does not have."""
    categories = {c.id for c in rows.categories}
    for annotation in rows.annotations:
        if annotation.image_id in rows.lost:
            continue  # its image is told
        if annotation.image_id not in rows.images_by_id:
            near = nearest(str(annotation.image_id), map(str, list(rows.images_by_id)[:1000]))
            message = f"image_id {annotation.image_id!r} is not among the images; {near}"
            yield annotation_defect(rows, annotation, "unknown_image", message)
        elif annotation.category_id not in categories:
            near = nearest(str(annotation.category_id), map(str, sorted(categories)))
            message = f"category_id {annotation.category_id!r} is not among the categories; {near}"
            yield annotation_defect(rows, annotation, "unknown_category", message)


def empty_images(rows: CocoRows) -> Iterator[Defect]:
    """Images that no annotation belongs to, and classes that no annotation has."""
    used = Counter(a.image_id for a in rows.annotations)
    mentioned = rows.mentioned("image_id")
    twice = {image.row for _, image in _repeated((i.id, i) for i in rows.images)}
    for image in rows.images:
        if not used[image.id] and image.row not in twice and str(image.id) not in mentioned:
            yield image_defect(rows, image, "image_no_annotation", f"image {image.id!r} has no annotation", show=True)


def _repeated(keyed: Iterable[tuple[Key, Row]]) -> Iterator[tuple[Row, Row]]:
    """(first, later) for each row whose key an earlier one has."""
    seen: dict[Key, Row] = {}
    for key, row in keyed:
        first = seen.setdefault(key, row)
        if first is not row:
            yield first, row
