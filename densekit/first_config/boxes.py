"""A detector's first config: labels of boxes, size and anchors from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densekit.config import parse
from densekit.data.formats.coco.coco import CocoDataset
from densekit.data.formats.coco.write import content_of
from densekit.data.formats.labels.records import Found
from densekit.doctor.boxes.anchors import anchors_of, fitting_anchors
from densekit.first_config.plan import Plan, colour, look_at, training_role
from densekit.first_config.split import split_images
from densekit.first_config.wishes import Wishes
from densekit.registry import DATASETS
from densekit.types import DensekitError

_SMALLEST = 16  # pixels that a small box should have after resizing
_FASTER_RCNN = {
    "neck": "fpn",
    "channels": 128,
    "samples": 128,
    "rpn_before_nms": [1000, 500],
    "rpn_after_nms": [500, 300],
}


def plan(found: Found, target: Path, wishes: Wishes) -> Plan:
    """What is learned from labels of boxes."""
    data = opened(found, wishes)
    train = training_role(list(data))
    lines = told_sets(data)
    if (data[train].file.segmentations >= 0).any():
        lines.append("there are outlines too; --task segmentation draws them into masks")
    parts, files = _parts(found, data, target, wishes, lines)
    count = len(data[train])
    if files:
        lines.append(
            f"split by seed {wishes.seed}: " + ", ".join(f"{path} ({n} images)" for path, (_, n) in files.items())
        )
        count = next(iter(files.values()))[1]
    boxes, sizes = usable_boxes(data[train])
    size = wishes.size or _size(boxes, sizes)
    channels, _ = look_at([data[train].path(i) for i in range(len(data[train]))])
    resize, name = {"name": "Resize", "long": size}, wishes.head or "faster_rcnn"
    return Plan(
        parts=parts,
        files={path: text for path, (text, _) in files.items()},
        lines=lines,
        classes=data[train].classes.names,
        count=count,
        channels=channels,
        size=size,
        head={"name": name, **(_FASTER_RCNN if name == "faster_rcnn" else {})},
        train_transforms=[resize, {"name": "HorizontalFlip", "p": 0.5}, *colour(channels)],
        eval_transforms=[resize],
        learning_rate=(4e-4, 1e-3),
        metric="AP",
        boxes=boxes * (size / sizes.max(1))[:, None],
    )


def fit_anchors(tree: dict[str, Any], plan: Plan) -> None:
    """Write anchors that fit the plan's boxes into the config of a detector that has some."""
    levels = None if plan.boxes is None else anchors_of(parse(tree, "the config").model)
    if levels is None:
        return
    fitting = fitting_anchors(plan.boxes, levels)
    for head in tree["model"]["heads"].values():
        head |= {"anchor_sizes": [list(level) for level in fitting.sizes], "anchor_ratios": list(fitting.ratios)}


def told_anchors(tree: dict[str, Any]) -> str:
    """Words on the anchors, where there are some."""
    head = next(iter(tree["model"]["heads"].values()))
    return f"; anchors {head['anchor_sizes']}, ratios {head['anchor_ratios']}" if "anchor_sizes" in head else ""


def opened(found: Found, wishes: Wishes) -> dict[str, CocoDataset]:
    """The data set of each split, all with the same classes where only their names tell these."""
    data = {role: _built(found, role, options_of(found, role, wishes)) for role in found.splits}
    if wishes.classes is None and any(one.ids_are_positions for one in data.values()):
        names = sorted({name for one in data.values() for name in one.classes.names})
        data = {role: _built(found, role, {**found.splits[role], "classes": names}) for role in data}
    return data


def told_sets(data: Mapping[str, CocoDataset]) -> list[str]:
    """Lines on what was read, and how many images and objects there are."""
    lines = list(dict.fromkeys(note for one in data.values() for note in one.notes))
    counts = ((role or "images", len(one), len(one.file.labels)) for role, one in data.items())
    return [*lines, *(f"{role}: {images} images, {objects} objects" for role, images, objects in counts)]


def _built(found: Found, role: str, options: dict[str, Any]) -> CocoDataset:
    data: CocoDataset = DATASETS.build(found.format, options, path=f"data.{role or 'train'}")
    return data


def options_of(found: Found, role: str, wishes: Wishes) -> dict[str, Any]:
    """Options of the data set of a split."""
    chosen = {} if wishes.classes is None else {"classes": list(wishes.classes)}
    return {**found.splits[role], **chosen}


_Files = dict[Path, tuple[str, int]]
"""Files of a split to be written: text and number of images."""


def _parts(
    found: Found, data: dict[str, CocoDataset], target: Path, wishes: Wishes, lines: list[str]
) -> tuple[dict[str, dict[str, Any]], _Files]:
    """The data sets of the YAML, and the files of a split, on which lines are added."""
    train = training_role(list(data))
    parts = {role or "train": {"name": found.format, **options_of(found, role, wishes)} for role in data}
    if wishes.classes is None and data[train].ids_are_positions:
        for part in parts.values():
            part["classes"] = list(data[train].classes.names)
    files: _Files = {}
    if "val" not in data:
        paths = [data[train].path(i) for i in range(len(data[train]))]
        kept, held, together = split_images(paths, wishes.seed)
        lines += together
        base = parts["train"]
        for role, rows in (("train", kept), ("val", held)):
            path = target.with_name(f"{target.stem}_{role}{'.json' if found.format == 'coco' else '.txt'}").absolute()
            key = "annotations" if found.format == "coco" else "list"
            parts[role] = {**{k: v for k, v in base.items() if k != "split" or found.format == "yolo"}, key: path}
            files[path] = (_listing(data[train], rows, found.format), len(rows))
    return parts, files


def _listing(data: CocoDataset, rows: Sequence[int], kind: str) -> str:
    """The images of a part: a COCO json of them, or their names, without folders where that tells them apart."""
    if kind == "coco":
        content = content_of(data.file)
        ids = {data.image_id(i) for i in rows}
        content["images"] = [image for image in content["images"] if image["id"] in ids]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        return json.dumps(content)
    names = list(data.file.file_names)
    last = [name.rpartition("/")[2] for name in names]
    told = last if len(set(last)) == len(last) and kind != "yolo" else names
    return "".join(f"{told[i]}\n" for i in rows)


def usable_boxes(train: CocoDataset) -> tuple[Any, Any]:
    """[n, 4] (x1, y1, x2, y2) of the boxes to learn from, and [n, 2] sizes of their images."""
    file = train.file
    chosen = ~file.crowd
    if not chosen.any():
        raise DensekitError(f"{file.path}: there is no object to learn from; label some images")
    boxes = np.array(file.boxes[chosen], np.float64)
    boxes[:, 2:] += boxes[:, :2]
    return boxes, file.sizes[file.owners[chosen]]


def _size(boxes: Any, sizes: Any) -> int:
    """The long side by the rule."""
    parts = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1)) / sizes.max(1)
    own = -(-int(np.median(sizes.max(1))) // 32) * 32
    most = min(max(320, own), 1333 if torch.cuda.is_available() else 640) // 32 * 32
    wanted = _SMALLEST / float(np.quantile(parts, 0.05, method="lower"))
    return int(np.clip(-(-wanted // 32) * 32, 320, most))
