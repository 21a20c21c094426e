"""A first config for a folder of images and boxes: what was found, and settings chosen from it by a short rule.

The rule, all of which is printed and written into the YAML:

* **split**: the folder's own. Without a ``val``, a fifth of the training images, drawn by the seed; files of the same
  bytes, and Roboflow's copies of one picture (``name.rf.*``), stay together. Near-duplicates are not looked for.
* **size**: the long side at which the smallest twentieth of the boxes begins at 16 px, from 320 to the images' own, at
  most 640 on a CPU and 1333 on a GPU, a multiple of 32.
* **anchors**: one size a level and three ratios, centres of the boxes' sizes and shapes at that size.
* **batch**: 8, at most half of the training images. **epochs**: 1,500 steps of it, from 10 to 200 epochs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from densekit.config import parse
from densekit.console import say
from densekit.data.formats.coco.coco import CocoDataset
from densekit.data.formats.coco.write import content_of
from densekit.data.formats.labels.records import Found
from densekit.data.formats.recognise import recognise
from densekit.doctor.boxes.anchors import anchors_of, fitting_anchors
from densekit.errors import DensekitError
from densekit.files import write_text
from densekit.registry import DATASETS

_SMALLEST = 16  # pixels that a small box should have after resizing
_STEPS = 1500
_PART = 0.2  # of the images that are kept for validation


@dataclasses.dataclass(frozen=True, slots=True)
class Wishes:
    """What the user decides; None: by the rule.

    Attributes:
        source: format of the labels.
        classes: names of the classes, in label order.
        backbone: name of the backbone.
        weights: that it starts from; ``none`` for random numbers.
        size: long side of the images.
        epochs: passes over the training images.
        minutes: to train at most.
        seed: of the split and of the run.
    """

    source: str | None = None
    classes: Sequence[str] | None = None
    backbone: str = "resnet18"
    weights: str = "torchvision/IMAGENET1K_V1"
    size: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    seed: int = 0


def write_first_config(folder: Path, target: Path, wishes: Wishes) -> list[str]:
    """Write a YAML for a folder, and the lists of a split beside it.

    Args:
        folder: images and labels; see ``recognise``.
        target: the YAML.
        wishes: what is not left to the rule.

    Returns:
        Lines on what was found and chosen.

    Raises:
        DensekitError: the folder is no detection set, a label is bad, or the YAML is there already.
    """
    if target.exists():
        raise DensekitError(f"{target} is there already; train with it, or give another name by --out")
    found = recognise(folder.absolute(), wishes.source)
    data = {role: _built(found, role, wishes) for role in found.splits}
    lines = [f"{folder}: detection, labels of the format {found.format}", *found.notes]
    lines += dict.fromkeys(note for one in data.values() for note in one.notes)
    for role, one in data.items():
        lines.append(f"{role or 'images'}: {len(one)} images, {len(one.file.labels)} objects")
    parts, files, train = _parts(found, data, target, wishes)
    if files:
        lines.append(f"split by seed {wishes.seed}: " + ", ".join(f"{path} ({n})" for path, (_, n) in files.items()))
    tree = json.loads(json.dumps(_tree(parts, data[train], files, wishes)))  # equal parts apart: no aliases in the YAML
    parse(tree, str(target))
    lines += _chosen(tree, data[train])
    for path, (text, _) in files.items():
        write_text(path, text)
    words = f"# {folder}: labels of the format {found.format}. Written by densekit init.\n"
    write_text(target, words + yaml.safe_dump(tree, sort_keys=False, width=110))
    return [*lines, f"{target}: the config; densekit train {target}"]


def config_of_folder(folder: Path, out: Path | None) -> Path:
    """The config to train on a folder with: written beside the run and told, or the one that is there already.

    Args:
        folder: images and labels.
        out: the run folder; None: ``runs/`` and the folder's name.
    """
    run = out or Path("runs") / folder.absolute().name
    target = run.with_name(f"{run.name}.yaml")
    if target.exists():
        say(f"{target} is there and is used; remove it to look at {folder} anew")
        return target
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise DensekitError(f"{folder}: several ranks can't each write a config; run densekit init {folder} first")
    for line in write_first_config(folder, target, Wishes()):
        say(line)
    return target


def _built(found: Found, role: str, wishes: Wishes) -> CocoDataset:
    options = _options(found, role, wishes)
    data: CocoDataset = DATASETS.build(found.format, options, path=f"data.{role or 'train'}")
    return data


def _options(found: Found, role: str, wishes: Wishes) -> dict[str, Any]:
    chosen = {} if wishes.classes is None else {"classes": list(wishes.classes)}
    return {**found.splits[role], **chosen}


_Files = dict[Path, tuple[str, int]]
"""Files of a split to be written: text and number of images."""


def _parts(
    found: Found, data: dict[str, CocoDataset], target: Path, wishes: Wishes
) -> tuple[dict[str, dict[str, Any]], _Files, str]:
    """The data sets of the YAML, the files of a split, and the split of the folder that is learned from."""
    train = "train" if "train" in data else ""
    if train not in data:
        raise DensekitError(f"there are {', '.join(data)}, but nothing to train on; call one folder train")
    parts = {role or "train": {"name": found.format, **_options(found, role, wishes)} for role in data}
    if wishes.classes is None and data[train].ids_are_positions:
        names = sorted({name for one in data.values() for name in one.classes.names})
        for part in parts.values():
            part["classes"] = names
    files: _Files = {}
    if "val" not in data:
        kept, held = _split(data[train], wishes.seed)
        base = parts["train"]
        for role, rows in (("train", kept), ("val", held)):
            path = target.with_name(f"{target.stem}_{role}{'.json' if found.format == 'coco' else '.txt'}").absolute()
            key = "annotations" if found.format == "coco" else "list"
            parts[role] = {**{k: v for k, v in base.items() if k != "split" or found.format == "yolo"}, key: path}
            files[path] = (_listing(data[train], rows, found.format), len(rows))
    ordered = {role: parts[role] for role in ("train", "val", "test") if role in parts}
    return {role: {k: _plain(v) for k, v in part.items()} for role, part in ordered.items()}, files, train


def _plain(value: Any) -> Any:
    """As YAML has it."""
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


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


def _split(data: CocoDataset, seed: int) -> tuple[list[int], list[int]]:
    """Positions to learn from and to validate on; what shows the same picture stays together."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(_pictures(data)):
        groups[key].append(i)
    if len(groups) < 2:
        raise DensekitError(f"{data.folder}: {len(groups)} different images can't be split; give a val set too")
    order = np.random.default_rng(seed).permutation(len(groups))
    several, wanted = list(groups.values()), max(1, round(_PART * len(data)))
    held: list[int] = []
    for at in order.tolist()[:-1]:
        if len(held) >= wanted:
            break
        held += several[at]
    chosen = set(held)
    return [i for i in range(len(data)) if i not in chosen], sorted(held)


def _pictures(data: CocoDataset) -> list[str]:
    """What tells each picture: the name before ``.rf.``, and for files of one size their bytes."""
    paths = [data.path(i) for i in range(len(data))]
    sizes = [os.path.getsize(path) if path.is_file() else -1 for path in paths]
    count: defaultdict[int, int] = defaultdict(int)
    for size in sizes:
        count[size] += 1
    keys = []
    for path, size in zip(paths, sizes):
        if ".rf." in path.name:
            keys.append(path.name.partition(".rf.")[0])
        elif size >= 0 and count[size] > 1:
            keys.append(hashlib.blake2b(path.read_bytes()).hexdigest())
        else:
            keys.append(str(path))
    return keys


def _tree(parts: dict[str, Any], train: CocoDataset, files: _Files, wishes: Wishes) -> dict[str, Any]:
    """The config."""
    boxes, sizes = _usable(train)
    size = wishes.size or _size(boxes, sizes)
    count = next(iter(files.values()))[1] if files else len(train)
    batch = max(1, min(8, count // 2))
    epochs = wishes.epochs or int(np.clip(round(_STEPS * batch / count), 10, 200))
    resize = {"name": "Resize", "long": size}
    weights = None if wishes.weights == "none" else wishes.weights
    flip = {"name": "HorizontalFlip", "p": 0.5}
    colour = {"name": "RandomBrightnessContrast", "brightness_limit": 0.2, "contrast_limit": 0.2, "p": 0.5}
    head: dict[str, Any] = {
        "name": "faster_rcnn",
        "neck": "fpn",
        "channels": 128,
        "samples": 128,
        "rpn_before_nms": [1000, 500],
        "rpn_after_nms": [500, 300],
    }
    tree = {
        "seed": wishes.seed,
        "model": {
            "backbone": {"name": wishes.backbone, "weights": weights, "norm": "batch"},
            "heads": {"boxes": head},
        },
        "data": {**parts, "train_transforms": [resize, flip, colour], "eval_transforms": [resize]},
        "train": {
            "epochs": epochs,
            "batch_size": batch,
            "optimizer": {"name": "adamw", "lr": 4e-4 if weights else 1e-3, "weight_decay": 0.05},
            "schedule": {"name": "cosine", "warmup": 50, "end": 0.01},
            "clip": 5.0,
            "ema": 0.995,
            **({} if wishes.minutes is None else {"max_minutes": wishes.minutes}),
        },
        "evaluation": {"every": max(1, int(epochs) // 10), "metric": "AP", "batch_size": 8},
    }
    levels = anchors_of(parse(tree, "the config").model)
    assert levels is not None
    fitting = fitting_anchors(boxes * (size / sizes.max(1))[:, None], levels)
    head |= {"anchor_sizes": [list(level) for level in fitting.sizes], "anchor_ratios": list(fitting.ratios)}
    return tree


def _usable(train: CocoDataset) -> tuple[Any, Any]:
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


def _chosen(tree: dict[str, Any], train: CocoDataset) -> list[str]:
    """Lines on the settings."""
    head, settings = tree["model"]["heads"]["boxes"], tree["train"]
    names, backbone = train.classes.names, tree["model"]["backbone"]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return [
        f"classes: {', '.join(names[:10])}{more}",
        f"model: faster_rcnn on {backbone['name']} with weights {backbone['weights']}",
        f"size: long side {tree['data']['eval_transforms'][0]['long']}; anchors {head['anchor_sizes']}, ratios "
        f"{head['anchor_ratios']}",
        f"training: {settings['epochs']} epochs of batches of {settings['batch_size']}, adamw, learning rate "
        f"{settings['optimizer']['lr']}, cosine",
    ]
