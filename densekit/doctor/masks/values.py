"""A class that no pixel belongs to, while the masks hold many 255 that are ignored: the object, written as in 0/255."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from densekit.data.formats.masks.files import MaskCode
from densekit.types import IGNORE

Counts = npt.NDArray[np.int64]

_MANY = 0.01  # part of the pixels


def ignored_object(code: MaskCode, counts: Counts) -> str | None:
    """What is wrong and how to write it, where 255 seems to be a class that has no pixel; None where it does not.

    Args:
        code: what the values of the masks mean.
        counts: [256] pixels of each label, ``IGNORE`` among them.
    """
    names, known = code.classes.names, counts[: len(code.classes)] > 0
    absent = [name for name, there in zip(names, known) if not there]
    if code.layers or code.colours is not None or IGNORE not in code.ignore or IGNORE in code.classes.ids or not absent:
        return None
    share = counts[IGNORE] / max(1, counts.sum())
    # Who writes that 255 is ignored means it, unless nothing else would be left to learn.
    if len(names) < 2 or share < _MANY or (code.ignore_given and known.sum() > 1):
        return None
    values = {**dict(zip(names, code.classes.ids)), absent[-1]: IGNORE}
    remedy = f"classes: {{{', '.join(f'{name}: {value}' for name, value in values.items())}}}"
    other = "; where 255 is to be ignored, leave the class out, or write ignore: [255]" if known.sum() > 1 else ""
    return (
        f"no pixel is of class {', '.join(map(repr, absent[:5]))}, while {share:.1%} are 255, which is ignored; if 255 "
        f"is {absent[-1]!r}, write {remedy}{other}"
    )
