"""A model with two heads of other classes on one backbone, as a checkpoint, and each of its heads alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from densekit import build
from densekit import config as configs
from densekit.engine import checkpoint
from densekit.model import DenseModel, build_model
from densekit.types import Classes
from tests.tools import runs

CLASSES = {"boxes": Classes(("cell", "platelet"), (17, 90)), "masks": Classes(("rest", "gland", "duct"), (3, 5, 200))}


def two_heads(data: Path) -> dict[str, Any]:
    """The config of a run, with random weights that find something."""
    tree = runs.config_of("detection", data)
    boxes, masks = (runs.config_of(task, data)["model"]["heads"]["main"] for task in ("detection", "segmentation"))
    tree["model"]["heads"] = {"boxes": {**boxes, "score_threshold": 0.0}, "masks": masks}
    return tree


def write_joint(path: Path, tree: dict[str, Any], classes: dict[str, Classes] = CLASSES, **content: Any) -> DenseModel:
    """A checkpoint with new weights of a config with several heads; as a rule ``boxes`` and ``masks``."""
    config = configs.parse(tree, "test")
    torch.manual_seed(5)
    model = build_model(config.model, classes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save(path, model, config, list(model.heads), **content)
    return model


def classes_in(tree: dict[str, Any]) -> dict[str, Classes]:
    """The classes that the data sets of a config have for its heads."""
    config = configs.parse(tree, "test")
    found: dict[str, Classes] = {}
    for own in map(config.of_set, config.sets):
        found |= build.classes_of(own, build.dataset(own, "val", training=False))
    return found


def write_alone(path: Path, model: DenseModel, tree: dict[str, Any], head: str) -> Path:
    """The same weights without the other head."""
    own = {**tree, "model": {**tree["model"], "heads": {head: tree["model"]["heads"][head]}}}
    save(path, model, configs.parse(own, "test"), [head])
    return path


def save(path: Path, model: DenseModel, config: Any, heads: list[str], **content: Any) -> None:
    """Write a checkpoint of some heads."""
    kept = tuple(f"heads.{head}." for head in heads)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("heads.") or k.startswith(kept)}
    classes = checkpoint.with_classes({head: model.classes_of(head) for head in heads})
    held = {"config": config.model_dump(mode="json"), **classes, "model": state, **content}
    checkpoint.save(path, held)
