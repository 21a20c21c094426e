"""What tells images from masks where both lie in one folder, or are named differently: the ends of their names."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from densekit.data.formats.masks.files import MASK_SUFFIXES
from densekit.data.images.read import IMAGE_SUFFIXES

_TRIED = 20  # names that ends are taken from
_MASK_WORDS = re.compile(r"mask|label|seg|gt|truth|annot|target", re.IGNORECASE)


def found_suffixes(images: Sequence[str], masks: Sequence[str]) -> tuple[str, str] | None:
    """The ends of image and mask names behind the part that both share, such as ``.jpg`` and ``_mask.png``.

    Args:
        images: names of a folder's files.
        masks: likewise; the same names where there is one folder.

    Returns:
        (image_suffix, mask_suffix) where exactly one such pair makes pairs of all files; else None.
    """
    one_folder = set(images) == set(masks)
    images = [n for n in images if n.lower().endswith(tuple(IMAGE_SUFFIXES))]
    masks = [n for n in masks if n.lower().endswith(tuple(MASK_SUFFIXES))]
    found = []
    for image_end, mask_end in _candidates(images, masks):
        these = {
            n.removesuffix(image_end)
            for n in images
            if n.endswith(image_end) and not has_longer(n, mask_end, image_end)
        }
        those = {
            n.removesuffix(mask_end) for n in masks if n.endswith(mask_end) and not has_longer(n, image_end, mask_end)
        }
        files = len({*images, *masks}) if one_folder else len(images) + len(masks)
        if these == those and len(these) + len(those) == files and "" not in these:
            found.append((image_end, mask_end))
    if len(found) == 2 and found[0] == found[1][::-1]:  # which is which, a word must tell
        found = [ends for ends in found if _MASK_WORDS.search(ends[1]) and not _MASK_WORDS.search(ends[0])]
    return found[0] if len(found) == 1 else None


def has_longer(name: str, longer: str, own: str) -> bool:
    """Whether a name has the longer of two ends, one of which is the end of the other."""
    return len(longer) > len(own) and longer.endswith(own) and name.endswith(longer)


def _candidates(images: Sequence[str], masks: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Pairs of ends that the names of one image and a mask leave behind their common beginning."""
    if not images or not masks:
        return []
    by_beginning: defaultdict[str, list[str]] = defaultdict(list)
    for name in masks:
        for cut in _cuts(name):
            by_beginning[name[:cut]].append(name[cut:])
    tried: Counter[tuple[str, str]] = Counter()
    for name in images[:_TRIED]:
        for cut in _cuts(name):
            for end in by_beginning.get(name[:cut], ())[:_TRIED]:
                if name[cut:] != end:
                    tried[name[cut:], end] += 1
    return [ends for ends, _ in tried.most_common(_TRIED)]


def _cuts(name: str) -> list[int]:
    """Where a name may be cut: before its ending, and before each separator or change from digits to letters."""
    stem = os.path.splitext(name)[0]
    inner = [m.start() for m in re.finditer(r"[_.\- ]|(?<=\d)(?=[A-Za-z])", stem)]
    return [len(stem), *(cut for cut in inner if cut)]
