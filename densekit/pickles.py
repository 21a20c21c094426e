"""Files that any program wrote by ``torch.save``, read without running code that they may hold.

torch's own safe reader knows tensors and plain values. Training programs keep more beside them: their arguments, paths,
numpy's numbers. What is known to be data alone is left out; anything else is refused.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from densekit.files import mistaken_for

_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
DATA_ALONE = (
    "argparse.Namespace",
    *(f"{home}.{kind}" for home in ("pathlib", "pathlib._local") for kind in _PATHS),  # the second in Python 3.13
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Bool", "Int32", "Int64", "Float32", "Float64", "Str", "Object")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
)
"""Classes and functions of pickles that are read as a ``LeftOut``: nothing of theirs is called."""

_ZIP = b"PK\x03\x04"
_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_FOREIGN = re.compile(r"GLOBAL (\S+) (?:was not|whose module)")


class LeftOut:
    """Stands where a file holds something else than tensors and plain values."""

    def __init__(self, *content: object) -> None:
        """The content is forgotten."""

    def __setstate__(self, state: object) -> None:
        """So is the state."""


def load(path: Path) -> Any:
    """What a file holds, on the CPU; raises whatever torch raises, see ``why``."""
    with torch.serialization.safe_globals([(LeftOut, name) for name in DATA_ALONE]):
        return torch.load(path, map_location="cpu", weights_only=True)


def foreign(error: Exception) -> str | None:
    """The class or function for which torch refused a file; None: there was another reason."""
    found = _FOREIGN.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
    return None if found is None else found[1]


def why(path: Path, error: Exception) -> str:
    """In a few words why a file could not be read."""
    if isinstance(error, OSError):
        return first_line(error)
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "it is empty"
    if (what := mistaken_for(start)) is not None:
        return what
    if (name := foreign(error)) is not None:
        return f"it holds {name} beside tensors and plain values, which could run code when read"
    if "TorchScript" in str(error):
        return "it is a TorchScript program; save the state_dict() of torch.jit.load there"
    if isinstance(error, SafetensorError | zipfile.BadZipFile):
        return first_line(error)
    return "the archive is damaged or cut off" if start.startswith(_ZIP) else "it is no file of torch.save"


def first_line(error: Exception) -> str:
    """What an error says first, without the codes that colour a terminal."""
    text = str(error.strerror if isinstance(error, OSError) and error.strerror else error)
    lines = _CODES.sub("", text).strip().splitlines()
    return (lines or [type(error).__name__])[0][:200]


def names_in(path: Path, wanted: Sequence[str]) -> str | None:
    """The first of the ``wanted`` strings that the pickle of a zipped file holds, read without being loaded."""
    try:
        with zipfile.ZipFile(path) as file:
            place = next(name for name in file.namelist() if name.endswith("data.pkl"))
            texts = {value for _, value, _ in pickletools.genops(file.read(place)) if isinstance(value, str)}
    except Exception:  # damaged in whatever way: then there is nothing to advise
        return None
    return next((name for name in wanted if name in texts), None)
