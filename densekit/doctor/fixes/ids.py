"""What ``--fix`` does about ids that occur twice, are of another kind, or point nowhere."""

from __future__ import annotations

from densekit.doctor.defects import Defect
from densekit.doctor.fixes.correction import Correction


def id_kind(c: Correction, defect: Defect) -> None:
    """A new id of the usual kind; the annotations of an image follow it."""
    image = c.images[defect.row]
    new = c.new_id(text=not isinstance(image.id, str))
    c.set("images", image.row, "id", new, defect)
    for annotation in c.own(image.id):
        c.set("annotations", annotation.row, "image_id", new, defect)


def image_id_twice(c: Correction, defect: Defect) -> None:
    """The same file again goes; of two files neither is sure of its annotations."""
    image = c.images[defect.row]
    first = c.rows.images_by_id[image.id]
    c.drop("images", image.row, defect)
    if first.file_name != image.file_name:
        c.drop_image(first, defect)


def file_name_twice(c: Correction, defect: Defect) -> None:
    """One entry, with the annotations of both."""
    image = c.images[defect.row]
    first = c.first_of_file[image.file_name]
    for annotation in c.own(image.id):
        c.set("annotations", annotation.row, "image_id", first.id, defect)
    c.drop("images", image.row, defect)


def annotation_id_twice(c: Correction, defect: Defect) -> None:
    """The same annotation again goes; another one gets a new id."""
    entry = c.entry("annotations", defect.row)
    first = c.first_of_id[entry["id"]]
    if c.entry("annotations", first.row) == entry:
        c.drop("annotations", defect.row, defect)
    else:
        c.set("annotations", defect.row, "id", c.new_id(text=isinstance(entry["id"], str)), defect)


def category_id_twice(c: Correction, defect: Defect) -> None:
    """The same category again goes; of two names a person must say which is meant."""
    category = c.categories[defect.row]
    first = next(k for k in c.rows.categories if k.id == category.id)
    if first.name == category.name:
        c.drop("categories", category.row, defect)


def category_name_twice(c: Correction, defect: Defect) -> None:
    """One category, with the annotations of both."""
    category = c.categories[defect.row]
    first = next(k for k in c.rows.categories if k.name == category.name)
    for annotation in c.rows.annotations:
        if annotation.category_id == category.id:
            c.set("annotations", annotation.row, "category_id", first.id, defect)
    c.drop("categories", category.row, defect)


def unknown_image(c: Correction, defect: Defect) -> None:
    """The image whose file the ``image_id`` names, with or without folder and ending; else the annotation goes."""
    meant = c.images_by_name.get(str(c.annotations[defect.row].image_id))
    if meant is None:
        c.drop("annotations", defect.row, defect)
    else:
        c.set("annotations", defect.row, "image_id", meant.id, defect)
