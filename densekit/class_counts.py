"""How often each class occurs in training, written into the options of the heads whose loss weighs classes by it."""

from __future__ import annotations

import numpy as np

from densekit.config import Config, Part
from densekit.data.formats.joint import parts_of
from densekit.data.sampling.occurrences import occurrences_of
from densekit.epochs import repeats
from densekit.registry import HEADS
from densekit.types import Dataset

COUNTED = {"federated": "images", "seesaw": "objects"}
"""What is counted, by ``class_loss``."""


def with_class_counts(config: Config, train_set: Dataset) -> tuple[Config, list[str]]:
    """The config with ``class_counts`` of each head that needs them and has none, and a line for each.

    The config goes into the run folder and the checkpoint, so that a resumed run and an evaluation have the same.

    Raises:
        DensekitError: a data set that doesn't tell its images' classes.
    """
    heads, lines = dict(config.model.heads), []
    for name in config.learning:
        part = config.model.heads[name]
        kind = part.options.get("class_loss")
        if "class_counts" not in HEADS.options(part.name) or part.options.get("class_counts") or kind not in COUNTED:
            continue
        counts = _counts(config, train_set, COUNTED[kind])
        heads[name] = Part(name=part.name, **{**part.options, "class_counts": counts})
        lines.append(
            f"model.heads.{name}.class_counts: {COUNTED[kind]} of each of {len(counts)} classes in data.train: "
            f"{min(counts)} to {max(counts)}"
        )
    return config.model_copy(update={"model": config.model.model_copy(update={"heads": heads})}), lines


def _counts(config: Config, train_set: Dataset, what: str) -> list[int]:
    """[K] images with an object of each class; or objects, as often as an epoch shows them."""
    boxes = parts_of(train_set).get("detection", train_set)
    found = occurrences_of(boxes, config.data.train.name, "class_loss", "give class_counts")
    classes, shown = len(boxes.classes), repeats(config, train_set)
    if what == "images":
        return [int(n) for n in np.bincount(found.once().labels, minlength=classes)]
    weights = None if shown is None else shown[found.images]
    return [round(float(n)) for n in np.bincount(found.labels, weights, minlength=classes)]
