"""A seeded split by image, in which pictures of the same thing stay together."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from densekit.types import DensekitError

_PART = 0.2  # of the images that are kept for validation


def split_images(paths: Sequence[Path], seed: int, labels: Sequence[int] | None = None) -> tuple[list[int], list[int]]:
    """Positions to learn from and to validate on; what shows the same picture stays together.

    Args:
        paths: of the images.
        seed: of the draw.
        labels: class of each image; each class is split by itself then.

    Raises:
        DensekitError: there are less than two different images.
    """
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(_pictures(paths)):
        groups[key].append(i)
    if len(groups) < 2:
        where = paths[0].parent if paths else "the folder"
        raise DensekitError(f"{where}: {len(groups)} different images can't be split; give a val set too")
    kinds: defaultdict[int, list[list[int]]] = defaultdict(list)
    for group in groups.values():
        kinds[0 if labels is None else int(labels[group[0]])].append(group)
    random = np.random.default_rng(seed)
    held = sorted(i for kind in sorted(kinds) for i in _held(kinds[kind], random))
    chosen = set(held)
    return [i for i in range(len(paths)) if i not in chosen], held


def _held(groups: Sequence[list[int]], random: np.random.Generator) -> list[int]:
    """A fifth of the images of some groups, whole groups, and never all of them."""
    wanted = max(1, round(_PART * sum(map(len, groups))))
    held: list[int] = []
    for at in random.permutation(len(groups)).tolist()[:-1]:
        if len(held) >= wanted:
            break
        held += groups[at]
    return held


def _pictures(paths: Sequence[Path]) -> list[str]:
    """What tells each picture: the name before ``.rf.``, and for files of one size their bytes."""
    sizes = [os.path.getsize(path) if path.is_file() else -1 for path in paths]
    count: defaultdict[int, int] = defaultdict(int)
    for size in sizes:
        count[size] += 1
    keys = []
    for path, size in zip(paths, sizes):
        if ".rf." in path.name:
            keys.append(path.name.partition(".rf.")[0])
        elif size >= 0 and count[size] > 1:
            keys.append(hashlib.blake2b(path.read_bytes()).hexdigest())
        else:
            keys.append(str(path))
    return keys
