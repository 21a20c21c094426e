"""Reading a feature store: the maps of every exported image, by image id, mapped from the files and not loaded.

A store is a folder::

    manifest.json            what was exported, by which network, and a checksum per shard
    index.safetensors        row -> image, view, sizes and place, as columns
    shards/00000.safetensors the maps of a fixed slice of the images, key: level [rows, ...] where all have one shape,
                             else level/<row in shard>
    shards/00000.json        the slice's rows, readable, and its checksum

``densekit/features`` writes it. C channels, h, w cells of a map.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import safetensors
import torch.utils.data
from torch import Tensor

from densekit.data.column_store import Strings, map_columns
from densekit.data.images.read import leaves_folder
from densekit.errors import DensekitError, nearest
from densekit.types import Level

FORMAT = 1
AManifest = TypeVar("AManifest", bound=msgspec.Struct)
"""Rises when a store of an older densekit can no longer be read as it is."""

VIEWS = ("none", "horizontal", "vertical", "both")
"""How an image may be mirrored before the network sees it; the index names them by position."""

_OPEN_FILES = 64


@dataclasses.dataclass(frozen=True)
class Features(Mapping[str, Tensor]):
    """What is stored of one view of one image: tensors by level, read when asked for.

    Attributes:
        row: position in the store.
        image: the image's id: as in its COCO file, else its path relative to the image folder.
        view: how it was mirrored.
        size: (height, width) that the network saw, inside the padding to its stride.
        original_size: (height, width) of the file.
    """

    store: FeatureStore
    row: int
    image: int | str
    view: str
    size: tuple[int, int]
    original_size: tuple[int, int]

    def __getitem__(self, level: str) -> Tensor:
        """A map [C, h, w]; ``pooled`` [C]; ``roi`` [boxes, C, p, p]; ``roi_boxes`` [boxes, 4] in pixels of ``size``."""
        return self.store.tensor(self.row, level)

    def __iter__(self) -> Iterator[str]:
        return iter(self.store.levels)

    def __len__(self) -> int:
        return len(self.store.levels)


class FeatureStore:
    """Random access to a finished feature store.

    Args:
        path: the folder that ``tools/export_features.py`` wrote.

    Raises:
        DensekitError: no store, one that is not finished, damaged, of a newer format, or of another file format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_finished(self.path)
        file_format = checked(self.path, self.manifest, _AnyManifest).recipe.file_format
        if file_format != "safetensors":
            raise DensekitError(
                f"{self.path}: {file_format} files are for other programs; export with --format safetensors"
            )
        manifest = checked(self.path, self.manifest, _Manifest)
        for entry in (manifest.index, *manifest.shards):
            if leaves_folder(entry.file):
                raise DensekitError(f"{self.path / 'manifest.json'}: {entry.file!r} leaves the store; export it again")
        self.levels: tuple[str, ...] = tuple(manifest.tensors)
        self.views: tuple[str, ...] = tuple(manifest.recipe.views)
        self.orientation: str = manifest.recipe.images.orientation
        self.value_range: tuple[float, float] | None = manifest.recipe.images.range
        self._read_index()
        self._files: collections.OrderedDict[int, tuple[Any, frozenset[str]]] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._columns["shard"])

    def __getitem__(self, key: int | str | tuple[int | str, str]) -> Features:
        """The features of an image id, or of (image id, view).

        Raises:
            DensekitError: the store has none of them; says why where the image could not be read.
        """
        image, view = key if isinstance(key, tuple) else (key, "none")
        row = self.find(image, view)
        if row is None:
            raise DensekitError(self._missing(image, view))
        return self.row(row)

    def __contains__(self, key: object) -> bool:
        image, view = key if isinstance(key, tuple) else (key, "none")
        return isinstance(image, int | str) and self.find(image, view) is not None

    def __getstate__(self) -> dict[str, Any]:
        """Processes open the files for themselves."""
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def row(self, row: int) -> Features:
        """The features at a position; an index beyond the end raises IndexError."""
        row = range(len(self))[row]
        columns = self._columns
        size, original = columns["size"][row].tolist(), columns["original_size"][row].tolist()
        view = VIEWS[int(columns["view"][row])]
        return Features(self, row, json.loads(self._ids[row]), view, tuple(size), tuple(original))

    def find(self, image: int | str, view: str = "none") -> int | None:
        """The row of a view of an image, or None."""
        if view not in VIEWS:
            return None
        key = np.int64(row_key(image, view))
        at = int(np.searchsorted(self._columns["keys"], key))
        text, number = json.dumps(image), VIEWS.index(view)
        while at < len(self) and self._columns["keys"][at] == key:
            row = int(self._columns["key_rows"][at])
            if self._ids[row] == text and int(self._columns["view"][row]) == number:
                return row
            at += 1
        return None

    def tensor(self, row: int, level: str) -> Tensor:
        """One stored tensor, in the precision that it was stored in.

        Raises:
            DensekitError: no such level, or the shard's file is missing or damaged.
        """
        if level not in self.levels:
            raise DensekitError(f"{self.path}: level {level!r} was not exported; {nearest(level, self.levels)}")
        position = int(self._columns["position"][row])
        file, keys = self._file(int(self._columns["shard"][row]))
        if level in keys:
            tensor: Tensor = file.get_slice(level)[position]
            return tensor
        if f"{level}/{position}" not in keys:
            raise DensekitError(f"{self.path}: row {row} has no {level!r}; run the export again with --verify")
        tensor = file.get_tensor(f"{level}/{position}")
        return tensor

    def verify(self) -> list[str]:
        """Read every shard and compare its checksum; the names of those that differ or are missing."""
        return [
            entry["file"]
            for entry in self.manifest["shards"]
            if sha256_of_shard(self.path / entry["file"]) != entry["sha256"]
        ]

    @property
    def backbone_levels(self) -> tuple[Level, ...]:
        """Those stored levels that are the backbone's own maps, finest first."""
        levels = [Level(*entry) for entry in self.manifest["recipe"]["backbone"]["levels"]]
        return tuple(level for level in levels if level.name in self.levels)

    def _read_index(self) -> None:
        entry = self.manifest["index"]
        path = self.path / entry["file"]
        try:
            if sha256_of_shard(path) != entry["sha256"]:
                raise ValueError("its checksum differs")
            self._columns, _ = map_columns(path)
            self._ids = Strings(self._columns["id_letters"], self._columns["id_ends"])
            rows = np.bincount(self._columns["shard"], minlength=len(self.manifest["shards"]))
            if rows.tolist() != [shard["rows"] for shard in self.manifest["shards"]]:
                raise ValueError("it has other rows than the manifest")
        except (OSError, ValueError, KeyError) as error:
            raise DensekitError(f"{path} is missing or damaged ({error}); run the export again with --verify") from None

    def _file(self, shard: int) -> tuple[Any, frozenset[str]]:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        entry = self.manifest["shards"][shard]
        path = self.path / entry["file"]
        try:
            if os.path.getsize(path) != entry["bytes"]:
                raise OSError("it has another size than when it was written")
            file = safetensors.safe_open(path, framework="pt")
        except (OSError, safetensors.SafetensorError) as error:
            raise DensekitError(
                f"{path} is missing or damaged ({error}); run the export again with --verify, which rebuilds it alone"
            ) from None
        self._files[shard] = (file, frozenset(file.keys()))  # type: ignore[no-untyped-call]
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)
        return self._files[shard]

    def _missing(self, image: int | str, view: str) -> str:
        for entry in self.manifest["unreadable"]:
            if entry["image"] == image:
                return f"{self.path}: image {image!r} could not be read when it was exported: {entry['reason']}"
        if view not in self.views:
            return (
                f"{self.path} holds the views {', '.join(self.views)}, not {view!r}; export again with --flips {view}"
            )
        return f"{self.path}: there is no image {image!r} in the store; export it, or correct the id"


class FeatureRows(torch.utils.data.Dataset[dict[str, Any]]):
    """A store as a torch Dataset: one dict per row, with ``image``, ``view`` and a tensor a level.

    Args:
        store: the store.
        levels: which to read; None: all.
        views: which to use.

    Raises:
        DensekitError: a level or view that was not exported.
    """

    def __init__(
        self, store: FeatureStore, levels: Sequence[str] | None = None, views: Sequence[str] = ("none",)
    ) -> None:
        self.store = store
        self.levels = tuple(levels) if levels is not None else store.levels
        for what, names, known in (("level", self.levels, store.levels), ("view", views, store.views)):
            for name in names:
                if name not in known:
                    raise DensekitError(f"{store.path}: {what} {name!r} was not exported; {nearest(name, known)}")
        self.rows = np.flatnonzero(np.isin(store._columns["view"], [VIEWS.index(v) for v in views]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        features = self.store.row(int(self.rows[index]))
        return {"image": features.image, "view": features.view, **{level: features[level] for level in self.levels}}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store.

    Raises:
        DensekitError: it is missing, damaged, or of a newer format.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
        writer, _ = dict(manifest["recipe"]).get("densekit"), manifest["complete"]
    except FileNotFoundError:
        raise DensekitError(
            f"{folder} is no feature store (no manifest.json); give an --out of export_features.py"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise DensekitError(
            f"{path} is damaged ({reason}); remove it and run the export again, shards are kept"
        ) from None
    if version != FORMAT:
        raise DensekitError(
            f"{folder} is a feature store of format {version!r}, this densekit reads {FORMAT}; "
            f"use the densekit that wrote it ({writer}), or export again to another folder"
        )
    return dict(manifest)


def read_finished(folder: Path) -> dict[str, Any]:
    """The manifest of a store that is whole.

    Raises:
        DensekitError: as ``read_manifest``, or the export is not finished.
    """
    manifest = read_manifest(folder)
    if not manifest["complete"]:
        raise DensekitError(f"{folder}: the export is not finished; run it again, it goes on where it stopped")
    return manifest


class _AnyRecipe(msgspec.Struct):
    file_format: str


class _AnyManifest(msgspec.Struct):
    """Of a store of any file format."""

    recipe: _AnyRecipe


class _Backbone(msgspec.Struct):
    levels: list[tuple[str, int, int]]


class _Images(msgspec.Struct):
    orientation: str = "exif"
    range: tuple[float, float] | None = None


class _Recipe(msgspec.Struct):
    views: list[str]
    backbone: _Backbone
    images: _Images


class _File(msgspec.Struct):
    file: str
    sha256: str


class _Shard(_File):
    rows: int
    bytes: int


class _Unreadable(msgspec.Struct):
    image: int | str
    reason: str


class _Manifest(msgspec.Struct):
    """What reading relies on; other keys are for people and for the export."""

    recipe: _Recipe
    tensors: list[str]
    index: _File
    shards: list[_Shard]
    unreadable: list[_Unreadable]


def checked(folder: Path, manifest: dict[str, Any], kind: type[AManifest]) -> AManifest:
    """A manifest's keys that ``kind`` names.

    Raises:
        DensekitError: one is missing, or of another kind.
    """
    try:
        return msgspec.convert(manifest, kind)
    except msgspec.ValidationError as error:
        raise DensekitError(
            f"{folder / 'manifest.json'} is damaged ({error}); remove it and run the export again, shards are kept"
        ) from None


def row_key(image: int | str, view: str) -> int:
    """A 64-bit number by which a row is looked up."""
    digest = hashlib.blake2b(f"{json.dumps(image)}|{view}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def sha256_of_shard(path: Path) -> str | None:
    """SHA-256 of a shard: of its file, or of the files of its folder in the order of their names; None: not there."""
    digest = hashlib.sha256()
    try:
        for part in sorted(path.iterdir()) if path.is_dir() else [path]:
            with part.open("rb") as file:
                while block := file.read(2**22):
                    digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()
