"""What decides the bytes of a feature store, written down, compared, and refused where it differs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

import densekit
from densekit.errors import DensekitError, nearest
from densekit.model import DenseModel
from densekit.precision import Precision
from densekit.types import Level

Dtype = Literal["float16", "float32"]
FileFormat = Literal["safetensors", "npy", "parquet"]


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """All that the content of a store follows from; two runs of one recipe give the same bytes.

    Attributes:
        densekit: version.
        backbone: name, ``fingerprint`` of weights and normalisation, levels as [name, channels, stride].
        channels: of the images.
        transform: specs of what is done to the images, ``Resize`` or nothing.
        pad_to: images are padded with zeros to a multiple of this (and of the coarsest stride).
        views: how images are mirrored: ``none``, ``horizontal``, ``vertical``, ``both``.
        levels: what is stored, as asked for: levels of backbone or neck, ``pooled``, ``roi``.
        dtype: of what is stored. precision: of the network's arithmetic. device: ``cpu`` or ``cuda``.
        file_format: of the shards.
        images: number of images and a hash of their names, in order; ``decode`` where the user asked for another way
            than the usual; ``range`` of those that hold more than 8 bits; ``orientation`` where it is not ``exif``.
        boxes: a hash of the boxes for ``roi``.
        shard_images: images a shard. batch_size: images in one pass of the network.
    """

    backbone: dict[str, Any]
    channels: int
    transform: list[dict[str, Any]]
    pad_to: int
    views: list[str]
    levels: list[str]
    dtype: Dtype
    precision: Precision
    device: str
    file_format: FileFormat
    images: dict[str, Any]
    boxes: str | None
    shard_images: int
    batch_size: int
    densekit: str = densekit.__version__

    def as_json(self) -> dict[str, Any]:
        """Plain values, as the manifest holds them."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @property
    def sha256(self) -> str:
        """Identity of the recipe; every shard carries it."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()

    def shards(self) -> int:
        """Number of shards."""
        return -(-int(self.images["count"]) // self.shard_images)

    def shard(self, number: int) -> range:
        """The images of a shard."""
        return range(number * self.shard_images, min((number + 1) * self.shard_images, int(self.images["count"])))


def describe_backbone(model: DenseModel) -> dict[str, Any]:
    """Name, fingerprint and levels of a model's backbone, as a recipe holds them."""
    return {
        "name": str(getattr(model.backbone, "name", type(model.backbone).__name__)),
        "fingerprint": fingerprint(model),
        "levels": _as_lists(model.levels),
    }


def fingerprint(model: DenseModel) -> str:
    """SHA-256 over all that decides a backbone's maps: weights, statistics, levels, normalisation.

    It looks at the values and not at the file that they came from: a checkpoint, a random start and a weights file
    that hold the same numbers have the same fingerprint.
    """
    digest = hashlib.sha256(json.dumps(_as_lists(model.levels)).encode())
    state = {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}
    for name, value in sorted({**state, "mean": model.mean, "std": model.std}.items()):
        if name.endswith("num_batches_tracked"):
            continue
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _as_lists(levels: Iterable[Level]) -> list[list[str | int]]:
    return [[level.name, level.channels, level.stride] for level in levels]


def hash_of_names(names: Iterable[str]) -> str:
    """SHA-256 of many names in their order."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first part in which two recipes differ, both values named; None where they are equal."""
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            inner = difference(old, new)
            return f"{key}.{inner}"
        return f"{key} was {_short(old)} and is now {_short(new)}"
    return None


def check_levels(model: DenseModel, levels: Iterable[str], file_format: FileFormat) -> None:
    """Refuse what can't be exported.

    Raises:
        DensekitError: a level that neither backbone nor neck has, twice the same, or Parquet of anything but vectors.
    """
    known = [level.name for level in model.levels] + [level.name for level in neck_levels(model)]
    seen: set[str] = set()
    for name in levels:
        kind, _, of = name.partition(":")
        if name in seen:
            raise DensekitError(f"--levels: {name!r} stands twice; name each level once")
        seen.add(name)
        if kind in ("pooled", "roi") and (not of or of in known):
            if file_format == "parquet" and kind != "pooled":
                raise DensekitError(f"--levels: Parquet holds pooled vectors, not {name!r}; use safetensors or npy")
            continue
        if name not in known:
            raise DensekitError(f"--levels: there is no level {name!r}; {nearest(name, [*known, 'pooled', 'roi'])}")
        if file_format == "parquet":
            raise DensekitError(f"--levels: Parquet holds pooled vectors, not {name!r}; use safetensors or npy")
    if not seen:
        raise DensekitError("--levels: name at least one level, such as c4 or pooled")


def neck_of(model: DenseModel) -> nn.Module | None:
    """The neck of the first head that has one."""
    for head in model.heads.values():
        if isinstance(getattr(head, "neck", None), nn.Module):
            neck: nn.Module = head.neck  # type: ignore[assignment]
            return neck
    return None


def neck_levels(model: DenseModel) -> tuple[Any, ...]:
    """The levels of the neck that the backbone does not have itself (a detector's p2..p6)."""
    neck = neck_of(model)
    own = {level.name for level in model.levels}
    return tuple(level for level in getattr(neck, "levels", ()) if level.name not in own)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
