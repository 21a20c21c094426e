"""A first config of any task: its data sets and head from the task's own file, the rest by one rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from densekit.data.images.bands import band_count
from densekit.data.images.header import peek
from densekit.first_config.wishes import Wishes
from densekit.types import DensekitError

_STEPS = 1500
_SAMPLES = 20  # images by which channels and sizes are told


@dataclasses.dataclass(slots=True)
class Plan:
    """What a task's file decides.

    Attributes:
        parts: data sets of the config, by split.
        files: to be written beside it.
        lines: on what was found.
        classes: names.
        count: images to learn from.
        channels: of the images.
        size: long side.
        head: name and options.
        train_transforms: of training.
        eval_transforms: of evaluation.
        learning_rate: with and without weights to start from.
        metric: that chooses the best checkpoint.
        boxes: [n, 4] to learn from, in pixels of that size; None where there are none.
    """

    parts: dict[str, dict[str, Any]]
    files: dict[Path, str]
    lines: list[str]
    classes: Sequence[str]
    count: int
    channels: int
    size: int
    head: dict[str, Any]
    train_transforms: list[dict[str, Any]]
    eval_transforms: list[dict[str, Any]]
    learning_rate: tuple[float, float]
    metric: str
    boxes: Any = None


def tree_of(plan: Plan, wishes: Wishes, name: str) -> dict[str, Any]:
    """The config; ``name`` is the head's."""
    batch = max(1, min(8, plan.count // 2))
    epochs = wishes.epochs or int(np.clip(round(_STEPS * batch / plan.count), 10, 200))
    weights = None if wishes.weights == "none" else wishes.weights
    order = [role for role in ("train", "val", "test") if role in plan.parts]
    return {
        "seed": wishes.seed,
        "model": {
            "backbone": {"name": wishes.backbone, "weights": weights, "norm": "batch"},
            "heads": {name: plan.head},
            **({} if plan.channels == 3 else {"channels": plan.channels, "normalize": {"mean": [0.5], "std": [0.25]}}),
        },
        "data": {
            **{role: {key: _plain(value) for key, value in plan.parts[role].items()} for role in order},
            "train_transforms": plan.train_transforms,
            "eval_transforms": plan.eval_transforms,
        },
        "train": {
            "epochs": epochs,
            "batch_size": batch,
            "optimizer": {"name": "adamw", "lr": plan.learning_rate[0 if weights else 1], "weight_decay": 0.05},
            "schedule": {"name": "cosine", "warmup": 50, "end": 0.01},
            "clip": 5.0,
            "ema": 0.995,
            **({} if wishes.minutes is None else {"max_minutes": wishes.minutes}),
        },
        "evaluation": {"every": max(1, int(epochs) // 10), "metric": plan.metric, "batch_size": 8},
    }


def _plain(value: Any) -> Any:
    """As YAML has it."""
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def named(names: Sequence[str], most: int = 10) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def training_role(roles: Sequence[str]) -> str:
    """The split to learn from: ``train``, or the only one of a folder without splits."""
    if "train" in roles:
        return "train"
    if "" not in roles:
        raise DensekitError(f"the splits are {', '.join(roles)}, but none to train on; call one train")
    return ""


def look_at(paths: Sequence[Path]) -> tuple[int, npt.NDArray[np.int64]]:
    """Channels, and [n, 2] sizes (height, width), of a sample of images.

    Raises:
        DensekitError: none can be read, or their channels differ.
    """
    chosen = paths[:: max(1, len(paths) // _SAMPLES)]
    sizes, channels = [], dict[int, Path]()
    for path in chosen:
        if (header := peek(path)) is not None and min(header.size) > 0:
            sizes.append(header.turned_size)
            channels.setdefault(_channels(path), path)
    if not sizes:
        raise DensekitError(f"{chosen[0]}: not an image that can be read, nor are others; convert them to PNG or JPEG")
    if len(channels) > 1:
        (one, first), (two, second) = list(channels.items())[:2]
        raise DensekitError(f"{first} has {one} channels and {second} has {two}; use images of the same channels")
    return next(iter(channels)), np.array(sizes, np.int64)


def _channels(path: Path) -> int:
    """Channels that the model needs: 3 for grey and colour, with alpha or without; else as many as there are."""
    if path.suffix.lower() == ".npy":
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
        bands = shape[2] if len(shape) == 3 else 1
        return 3 if bands == 1 else int(bands)
    if path.suffix.lower() not in (".tif", ".tiff"):
        return 3
    bands = band_count(path.read_bytes())
    if bands == 1:
        bands = _pages(path)
    return bands if bands == 2 or bands > 4 else 3


def _pages(path: Path) -> int:
    """Pages of a TIFF, each of which may be a channel."""
    try:
        with Image.open(path) as image:
            return int(getattr(image, "n_frames", 1))
    except (OSError, ValueError, SyntaxError):
        return 1


def own_size(sizes: npt.NDArray[np.int64], on_cpu: int, on_gpu: int) -> int:
    """The images' own long side, at most so long on a CPU or a GPU, a multiple of 32."""
    most = on_gpu if torch.cuda.is_available() else on_cpu
    return int(np.clip(-(-int(np.median(sizes.max(1))) // 32) * 32, 32, most))


def colour(channels: int) -> list[dict[str, Any]]:
    """The change of brightness and contrast in training; none for other images than grey and colour."""
    jitter = {"name": "RandomBrightnessContrast", "brightness_limit": 0.2, "contrast_limit": 0.2, "p": 0.5}
    return [jitter] if channels == 3 else []
