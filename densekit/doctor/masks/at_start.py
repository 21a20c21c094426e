"""A few masks of a training set, looked at before it is learned from."""

from __future__ import annotations

import numpy as np

from densekit.data.formats.masks.masks import MaskFolder
from densekit.doctor.kinds import KINDS
from densekit.doctor.masks.values import Counts, ignored_object
from densekit.errors import DensekitError
from densekit.types import IGNORE

_LOOKED_AT = 24  # masks at most, unless these look wrong
_FEW = 3  # masks: fewer say nothing of a set


def mask_notes(source: MaskFolder) -> list[str]:
    """One line where all masks that were looked at show one class.

    Raises:
        DensekitError: a class has no pixel in any mask while many are 255; so it says after a look at all of them.
    """
    if source.code.layers:
        return []
    chosen = range(0, len(source), -(-len(source) // _LOOKED_AT))
    counts = np.zeros(256, np.int64)
    try:
        for index in chosen:
            counts += np.bincount(source.mask(index).ravel(), minlength=256)
        if ignored_object(source.code, counts) is not None:
            _look_at_the_others(source, chosen, counts)
    except DensekitError:  # a mask that can't be read is told when training comes to it
        return []
    if (message := ignored_object(source.code, counts)) is not None:
        raise DensekitError(f"{source.masks}: {message}")
    return _of_one_class(source, counts, len(chosen))


def _look_at_the_others(source: MaskFolder, chosen: range, counts: Counts) -> None:
    """Count on until each class was seen that may be."""
    for index in range(len(source)):
        if index not in chosen:
            counts += np.bincount(source.mask(index).ravel(), minlength=256)
            if ignored_object(source.code, counts) is None:
                return


def _of_one_class(source: MaskFolder, counts: Counts, looked_at: int) -> list[str]:
    found = np.flatnonzero(counts[:IGNORE]).tolist()
    if len(source.classes) < 2 or len(found) > 1 or looked_at < _FEW:
        return []
    name = source.classes.names[found[0]] if found else "ignored"
    also = " or ignored" if counts[IGNORE] else ""
    return [
        f"data: every pixel of the {looked_at} masks that were looked at is {name!r}{also}; "
        f"{KINDS['masks_of_one_class'].remedy}"
    ]
