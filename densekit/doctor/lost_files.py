"""Are the files of a run there? All of them are looked for at its start, not when an epoch meets them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densekit import build
from densekit.config import Config
from densekit.errors import DensekitError
from densekit.types import Dataset

_NAMED = 10


def check_files(config: Config, train_set: Dataset, val_set: Dataset | None) -> list[str]:
    """Look for every image and mask file of every split, without opening one.

    Args:
        config: of the run; ``data.test`` is looked for too, but a run does not need it.
        train_set: to learn from.
        val_set: to choose the best weights by.

    Returns:
        Lines on what is missing and does not stop the run.

    Raises:
        DensekitError: files of ``data.train`` or ``data.val`` are missing, and ``data.on_bad_image`` does not say
            that they be skipped; or all of a split's are.
    """
    notes = []
    for name, data in ((f"{config.place}.train", train_set), (f"{config.place}.val", val_set)):
        lost = [] if data is None else lost_files(data)
        if data is None or not lost:
            continue
        line = _line(name, lost, len(data))
        if config.data.on_bad_image != "skip" or len(lost) >= len(data):
            raise DensekitError(f"{line}; restore them, correct the folder, or take them out of the set")
        notes.append(f"{line}; they are skipped")
    return [*notes, *_of_test(config)]


def lost_files(data: Dataset) -> list[Path]:
    """The image and mask files of a data set that are not there; none of one that keeps its images elsewhere."""
    source: Any = getattr(data, "source", data)
    if getattr(getattr(data, "read_image", None), "blank", False) or not hasattr(source, "missing_files"):
        return []
    found: list[Path] = source.missing_files()
    return found


def _of_test(config: Config) -> list[str]:
    """What of the test set is missing: training goes on without it, but better now than after it."""
    if config.data.test is None:
        return []
    where = f"{config.place}.test"
    try:
        data = build.dataset(config, "test", training=False)
        lost = lost_files(data)
    except DensekitError as error:
        told = str(error)
        return [f"{'' if told.startswith('data.') else f'{where}: '}{told} (training does not need it)"]
    return [f"{_line(where, lost, len(data))} (training does not need them)"] if lost else []


def _line(name: str, lost: Sequence[Path], images: int) -> str:
    named = ", ".join(str(path) for path in lost[:_NAMED])
    more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
    return f"{name}: {len(lost)} files of {images} images are not there: {named}{more}"
