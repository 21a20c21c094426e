"""Images that occur twice, byte by byte or nearly, within a set and across its splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from densekit.doctor.defects import Defect
from densekit.doctor.image_checks import Look


def identical_images(splits: Sequence[tuple[str, list[Look]]]) -> Iterator[Defect]:
    """Images that an earlier one equals; each is told once."""
    first: dict[bytes, tuple[str, Look]] = {}
    for name, looks in splits:
        for look in looks:
            if look.digest and look.size is not None:
                earlier, other = first.setdefault(look.digest, (name, look))
                if other is not look or earlier != name:
                    yield told(look, name, other, earlier, "identical", "the same bytes as")


def told(look: Look, name: str, other: Look, earlier: str, how: str, words: str) -> Defect:
    """The defect of one of two images, by whether they are in one split."""
    code = f"image_{how}" if name == earlier else f"leak_{how}"
    where = "" if name == earlier else f" of {earlier or 'another set'}"
    message = f"{words} {other.path}{where}"
    return Defect(code, str(look.path), message, picture=look.path)
