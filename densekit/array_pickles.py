"""Pickles of numpy arrays, as detectron2 and Caffe2 keep their weights (``.pkl``), read without running anything.

Such a file names numpy's own functions, which rebuild the arrays. Here stand-ins of ours take their place and keep
what they are given; the arrays are made of it afterwards. Any other name in the file is refused.
"""

from __future__ import annotations

import collections
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_KINDS = "biuf"
"""Booleans, integers and floats; nothing else is made of a file's bytes."""


class _DType:
    """What a file says about the type of an array's numbers."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])

    def numpy(self) -> np.dtype[Any]:
        """The type itself."""
        found = np.dtype(self.code).newbyteorder("=" if self.order == "|" else self.order)  # type: ignore[arg-type]
        if found.kind not in _KINDS:
            raise pickle.UnpicklingError(f"an array of {found}, which are no numbers")
        return found


class _Array:
    """What a file says about an array: (version, shape, type, whether columns come first, bytes)."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def numpy(self) -> npt.NDArray[Any]:
        """The array itself."""
        _, shape, kind, columns_first, content = self.state
        content = content.encode("latin1") if isinstance(content, str) else content  # written by Python 2
        flat = np.frombuffer(content, kind.numpy())
        return flat.reshape(shape, order="F" if columns_first else "C").astype(flat.dtype.newbyteorder("="))


def _from_buffer(content: Any, kind: _DType, shape: Any, order: str, *_: object) -> _Array:
    """How protocol 5 has it."""
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", content))
    return array


def _scalar(kind: _DType, content: Any) -> Any:
    content = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(content, kind.numpy())[0].item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes in pickles that Python 2 can read."""
    return text.encode("latin1" if encoding == "latin1" else "utf-8")


def _empty() -> bytes:
    """How Python 3 writes no bytes at all, likewise."""
    return b""


_KNOWN: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _DType,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _empty,
    "collections.OrderedDict": collections.OrderedDict,
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (known := _KNOWN.get(f"{module}.{name}")) is None:
            # In torch's words, so that whoever asks pickles.foreign learns the name.
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} was not an allowed global")
        return known


def load(path: Path) -> Any:
    """Dictionaries, lists, numbers, texts and arrays of a pickle; raises whatever a damaged one makes it raise."""
    with path.open("rb") as file:
        return _finished(_Reader(file, encoding="latin1").load())


def _finished(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.numpy()
    if isinstance(value, dict):
        return {key: _finished(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finished(one) for one in value]
    return value
