"""Labels that are probably wrong, as a file: of boxes a COCO file that annotation tools open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densekit import build
from densekit.files import printable
from densekit.metrics.label_errors import Suspect
from densekit.types import Dataset


def as_json(suspects: Sequence[Suspect], data: Dataset) -> Any:
    """A COCO file of boxes; of whole images a list with ``file``, ``was``, ``probably`` and ``score``."""
    if data.task == "detection":
        return as_coco(suspects, data)
    names, files = data.classes.names, build.file_names(data, [one.image for one in suspects])
    return [
        {
            "file": printable(file),
            "was": names[one.was or 0],
            "probably": names[one.label],
            "score": round(one.score, 4),
        }
        for file, one in zip(files, suspects)
    ]


def as_coco(suspects: Sequence[Suspect], data: Dataset) -> dict[str, Any]:
    """Only what is to be looked at: the images that have something, and a box each.

    Args:
        suspects: the most probable first.
        data: that they are of.

    Returns:
        A COCO file. Annotations have ``kind`` and ``score`` beside COCO's keys, ``was`` (the category that they are
        annotated as) and ``annotation_id`` (of the original); these are null where nothing is annotated.
    """
    file: Any = data.file  # type: ignore[attr-defined]  # detectors are evaluated on COCO's columns
    places = {file.image_id(i): i for i in range(len(file))}
    ids = list(dict.fromkeys(one.image for one in suspects))
    classes = data.classes
    images = []
    for image_id, name in zip(ids, build.file_names(data, ids)):
        height, width = (int(side) for side in file.sizes[places[image_id]])
        images.append({"id": image_id, "file_name": printable(Path(name).name), "height": height, "width": width})
    rows = []
    for number, one in enumerate(suspects, 1):
        original = None
        if one.row is not None:
            original = file.annotation_id(int(file.first[places[one.image]]) + one.row)
        rows.append(
            {
                "id": number,
                "image_id": one.image,
                "category_id": classes.ids[one.label],
                "bbox": [round(float(v), 2) for v in one.box],
                "area": round(float(one.box[2] * one.box[3]), 2),
                "iscrowd": 0,
                "kind": one.kind,
                "score": round(one.score, 4),
                "was": None if one.was is None else classes.ids[one.was],
                "annotation_id": original,
            }
        )
    categories = [{"id": i, "name": name} for i, name in zip(classes.ids, classes.names)]
    return {"images": images, "annotations": rows, "categories": categories}
