"""Which values or colours occur in mask files, before anybody has said what they mean."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from densekit.data.formats.masks.files import Colour, read_colours, read_values
from densekit.types import IGNORE, DensekitError

MOST = 500
"""Files that are looked at; of more, every second or third and so on."""

_MOST_KINDS = 255  # values or colours that can be classes


@dataclasses.dataclass(frozen=True, slots=True)
class Occurring:
    """What occurs in some mask files.

    Attributes:
        pixels: how many pixels have each value, or each colour; each layer.
        files: how many were looked at.
        damaged: files that can't be read, and why.
        layers: the keys of ``pixels`` are layers of array files.
    """

    pixels: Mapping[int | Colour, int]
    files: int
    damaged: Mapping[Path, str]
    layers: bool = False

    @property
    def coloured(self) -> bool:
        """Whether the files are told by their colours."""
        return any(isinstance(key, tuple) for key in self.pixels)


def occurring(paths: Sequence[Path], *, colours: bool = False) -> Occurring:
    """Look at mask files: at their values, or their colours where any is a colour image.

    Args:
        paths: all of the set; at most ``MOST`` are looked at.
        colours: look at colours, of palette files too.

    Raises:
        DensekitError: none can be read, layers and others are mixed, or there are more values or colours than a set
            can have classes.
    """
    chosen = paths[:: -(-len(paths) // MOST)] if paths else paths
    pixels: Counter[int | Colour] = Counter()
    damaged: dict[Path, str] = {}
    layers = set[bool]()
    for path in chosen:
        try:
            found, layered = _of_file(path, colours)
        except _IsColourImage:
            return occurring(paths, colours=True)
        except DensekitError as error:
            damaged[path] = str(error).removeprefix(f"{path}: ")
            continue
        pixels.update(found)
        layers.add(layered)
        if len(pixels) > _MOST_KINDS:
            raise DensekitError(_too_many(path, len(pixels), colours))
    if not pixels:
        raise DensekitError(next(f"{path}: {why}" for path, why in damaged.items()))
    if len(layers) > 1:
        raise DensekitError(f"{chosen[0].parent}: some masks are layers [K, H, W] and others are not; use one of them")
    counted = dict(sorted(pixels.items(), key=lambda item: (0, item[0]) if isinstance(item[0], tuple) else (item[0],)))
    return Occurring(counted, len(chosen), damaged, layers == {True})


class _IsColourImage(Exception):
    pass


def _of_file(path: Path, colours: bool) -> tuple[dict[int | Colour, int], bool]:
    """Pixels by value, colour or layer, and whether by layer."""
    if colours:
        flat = read_colours(path).reshape(-1, 3).astype(np.int64)
        codes, counts = np.unique(flat[:, 0] << 16 | flat[:, 1] << 8 | flat[:, 2], return_counts=True)
        return {(c >> 16, c >> 8 & 255, c & 255): n for c, n in zip(codes.tolist(), counts.tolist())}, False
    try:
        values = read_values(path)
    except DensekitError:
        if path.suffix.lower() != ".npy":
            read_colours(path)  # a damaged file says so here
            raise _IsColourImage from None
        raise
    if values.ndim == 3:
        if not np.isin(values, (0, 1, IGNORE)).all():
            raise DensekitError(f"{path}: layers hold 0 and 1, one layer a class; save class indices as [H, W]")
        moved = values if values.shape[0] <= values.shape[2] else values.transpose(2, 0, 1)
        return {k: int((layer == 1).sum()) for k, layer in enumerate(moved)}, True
    found, counts = np.unique(values, return_counts=True)
    if found.size and not 0 <= int(found[0]) <= int(found[-1]) < 2**16:
        raise DensekitError(f"{path}: values from {found[0]} to {found[-1]}; classes are 0 to 65535")
    return dict(zip(map(int, found.tolist()), counts.tolist())), False


def _too_many(path: Path, count: int, colours: bool) -> str:
    what = "colours" if colours else "values"
    return (
        f"{path}: with this file there are {count} {what}, more than {_MOST_KINDS} that can be classes; are these "
        f"masks of classes? Soft edges, resizing with interpolation, and numbers of objects make such {what}"
    )
