"""What a tracker is, and how one is found by its name. A run that goes on goes on in the same run of its trackers."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from densekit.errors import DensekitError
from densekit.files import write_text

KNOWN = "trackers.json"
"""File in the run folder with the names that its trackers gave to the run."""


class Tracker(Protocol):
    """Follows one run.

    Attributes:
        run: its own name for the run, by which it is found again.
    """

    run: str

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Add finite numbers, by names such as ``train/loss``, at an update of the weights."""
        ...

    def close(self) -> None:
        """Say that the run is over."""
        ...


def open_trackers(names: Sequence[str], folder: Path, config: dict[str, Any]) -> list[Tracker]:
    """Begin to follow a run, or go on.

    Args:
        names: of files in this folder.
        folder: of the run.
        config: of the run, as it is shown there.

    Raises:
        DensekitError: a package is missing, or the service refuses the run.
    """
    file = folder / KNOWN
    try:
        known = json.loads(file.read_text("utf-8")) if file.exists() else {}
    except ValueError:
        raise DensekitError(f"{file} is not JSON any more; remove it, and trackers begin new runs") from None
    opened = []
    for name in names:
        module = importlib.import_module(f"densekit.engine.trackers.{name}")
        opened.append(module.follow(folder, known.get(name), config))
        known[name] = opened[-1].run
        write_text(file, json.dumps(known, indent=2))
    return opened


def package(name: str) -> Any:
    """A package that comes with an extra of the same name.

    Raises:
        DensekitError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DensekitError(
            f"log.trackers: {name} is not installed ({error}); pip install 'densekit[{name}]', or leave it out"
        ) from None
