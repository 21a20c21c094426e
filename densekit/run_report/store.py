"""A feature store told from its manifest: what was exported of which network, and what lies on the disk."""

from __future__ import annotations

import html
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from densekit.data.feature_store import FeatureStore, checked, read_finished
from densekit.files import printable, write_text
from densekit.run_report import sections
from densekit.run_report.document import document


class _Backbone(msgspec.Struct):
    name: str
    fingerprint: str
    levels: list[tuple[str, int, int]]


class _Images(msgspec.Struct):
    count: int


class _Recipe(msgspec.Struct):
    backbone: _Backbone
    channels: int
    transform: list[dict[str, Any]]
    pad_to: int
    views: list[str]
    dtype: str
    precision: str
    device: str
    file_format: str
    images: _Images
    densekit: str


class _Shard(msgspec.Struct):
    file: str
    rows: int
    bytes: int
    sha256: str


class _Unreadable(msgspec.Struct):
    image: int | str
    reason: str


class _Made(msgspec.Struct):
    weights: str | None
    sha256: str | None


class _Manifest(msgspec.Struct):
    recipe: _Recipe
    made: _Made
    tensors: list[str]
    rows: int
    shards: list[_Shard]
    unreadable: list[_Unreadable]


def is_store(folder: Path) -> bool:
    """Whether a folder is a feature store and not a run."""
    return (folder / "manifest.json").is_file()


def write_store(folder: Path, path: Path) -> None:
    """Write one page on a store, whole or not at all.

    Raises:
        DensekitError: the export is not finished, or its manifest is damaged.
    """
    write_text(path, document(f"Feature store {printable(folder)}", section(folder)))


def section(folder: Path) -> str:
    """The HTML of what a store's manifest says.

    Raises:
        DensekitError: the export is not finished, or its manifest is damaged.
    """
    manifest = checked(folder, read_finished(folder), _Manifest)
    size = sum(shard.bytes for shard in manifest.shards)
    lead = (
        f"{', '.join(manifest.tensors)} of {manifest.recipe.images.count - len(manifest.unreadable)} images by "
        f"{manifest.recipe.backbone.name}: {manifest.rows} rows, {_size(size)}, "
        f"{_size(size / max(1, manifest.rows))} a row"
    )
    return (
        f'<p class="lead">{html.escape(lead)}</p>{sections.table(("", ""), _facts(folder, manifest))}'
        f"{_levels(folder, manifest)}{_shards(manifest)}{_lost(manifest)}"
    )


def _facts(folder: Path, manifest: _Manifest) -> list[tuple[str, str]]:
    recipe, made = manifest.recipe, manifest.made
    written = datetime.fromtimestamp((folder / "manifest.json").stat().st_mtime, UTC)
    weights = "none: random numbers" if made.weights is None else printable(made.weights)
    images = f"{recipe.images.count}, {recipe.channels} channels, {len(manifest.unreadable)} of them could not be read"
    return [
        ("store", printable(folder.resolve())),
        ("backbone", recipe.backbone.name),
        ("weights", f"{weights}{f', SHA-256 {made.sha256}' if made.sha256 else ''}"),
        ("SHA-256 of weights and normalisation", recipe.backbone.fingerprint),
        ("images", images),
        ("transforms", "; ".join(_transform(spec) for spec in recipe.transform) or "none: native sizes"),
        ("views", ", ".join(recipe.views)),
        ("padded to multiples of", f"{recipe.pad_to} pixels, and the coarsest stride"),
        ("precision", f"network in {recipe.precision} on {recipe.device}, stored in {recipe.dtype}"),
        ("shards", f"{len(manifest.shards)}, {recipe.file_format}"),
        ("written", f"{written:%Y-%m-%dT%H:%M:%SZ} by densekit {recipe.densekit}"),
    ]


def _transform(spec: dict[str, Any]) -> str:
    name, *options = (f"{option} {value}" if option != "name" else str(value) for option, value in spec.items())
    return f"{name} ({', '.join(options)})" if options else name


def _levels(folder: Path, manifest: _Manifest) -> str:
    """Each stored tensor with the level of the backbone that it is, and its shape of the first image."""
    known = {name: (channels, stride) for name, channels, stride in manifest.recipe.backbone.levels}
    first = FeatureStore(folder).row(0) if manifest.recipe.file_format == "safetensors" else None
    rows = []
    for name in manifest.tensors:
        shape = "-" if first is None else " x ".join(str(side) for side in first[name].shape)
        rows.append((name, *known.get(name, ("-", "-")), shape))
    seen = "" if first is None else f" ({printable(str(first.image))}, {first.size[0]} x {first.size[1]} pixels)"
    return sections.table(("stored", "channels", "stride", f"shape of the first row{seen}"), rows)


def _shards(manifest: _Manifest) -> str:
    rows = [(shard.file, shard.rows, _size(shard.bytes), shard.sha256) for shard in manifest.shards]
    table = sections.table(("file", "rows", "size", "SHA-256"), rows)
    return f"<details><summary>files</summary>{table}</details>"


def _lost(manifest: _Manifest) -> str:
    if not manifest.unreadable:
        return ""
    rows = [(printable(str(entry.image)), printable(entry.reason)) for entry in manifest.unreadable]
    return sections.table(("image that could not be read", "reason"), rows)


def _size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:.1f} {unit}"
    return f"{count:.0f} bytes"
