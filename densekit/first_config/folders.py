"""A classifier's first config: a folder a class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from densekit.data.formats.image_folder import ImageFolder
from densekit.data.formats.labels.records import Found
from densekit.first_config.plan import Plan, colour, look_at, named, own_size, training_role
from densekit.first_config.split import split_images
from densekit.first_config.wishes import Wishes
from densekit.registry import DATASETS
from densekit.types import DensekitError


def plan(found: Found, target: Path, wishes: Wishes) -> Plan:
    """What is learned from a folder a class."""
    chosen = {} if wishes.classes is None else {"classes": list(wishes.classes)}
    options = {role: {**given, **chosen} for role, given in found.splits.items()}
    data = {role: _built(role, options[role]) for role in options}
    train = training_role(list(data))
    whole = data[train]
    for one in data.values():
        if more := [name for name in one.classes.names if name not in whole.classes.names]:
            raise DensekitError(
                f"{one.folder}: classes that {whole.folder} lacks: {named(more, 5)}; add images of them"
            )
    lines = [_told(role, one) for role, one in data.items()]
    parts: dict[str, dict[str, Any]] = {role or "train": {"name": "image_folder", **o} for role, o in options.items()}
    paths = [whole.path(i) for i in range(len(whole))]
    files: dict[Path, str] = {}
    count = len(whole)
    if "val" not in data:
        *rows, together = split_images(paths, wishes.seed, whole.labels.tolist())
        lines += together
        for role, some in zip(("train", "val"), rows):
            path = target.with_name(f"{target.stem}_{role}.txt").absolute()
            parts[role] = {"name": "image_folder", **options[train], "list": path}
            files[path] = "".join(f"{whole.names[i]}\n" for i in some)
        count = len(rows[0])
        lines.append(f"split by seed {wishes.seed}, class by class: train {count}, val {len(rows[1])} images")
    channels, sizes = look_at(paths)
    size = wishes.size or own_size(sizes, 224, 224)
    crop = {"name": "RandomResizedCrop", "size": [size, size], "scale": [0.5, 1.0]}
    return Plan(
        parts=parts,
        files=files,
        lines=lines,
        classes=whole.classes.names,
        count=count,
        channels=channels,
        size=size,
        head={"name": wishes.head or "classifier", "label_smoothing": 0.1},
        train_transforms=[crop, {"name": "HorizontalFlip", "p": 0.5}, *colour(channels)],
        eval_transforms=[{"name": "Resize", "height": size, "width": size}],
        learning_rate=(4e-4, 1e-3),
        metric="top1",
    )


def _built(role: str, options: dict[str, Any]) -> ImageFolder:
    data: ImageFolder = DATASETS.build("image_folder", options, path=f"data.{role or 'train'}")
    return data


def _told(role: str, data: ImageFolder) -> str:
    counts = np.bincount(data.labels, minlength=len(data.classes)).tolist()
    some = ", ".join(f"{name} {count}" for name, count in list(zip(data.classes.names, counts))[:10])
    more = f" and {len(counts) - 10} more" if len(counts) > 10 else ""
    return f"{role or 'images'}: {len(data)} images, of {len(counts)} classes: {some}{more}"
