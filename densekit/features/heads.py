"""Heads trained from a store: is it the right store, and how backbone and head become one checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from densekit.backbones.describe import stages_of
from densekit.config_data import named_sets
from densekit.data.formats.feature_set import pixels_of, store_of
from densekit.data.loading.batching import collate
from densekit.errors import DensekitError
from densekit.features.recipe import fingerprint
from densekit.model import DenseModel
from densekit.types import Dataset

_MOST_ERROR = 0.1
"""Relative error up to which stored maps count as the same: bf16 gives 0.01 to 0.03, another image 0.5 and more."""


def check_store(
    model: DenseModel, dataset: Dataset, *, weights: str | None, precision: str = "auto", learning: bool = True
) -> None:
    """Refuse stored features that the model's own backbone would not give; data sets of pixels pass.

    Args:
        model: with the weights that training starts from.
        dataset: any.
        weights: where the model's backbone weights come from, for messages.
        precision: that the config asks for. A store made in bf16 or fp16 is refused where this is ``fp32``; ``auto``
            takes any, and a store made in fp32 suits all.
        learning: the model is to be trained on the data set, so its backbone must not be meant to learn.

    Raises:
        DensekitError: other weights, another precision, a backbone that learns, a head that looks at a level that is
            not stored, or maps that are not those of the data set's images (another image of the same name).
    """
    store = store_of(dataset)
    if store is None:
        return
    recipe, made = store.manifest["recipe"], store.manifest["made"]
    own, theirs = fingerprint(model), recipe["backbone"]["fingerprint"]
    if own != theirs:
        raise DensekitError(
            f"{store.path} holds features of {recipe['backbone']['name']} with {_named(made.get('weights'))} "
            f"(fingerprint {theirs[:12]}), but the model has {getattr(model.backbone, 'name', 'a backbone')} with "
            f"{_named(weights)} (fingerprint {own[:12]}); give the same backbone, weights, seed and normalize, or "
            f"export again"
        )
    if precision == "fp32" and recipe["precision"] != "fp32":
        raise DensekitError(
            f"{store.path} was computed in {recipe['precision']}, but train.precision is fp32; export again with "
            f"--precision fp32, or set train.precision to auto"
        )
    if learning and (moving := _what_moves(model)):
        raise DensekitError(
            f"model.backbone: {moving}, but stored features are those of a frozen one; set frozen_stages to "
            f"{max(stages_of(model.backbone, model.channels).values()) + 1} (all)"
        )
    _check_values(model, dataset, str(store.path))
    _check_levels(model, dataset, [level.name for level in store.backbone_levels])


def _named(weights: str | None) -> str:
    return f"weights {weights}" if weights is not None else "random weights"


def _what_moves(model: DenseModel) -> str | None:
    """What of the backbone would change in training."""
    learns = sum(p.numel() for p in model.backbone.parameters() if p.requires_grad)
    if learns:
        return f"{learns / 1e6:.1f} M parameters of the backbone would learn"
    before = model.backbone.training
    model.backbone.train()
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    model.backbone.train(before)
    return f"the statistics of {len(norms)} batch norms would move" if norms else None


@torch.no_grad()
def _check_values(model: DenseModel, dataset: Dataset, name: str) -> None:
    """Compute the maps of the first and the last image and compare: names may be the same where images are not."""
    before = model.training
    model.eval()
    for index in {0, len(dataset) - 1}:
        stored = collate([dataset.sample(0, index)]).maps
        try:
            batch = collate([pixels_of(dataset).sample(0, index)])
        except DensekitError:  # the images need not be there any more
            continue
        assert stored is not None
        for level, own in zip(model.levels, model.features(batch.to(model.mean.device))):
            if level.name not in stored or stored[level.name].shape != own.shape:
                continue  # another padding than the store's has other cells at the edge
            given = stored[level.name].to(own)
            error = float((given - own).norm() / own.norm().clamp(min=1e-12))
            if error > _MOST_ERROR:
                raise DensekitError(
                    f"{name}: {level.name} of image {batch.ids[0]!r} differs by {100 * error:.0f} % from "
                    f"what the model gives for it; the store was made from other images of the same names, export again"
                )
    model.train(before)


@torch.no_grad()
def _check_levels(model: DenseModel, dataset: Dataset, stored: list[str]) -> None:
    """Try one image: a level that is not stored is NaN, and so is all that is made from it."""
    absent = [level.name for level in model.levels if level.name not in stored]
    if not absent:
        return
    before = model.training
    losses = model.eval()(collate([dataset.sample(0, 0)]).to(model.mean.device))
    model.train(before)
    if not all(bool(value.isfinite()) for value in losses.values()):
        raise DensekitError(
            f"the head looks at levels that the store lacks: it holds {', '.join(stored)}, not {', '.join(absent)}; "
            f"export with --levels {','.join(level.name for level in model.levels)}"
        )


def joined_config(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config with every ``features`` data set replaced by the one whose images were exported."""
    sets = {
        name: {key: _unwrapped(value) for key, value in data.items()}
        for name, data in named_sets(config["data"]).items()
    }
    return {**config, "data": sets.get("", sets)}


def _unwrapped(part: Any) -> Any:
    if isinstance(part, dict) and part.get("name") == "features":
        return part["data"]
    return part
