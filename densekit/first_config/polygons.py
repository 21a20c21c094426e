"""A segmenter's first config from labels of objects: outlines of COCO, YOLO or LabelMe are drawn into masks.

``coco_masks`` does the drawing; labels of other programs are written as COCO json beside the config first.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from densekit.data.formats.coco.coco import CocoDataset
from densekit.data.formats.coco.write import content_of
from densekit.data.formats.labels.records import Found
from densekit.first_config.boxes import opened, options_of, told_sets
from densekit.first_config.plan import Plan, training_role
from densekit.first_config.segmenter import segmenter
from densekit.first_config.split import split_images
from densekit.first_config.wishes import Wishes
from densekit.types import DensekitError

_BACKGROUND = "background"


def plan(found: Found, target: Path, wishes: Wishes) -> Plan:
    """What is learned from outlines."""
    data = opened(found, wishes)
    train = training_role(list(data))
    lines = told_sets(data)
    contents = {role: content_of(one.file, own_ids=found.format == "coco") for role, one in data.items()}
    for role, content in contents.items():
        lines += _outlined(content, data[role], found.format)
    if all(one.file.crowd.all() for one in data.values()):
        raise DensekitError(f"{data[train].file.path}: there is no object to learn from; label some images")
    paths = [data[train].path(i) for i in range(len(data[train]))]
    written = dict(contents) if found.format != "coco" else {}
    folder = {role: one.folder for role, one in data.items()}
    if "val" not in data:
        *rows, together = split_images(paths, wishes.seed)
        lines += together
        whole = contents[train]
        written.pop(train, None)
        for role, some in zip(("train", "val"), rows):
            written[role] = _subset(whole, {whole["images"][i]["id"] for i in some})
            folder[role] = data[train].folder
        lines.append(f"split by seed {wishes.seed}: train {len(rows[0])}, val {len(rows[1])} images")
        paths = [paths[i] for i in rows[0]]
    names = data[train].classes.names
    background = "rest" if _BACKGROUND in names else _BACKGROUND
    parts, files = dict[str, dict[str, Any]](), dict[Path, str]()
    for role in dict.fromkeys(("train", *(role for role in data if role), "val")):
        base = options_of(found, role if role in found.splits else train, wishes) if found.format == "coco" else {}
        if role in written:
            path = target.with_name(f"{target.stem}_{role}.json").absolute()
            files[path] = json.dumps(written[role])
            base = {**base, "images": folder[role], "annotations": path}
        parts[role] = {"name": "coco_masks", **base, "background": background}
    lines.append(f"outlines are drawn into masks, the largest first; what none covers is {background}")
    return segmenter(parts, files, lines, (background, *names), paths, wishes)


def _outlined(content: dict[str, Any], data: CocoDataset, kind: str) -> list[str]:
    """Lines on rectangles of LabelMe, which get the outline that they are.

    Raises:
        DensekitError: objects have boxes alone.
    """
    bare = [row for row in content["annotations"] if "segmentation" not in row]
    if not bare:
        return []
    if kind != "labelme":
        total = len(content["annotations"])
        raise DensekitError(
            f"{data.file.path}: {len(bare)} of {total} objects have a box and no outline, so masks can't be drawn; "
            f"outline them, or learn their boxes by --task detection"
        )
    for row in bare:
        x, y, width, height = row["bbox"]
        row["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    return [f"{data.file.path}: {len(bare)} rectangles are drawn as rectangles"]


def _subset(content: dict[str, Any], ids: Collection[int | str]) -> dict[str, Any]:
    """The images of these ids, and what is annotated in them."""
    images = [image for image in content["images"] if image["id"] in ids]
    return {**content, "images": images, "annotations": [a for a in content["annotations"] if a["image_id"] in ids]}
