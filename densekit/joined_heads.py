"""Heads of one checkpoint beside those of another, where both stand on the same backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from densekit.added_head import main_number, one_for_all, sets_by_name, together
from densekit.build import with_pixels
from densekit.config import Config, parse
from densekit.engine import checkpoint
from densekit.errors import DensekitError


def join(path: Path, to: Path, name: str | None = None) -> tuple[dict[str, Any], Config]:
    """The content of a checkpoint with the heads of two, and its config.

    Everything of the second one stays as it is: the weights of its heads, their classes and calibration, how it is
    trained. Data sets get a name each, that of their first head where they had none.

    Args:
        path: checkpoint whose heads are joined, trained from stored features or on a frozen backbone.
        to: checkpoint that they are joined to.
        name: of the head that is joined, if it is to have another.

    Raises:
        DensekitError: other backbones or normalisation, heads of one name, or statistics of each data set.
    """
    added, base = _opened(path), _opened(to)
    own, theirs = added[1], base[1]
    names = {head: name or head for head in own.model.heads}
    if name is not None and len(names) > 1:
        raise DensekitError(f"--name {name}: {path} has the heads {', '.join(names)}; --name is for one")
    for head in names.values():
        if head in theirs.model.heads:
            raise DensekitError(f"{to} has a head {head!r} already; give the one that is joined another by --name")
    _check_backbones(added[0]["model"], base[0]["model"], path, to)
    weights = {
        key.replace(f"heads.{head}.", f"heads.{new}.", 1): value
        for head, new in names.items()
        for key, value in added[0]["model"].items()
        if key.startswith(f"heads.{head}.")
    }
    classes = checkpoint.classes_by_head(base[0], theirs.model.heads, to)
    of_added = checkpoint.classes_by_head(added[0], own.model.heads, path)
    known = {**_calibrations(base), **{names[head]: one for head, one in _calibrations(added).items()}}
    first = next(iter(theirs.model.heads))
    config = _config(own, theirs, names, f"{path} joined to {to}")
    return {
        **{key: value for key, value in base[0].items() if key not in ("training", "numbers", "calibration")},
        "config": config.model_dump(mode="json"),
        **checkpoint.with_classes(classes | {names[head]: one for head, one in of_added.items()}),
        "model": {**base[0]["model"], **weights},
        **({"calibration": known[first]} if first in known else {}),
        "calibration_by_head": {head: one for head, one in known.items() if head != first},
    }, config


def _opened(path: Path) -> tuple[dict[str, Any], Config]:
    """A checkpoint, and its config with the images themselves."""
    content = checkpoint.load(path)
    if any(key.startswith("statistics.") for key in content["model"]):
        raise DensekitError(one_for_all(path))
    return content, with_pixels(parse(content["config"], f"the config in {path}"))


def _calibrations(opened: tuple[dict[str, Any], Config]) -> dict[str, Any]:
    content, config = opened
    first = {next(iter(config.model.heads)): content["calibration"]} if content.get("calibration") else {}
    return {**first, **content.get("calibration_by_head", {})}


def _check_backbones(own: dict[str, Any], theirs: dict[str, Any], path: Path, to: Path) -> None:
    """Refuse a head that learned on other maps than it would get."""
    shared = {key for state in (own, theirs) for key in state if not key.startswith("heads.")}
    for key in sorted(shared):
        if key.endswith("num_batches_tracked"):
            continue  # counts batches, and no map depends on it
        if key not in own or key not in theirs or not torch.equal(own[key], theirs[key]):
            raise DensekitError(
                f"{path} and {to} stand on other backbones ({key} differs): only a head that was trained on the frozen "
                f"backbone of {to} can be joined to it; train one by tools/add_head.py, or from stored features"
            )


def _config(own: Config, theirs: Config, names: dict[str, str], source: str) -> Config:
    added, tree = own.model_dump(mode="json"), theirs.model_dump(mode="json")
    heads = {names[head]: part for head, part in added["model"]["heads"].items()}
    sets = together(sets_by_name(theirs), sets_by_name(own, names))
    model = {**tree["model"], "heads": {**tree["model"]["heads"], **heads}}
    evaluation = {**tree["evaluation"], "metric": main_number(theirs)}
    return parse({**tree, "model": model, "data": sets, "evaluation": evaluation}, source)
