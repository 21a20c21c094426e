"""A seeded split by image, in which pictures of the same scene stay together."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from densekit.data.images.read import MAX_PIXELS
from densekit.doctor.images.checks import Look, Question, look
from densekit.doctor.images.duplicates import same_scenes
from densekit.doctor.parallel import over_files
from densekit.types import DensekitError

_PART = 0.2  # of the images that are kept for validation
_MOST, _MOST_BYTES = 3000, 2**31  # of images that are looked at for scenes: minutes, not hours
_LARGEST = 0.5  # of the images that one scene may have for the split to go by scenes


def split_images(
    paths: Sequence[Path], seed: int, labels: Sequence[int] | None = None
) -> tuple[list[int], list[int], list[str]]:
    """Positions to learn from and to validate on, and lines on what stays together.

    Args:
        paths: of the images.
        seed: of the draw.
        labels: class of each image; each class is split by itself then.

    Raises:
        DensekitError: there are less than two different images.
    """
    same: defaultdict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(_pictures(paths)):
        same[key].append(i)
    groups, lines = _by_scene(list(same.values()), paths)
    if len(groups) < 2:
        where = paths[0].parent if paths else "the folder"
        raise DensekitError(
            f"{where}: {len(paths)} images, which are no two different ones, can't be split; add images, or a val set"
        )
    kinds: defaultdict[int, list[list[int]]] = defaultdict(list)
    for group in groups:
        kinds[0 if labels is None else int(labels[group[0]])].append(group)
    random = np.random.default_rng(seed)
    held = sorted(i for kind in sorted(kinds) for i in _held(kinds[kind], random))
    if not held:
        raise DensekitError(f"{paths[0].parent}: no class has two different images to split; add images, or a val set")
    chosen = set(held)
    return [i for i in range(len(paths)) if i not in chosen], held, lines


def _by_scene(groups: list[list[int]], paths: Sequence[Path]) -> tuple[list[list[int]], list[str]]:
    """Groups of copies joined where the first of each show the same scene, and a line on that."""
    firsts = [paths[group[0]] for group in groups]
    size = sum(os.path.getsize(path) for path in firsts if path.is_file())
    if len(firsts) > _MOST or size > _MOST_BYTES:
        limits = f"{_MOST} images or {_MOST_BYTES >> 30} GB"
        return groups, [f"pictures of the same scene were not looked for among so many ({limits} at most)"]
    looks = over_files(look, [Question(path, None, MAX_PIXELS) for path in firsts], "images", _unseen)
    scenes = same_scenes(looks, shown=True)
    if not scenes:
        return groups, []
    largest = max(scenes, key=len)
    example = f"{firsts[largest[0]].name} and {firsts[largest[1]].name}"
    if sum(len(groups[p]) for p in largest) > _LARGEST * len(paths):
        return groups, [
            f"{len(largest)} pictures hang together as one scene ({example}), too many to keep together: the split is "
            f"by image, and numbers on val say little of other scenes"
        ]
    joined = {p: k for k, scene in enumerate(scenes) for p in scene}
    merged: defaultdict[int, list[int]] = defaultdict(list)
    for p, group in enumerate(groups):
        merged[joined.get(p, len(scenes) + p)] += group
    count = sum(map(len, scenes))
    return list(merged.values()), [f"{count} pictures of {len(scenes)} scenes stay together, such as {example}"]


def _unseen(question: Question) -> Look:
    return Look(question.path)


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
