"""A ``CocoFile`` of any format as the content of a COCO json."""

from __future__ import annotations

from typing import Any

from densekit.data.formats.coco.file import CocoFile


def content_of(file: CocoFile, *, own_ids: bool = True) -> dict[str, Any]:
    """The content of a COCO json.

    Args:
        file: to be written.
        own_ids: keep ids of images and annotations that are texts; False: count them from 1, which every tool reads.

    Returns:
        ``images``, ``annotations`` and ``categories``; ``file_name`` is relative to the image folder.
    """
    numbered = not own_ids and bool(len(file)) and isinstance(file.image_id(0), str)
    counted = not own_ids and bool(len(file.labels)) and isinstance(file.annotation_id(0), str)
    ids = list(range(1, len(file) + 1)) if numbered else [file.image_id(i) for i in range(len(file))]
    images = [
        {"id": own, "file_name": name, "width": width, "height": height}
        for own, name, (height, width) in zip(ids, file.file_names, file.sizes.tolist())
    ]
    columns = zip(
        file.owners.tolist(), file.labels.tolist(), file.boxes.tolist(), file.areas.tolist(), file.crowd.tolist()
    )
    annotations = []
    for a, (owner, label, box, area, crowd) in enumerate(columns):
        row = {
            "id": a + 1 if counted else file.annotation_id(a),
            "image_id": ids[owner],
            "category_id": file.classes.ids[label],
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd),
        }
        if (segmentation := file.segmentation(a)) is not None:
            row["segmentation"] = segmentation
        annotations.append(row)
    categories = [{"id": own, "name": name} for own, name in zip(file.classes.ids, file.classes.names)]
    return {"images": images, "annotations": annotations, "categories": categories}
