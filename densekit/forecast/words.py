"""Amounts in words."""

from __future__ import annotations

GIB = 2**30
"""Bytes in a GiB."""


def in_words(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
