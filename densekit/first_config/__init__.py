"""A first config for a folder of images and labels: what was found, and settings chosen from it by a short rule.

The rule, all of which is printed and written into the YAML:

* **task**: what the labels are for: boxes, masks, or a folder a class. Outlines are learned as boxes, and as masks
  where the task is said to be segmentation.
* **split**: the folder's own. Without a ``val``, a fifth of the training images, drawn by the seed, of classes class by
  class; files of the same bytes, Roboflow's copies of one picture (``name.rf.*``), and pictures that the doctor takes
  for one scene, stay together. Scenes are looked for among 3,000 images at most.
* **size**: for boxes the long side at which the smallest twentieth of them begins at 16 px, from 320 to the images'
  own, at most 640 on a CPU and 1333 on a GPU; for masks the images' own, at most 512 and 1024; for classes the images'
  own, at most 224; a multiple of 32.
* **anchors**: one size a level and three ratios, centres of the boxes' sizes and shapes at that size.
* **batch**: 8, at most half of the training images. **epochs**: 1,500 steps of it, from 10 to 200 epochs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import yaml

from densekit.config import Config, parse
from densekit.console import say
from densekit.data.formats.recognise import recognise
from densekit.files import write_text
from densekit.first_config import boxes, folders, masks, polygons
from densekit.first_config.plan import Plan, named, tree_of
from densekit.first_config.wishes import Wishes
from densekit.model import build_model
from densekit.types import Classes, DensekitError, Task

__all__ = ["Wishes", "config_of_folder", "write_first_config"]


def write_first_config(folder: Path, target: Path, wishes: Wishes) -> list[str]:
    """Write a YAML for a folder, and the lists of a split beside it.

    Args:
        folder: images and labels; see ``recognise``.
        target: the YAML.
        wishes: what is not left to the rule.

    Returns:
        Lines on what was found and chosen.

    Raises:
        DensekitError: the folder is no data set, a label is bad, or the YAML is there already.
    """
    if target.exists():
        raise DensekitError(f"{target} is there already; train with it, or give another name by --out")
    found = recognise(folder.absolute(), wishes.source, wishes.task)
    if found.format == "image_folder":
        plan, head = folders.plan(found, target, wishes), "classes"
    elif found.format == "masks":
        plan, head = masks.plan(found, target, wishes), "masks"
    elif found.task == "segmentation":
        plan, head = polygons.plan(found, target, wishes), "masks"
    else:
        plan, head = boxes.plan(found, target, wishes), "boxes"
    tree = json.loads(json.dumps(tree_of(plan, wishes, head)))  # equal parts apart: no aliases in the YAML
    boxes.fit_anchors(tree, plan)
    _check_head(parse(tree, str(target)), plan, found.task)
    what = f"{found.task}, labels of the format {found.format}"
    lines = [f"{folder}: {what}", *found.notes, *plan.lines, f"classes: {named(plan.classes)}"]
    if plan.channels != 3:
        lines.append(f"channels: {plan.channels}, to which the backbone's first layer is adapted")
    backbone, settings = tree["model"]["backbone"], tree["train"]
    lines += [
        f"model: {plan.head['name']} on {backbone['name']} with weights {backbone['weights']}",
        f"size: long side {plan.size}{boxes.told_anchors(tree)}",
        f"training: {settings['epochs']} epochs of batches of {settings['batch_size']}, adamw, learning rate "
        f"{settings['optimizer']['lr']}, cosine",
    ]
    for path, text in plan.files.items():
        write_text(path, text)
    words = f"# {folder}: labels of the format {found.format}. Written by densekit init.\n"
    write_text(target, words + yaml.safe_dump(tree, sort_keys=False, width=110, allow_unicode=True))
    return [*lines, f"{target}: the config; densekit train {target}"]


def _check_head(config: Config, plan: Plan, task: Task) -> None:
    """Refuse a head that there is not, or that is for another task, before anything is written."""
    classes = Classes.named_in("classes", plan.classes, range(len(plan.classes)))
    with torch.device("meta"):
        built = build_model(config.model, classes)
    if built.task != task:
        raise DensekitError(f"--head {plan.head['name']}: is for {built.task}, and this is {task}; choose another")


def config_of_folder(folder: Path, out: Path | None, wishes: Wishes) -> Path:
    """The config to train on a folder with: written beside the run and told, or the one that is there already.

    Args:
        folder: images and labels.
        out: the run folder; None: ``runs/`` and the folder's name.
        wishes: what is not left to the rule.
    """
    run = out or Path("runs") / folder.absolute().name
    target = run.with_name(f"{run.name}.yaml")
    if target.exists():
        unused = " with these options" if wishes != Wishes() else ""
        say(f"{target} is there and is used as it is; remove it to look at {folder} anew{unused}")
        return target
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise DensekitError(f"{folder}: several ranks can't each write a config; run densekit init {folder} first")
    for line in write_first_config(folder, target, wishes):
        say(line)
    return target
