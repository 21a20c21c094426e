"""Numpy columns in one file that is mapped and not loaded (safetensors' layout), and where such caches live.

Processes that open the same file share its pages; nothing in the file can run code.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

Column = npt.NDArray[Any]

_DTYPES = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "|u1", "BOOL": "|b1"}


class Strings(Sequence[str]):
    """Many strings in two arrays, so that a million of them cost their letters and not a million objects.

    Args:
        letters: [sum of lengths] uint8, UTF-8.
        ends: [n] int64, where each string ends in ``letters``.
    """

    def __init__(self, letters: Column, ends: Column) -> None:
        self.letters = letters
        self.ends = ends

    @classmethod
    def pack(cls, values: Sequence[str]) -> Strings:
        """Pack Python strings."""
        text = "".join(values)
        if text.isascii():  # then letters are bytes, and one encoding does for all
            lengths = np.fromiter(map(len, values), np.int64, len(values))
            return cls(np.frombuffer(text.encode(), np.uint8), np.cumsum(lengths))
        encoded = [v.encode("utf-8", "surrogatepass") for v in values]
        ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        """The string at ``index``; an index beyond the end raises IndexError."""
        index = range(len(self.ends))[index]
        start = int(self.ends[index - 1]) if index else 0
        return self.letters[start : int(self.ends[index])].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        """All of them, many times faster than one by one."""
        text, start = self.letters.tobytes(), 0
        for end in self.ends.tolist():
            yield text[start:end].decode("utf-8", "surrogatepass")
            start = end


def cache_folder() -> Path | None:
    """Folder for caches: ``$DENSEKIT_CACHE`` (``off`` for none), else ``densekit`` in the user's cache folder."""
    given = os.environ.get("DENSEKIT_CACHE")
    if given is not None:
        return None if given in ("", "off") else Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "densekit"


def fingerprint(path: Path, version: str) -> str:
    """A short hash of a file's path, size, time of change and of 64 samples of its content.

    Reading all of a large file would cost more than the rest of opening it; whoever changes a file and restores size
    and time to the nanosecond and misses all samples must delete the cache by hand.
    """
    with path.open("rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        digest = hashlib.blake2b(f"{version}|{path.resolve()}|{status.st_size}|{status.st_mtime_ns}".encode())
        for sample in range(64):
            file.seek(max(0, status.st_size - 4096) * sample // 63)
            digest.update(file.read(4096))
    return digest.hexdigest()[:24]


def write_columns(path: Path, columns: Mapping[str, Column], about: Mapping[str, Any]) -> None:
    """Write columns and a json-able description, whole or not at all; raises OSError."""
    content = save({n: np.ascontiguousarray(c) for n, c in columns.items()}, {"about": json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def map_columns(path: Path) -> tuple[dict[str, Column], dict[str, Any]]:
    """Map a file of ``write_columns``: read-only arrays over the file, and the description.

    Raises:
        ValueError: the file is damaged or not ours.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    length = int.from_bytes(data[:8], "little")
    if not 0 < length <= len(data) - 8:
        raise ValueError("damaged header")
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header.pop("__metadata__")["about"])
    return {name: _column(data, 8 + length, entry) for name, entry in header.items()}, about


def _column(data: mmap.mmap, start: int, entry: Any) -> Column:
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    shape, (first, last) = [int(s) for s in entry["shape"]], entry["data_offsets"]
    count = math.prod(shape)
    if min(shape, default=0) < 0 or first < 0 or last - first != count * dtype.itemsize or start + last > len(data):
        raise ValueError("damaged column")
    return np.frombuffer(data, dtype, count, start + first).reshape(shape)
