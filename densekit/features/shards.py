"""The files of a feature store: shards that are whole or not there, and the manifest that sums them up.

A shard is one slice of the images. Its content goes to disk first, its record (``00000.json``: rows and checksum) after
it: a shard without a record, or with one that does not fit, was cut off and is made again. So a run that was killed
goes on from its last whole shard, and nothing is ever written twice or by halves.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor

from densekit.data.column_store import Strings
from densekit.data.feature_store import FORMAT, VIEWS, read_manifest, row_key, sha256_of_shard
from densekit.errors import DensekitError
from densekit.features.recipe import FileFormat, Recipe, difference
from densekit.files import explain_os_error, printable, whole_file, write_text


@dataclasses.dataclass(slots=True)
class Row:
    """One view of one image, to be stored.

    Attributes:
        index: position of the image among all.
        image: its id. view: how it was mirrored.
        size: (height, width) that the network saw. original_size: of the file.
        tensors: by level.
    """

    index: int
    image: int | str
    view: str
    size: tuple[int, int]
    original_size: tuple[int, int]
    tensors: dict[str, Tensor]

    def record(self) -> dict[str, Any]:
        """All but the tensors, as the shard's record holds it."""
        fields = ("index", "image", "view", "size", "original_size")
        return {name: getattr(self, name) for name in fields}


class ShardFolder:
    """Writes a store.

    Args:
        path: the store's folder; made where it does not exist.
        recipe: what is exported.
        first: this process is the first of its peers: it alone writes the manifest and clears what a kill left behind.

    Raises:
        DensekitError: another export stands there, or files that are none of ours.
    """

    def __init__(self, path: Path, recipe: Recipe, *, first: bool = True) -> None:
        self.path, self.recipe = path, recipe
        self.shards = path / "shards"
        self._check()
        if first:
            self._clear()
            if not (path / "manifest.json").exists():
                self._write_manifest({"complete": False, "recipe": recipe.as_json()})

    def missing(self, rank: int, ranks: int, *, verify: bool = False) -> list[int]:
        """The shards of a rank's share that have to be made; ``verify`` reads those that are there."""
        whole = self.verify if verify else self.whole
        return [number for number in range(rank, self.recipe.shards(), ranks) if not whole(number)]

    def whole(self, number: int) -> bool:
        """Whether a shard stands on disk, by its record and its length (``verify`` reads it)."""
        record = self._record(number)
        return record is not None and _bytes_of(self._file(number)) == record["bytes"]

    def verify(self, number: int) -> bool:
        """Whether a shard's content has the checksum of its record; one that has not loses its record."""
        record = self._record(number)
        if record is not None and sha256_of_shard(self._file(number)) == record["sha256"]:
            return True
        self._record_file(number).unlink(missing_ok=True)
        return False

    def write(self, number: int, rows: Sequence[Row], unreadable: Sequence[dict[str, Any]]) -> None:
        """Write a shard and its record.

        Raises:
            DensekitError: the disk is full or can't be written; what was whole before still is.
        """
        path = self._file(number)
        self._record_file(number).unlink(missing_ok=True)
        _WRITERS[self.recipe.file_format](path, rows, self._row_name)
        record = {
            "recipe": self.recipe.sha256,
            "sha256": sha256_of_shard(path),
            "bytes": _bytes_of(path),
            "tensors": sorted({name for row in rows for name in row.tensors}),
            "rows": [row.record() for row in rows],
            "unreadable": list(unreadable),
        }
        write_text(self._record_file(number), json.dumps(record, indent=1) + "\n")

    def finish(self, made: dict[str, Any]) -> dict[str, Any]:
        """Sum the whole shards up in index and manifest.

        Args:
            made: what else the manifest is to say, such as where the weights came from.

        Returns:
            The manifest.

        Raises:
            DensekitError: a shard is missing, or not one image could be read.
        """
        shards, unreadable, names = [], [], set()
        columns = _Columns()
        for number, record in self._records():
            shards.append({
                "file": self._file(number).relative_to(self.path).as_posix(),
                "first": self.recipe.shard(number).start,
                "rows": len(record["rows"]),
                "bytes": record["bytes"],
                "sha256": record["sha256"],
            })  # fmt: skip
            unreadable += record["unreadable"]
            names |= set(record["tensors"])
            columns.add(number, record["rows"])
        if not names:
            raise DensekitError(f"not one image could be read; the first: {unreadable[0]['reason']}")
        index = columns.write(self.path / "index.safetensors")
        order = [n for n in [*self.recipe.levels, "roi_boxes"] if n in names]
        manifest = {
            "complete": True, "recipe": self.recipe.as_json(), "made": made, "tensors": order, "index": index,
            "rows": sum(s["rows"] for s in shards), "unreadable": unreadable, "shards": shards,
        }  # fmt: skip
        self._write_manifest(manifest)
        return manifest

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in range(self.recipe.shards()):
            record = self._record(number)
            if record is None:
                raise DensekitError(
                    f"{self._file(number)} was not written; run the export again, it makes what is missing"
                )
            yield number, record

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        write_text(self.path / "manifest.json", json.dumps({"format": FORMAT, **manifest}, indent=1) + "\n")

    def _check(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise DensekitError(f"--out {self.path} is a file; give a folder")
        if (self.path / "manifest.json").exists():
            before = read_manifest(self.path)["recipe"]
            if changed := difference(before, self.recipe.as_json()):
                raise DensekitError(
                    f"{self.path} holds another export: {changed}; use the same options to go on, or another --out"
                )
        elif self.path.is_dir() and (strange := [p.name for p in self.path.iterdir() if not _is_own(p.name)]):
            raise DensekitError(f"--out {self.path} holds other files, such as {strange[0]}; give a new folder")

    def _clear(self) -> None:
        """Remove temporary files of a process that was killed."""
        for folder in (self.path, self.shards):
            for left in folder.glob(".*.tmp") if folder.is_dir() else ():
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def _file(self, number: int) -> Path:
        return self.shards / f"{number:05d}{_ENDINGS[self.recipe.file_format]}"

    def _record_file(self, number: int) -> Path:
        return self.shards / f"{number:05d}.json"

    def _record(self, number: int) -> dict[str, Any] | None:
        """The record of a shard of this recipe; None where there is none or it can't be read."""
        try:
            record = json.loads(self._record_file(number).read_text(encoding="utf-8"))
            fits = record["recipe"] == self.recipe.sha256 and {"rows", "sha256", "bytes"} <= record.keys()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return record if fits else None

    def _row_name(self, row: Row) -> str:
        """A file name for a row: its position, its image's name as far as a file name can hold it, its view."""
        plain = re.sub(r"[^\w.-]", "_", str(row.image))[-80:]
        return f"{row.index:08d}_{plain}" + ("" if row.view == "none" else f"@{row.view}")


def summary(path: Path, manifest: dict[str, Any]) -> str:
    """One line on a finished store, and one each on the first images that could not be read."""
    unreadable = manifest["unreadable"]
    size = sum(shard["bytes"] for shard in manifest["shards"]) / 1e6
    more = f"; {len(unreadable)} images could not be read, manifest.json lists them" if unreadable else ""
    line = f"{path}: {manifest['rows']} rows of {', '.join(manifest['tensors'])}, {size:.1f} MB{more}"
    return "\n".join([line, *(f"not readable: {entry['reason']}" for entry in unreadable[:5])])


def _is_own(name: str) -> bool:
    """Whether a name in a store's folder is one of ours, left behind by a killed process included."""
    return name in ("manifest.json", "index.safetensors", "shards", "report.html") or (
        name[0] == "." and name.endswith(".tmp")
    )


_ENDINGS: dict[FileFormat, str] = {"safetensors": ".safetensors", "npy": "", "parquet": ".parquet"}


class _Columns:
    """The index, gathered shard by shard."""

    def __init__(self) -> None:
        self.parts: list[dict[str, Any]] = []

    def add(self, shard: int, rows: Sequence[dict[str, Any]]) -> None:
        ids = Strings.pack([json.dumps(row["image"]) for row in rows])
        self.parts.append({
            "shard": np.full(len(rows), shard, np.int32),
            "position": np.arange(len(rows), dtype=np.int32),
            "view": np.array([VIEWS.index(row["view"]) for row in rows], np.uint8),
            "size": np.array([row["size"] for row in rows], np.int32).reshape(-1, 2),
            "original_size": np.array([row["original_size"] for row in rows], np.int32).reshape(-1, 2),
            "keys": np.array([row_key(row["image"], row["view"]) for row in rows], np.int64),
            "id_letters": ids.letters,
            "id_ends": ids.ends,
        })  # fmt: skip

    def write(self, path: Path) -> dict[str, Any]:
        """Write the index; what the manifest says of it."""
        columns = {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        letters = np.cumsum([0, *(len(part["id_letters"]) for part in self.parts[:-1])])
        columns["id_ends"] = np.concatenate([part["id_ends"] + n for part, n in zip(self.parts, letters)])
        columns["key_rows"] = np.argsort(columns["keys"], kind="stable")
        columns["keys"] = columns["keys"][columns["key_rows"]]
        content = safetensors.numpy.save(columns, {"about": json.dumps({"rows": len(columns["shard"])})})
        with whole_file(path) as file:
            file.write(content)
        return {"file": path.name, "sha256": sha256_of_shard(path)}


def _write_safetensors(path: Path, rows: Sequence[Row], name_of: Callable[[Row], str]) -> None:
    tensors: dict[str, Tensor] = {}
    for level in dict.fromkeys(name for row in rows for name in row.tensors):
        values = [row.tensors[level] for row in rows]
        if len({value.shape for value in values}) == 1:
            tensors[level] = torch.stack(values)
        else:
            tensors |= {f"{level}/{position}": value for position, value in enumerate(values)}
    content = safetensors.torch.save(tensors)
    with whole_file(path) as file:
        file.write(content)


def _write_npy(path: Path, rows: Sequence[Row], name_of: Callable[[Row], str]) -> None:
    """A folder of files, one a row and level, put in its place as a whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.mkdir(parents=True)
        for row in rows:
            for level, value in row.tensors.items():
                name = f"{name_of(row)}.{level.replace(':', '_')}.npy"
                with (temporary / name).open("wb") as file:
                    np.save(file, value.numpy())
                    file.flush()
                    os.fsync(file.fileno())
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise DensekitError(explain_os_error(error, path)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_parquet(path: Path, rows: Sequence[Row], name_of: Callable[[Row], str]) -> None:
    """Columns ``image``, ``view`` and a list of numbers a level."""
    arrow, parquet = import_parquet()
    levels = list(dict.fromkeys(name for row in rows for name in row.tensors))
    columns = {"image": [printable(str(row.image)) for row in rows], "view": [row.view for row in rows]}
    table = arrow.table(columns)
    for level in levels:
        values = np.stack([row.tensors[level].numpy() for row in rows])
        flat = arrow.array(values.reshape(-1))
        table = table.append_column(level, arrow.FixedSizeListArray.from_arrays(flat, values.shape[1]))
    with whole_file(path) as file:
        parquet.write_table(table, file, compression="none")


_WRITERS: dict[FileFormat, Callable[[Path, Sequence[Row], Callable[[Row], str]], None]] = {
    "safetensors": _write_safetensors,
    "npy": _write_npy,
    "parquet": _write_parquet,
}


def import_parquet() -> tuple[Any, Any]:
    """Import pyarrow and its Parquet module.

    Raises:
        DensekitError: they are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DensekitError(
            "--format parquet needs pyarrow, which is missing: pip install 'densekit[parquet]'; or use safetensors"
        ) from None
    return pyarrow, pyarrow.parquet


def _bytes_of(path: Path) -> int:
    """Bytes in a file, or in the files of a folder; -1 where there is none."""
    try:
        return sum(p.stat().st_size for p in path.iterdir()) if path.is_dir() else path.stat().st_size
    except OSError:
        return -1
