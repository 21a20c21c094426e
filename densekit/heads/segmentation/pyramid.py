"""From any backbone's levels to the list of maps that smp's decoders take.

smp's encoders give ``[input, stride 2, stride 4, ...]``. Its decoders never look at the values of the first entry, so
an empty map of the input's size stands there.

Letters: B images, C channels, H, W size of the padded input, L maps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from densekit.types import DensekitError, Level


@dataclasses.dataclass(frozen=True, slots=True)
class Pyramid:
    """Which of the backbone's maps a decoder sees, finest first.

    Attributes:
        levels: their shapes; an empty level has 0 channels.
        sources: index of each in the backbone's maps; None for an empty level.
        base: channels and stride of the backbone's first map, from which the input's size is known.
    """

    levels: tuple[Level, ...]
    sources: tuple[int | None, ...]
    base: Level

    @property
    def encoder_channels(self) -> list[int]:
        """What smp's decoders call so: the input's channels, which nothing uses, then those of each map."""
        return [0, *(level.channels for level in self.levels)]

    def __call__(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps -> [empty input, map, map, ...] as smp's decoders take them."""
        first = maps[0]
        batch, (height, width) = first.shape[0], first.shape[-2:]
        height, width = height * self.base.stride, width * self.base.stride
        features = [first.new_empty((batch, 0, height, width))]
        for level, source in zip(self.levels, self.sources):
            empty = first.new_empty((batch, 0, height // level.stride, width // level.stride))
            features.append(empty if source is None else maps[source])
        return features


def every_level(levels: Sequence[Level]) -> Pyramid:
    """All levels, with an empty one at each power of two that the backbone leaves out (tresnet has no stride 2)."""
    indexed = list(zip(levels, range(len(levels))))
    return _pyramid(levels, [*indexed, *((empty, None) for empty in _missing(levels))])


def doubling_levels(levels: Sequence[Level], name: str) -> Pyramid:
    """Strides 2, 4, 8, ..., each once, for decoders that double the size at each step; stride 1 is left out.

    Raises:
        DensekitError: two levels of the same stride, as a backbone with dilations has them.
    """
    strides = [level.stride for level in levels]
    if len(set(strides)) < len(strides):
        raise DensekitError(
            f"head {name!r} doubles the size at each level but the backbone's strides are {strides}; "
            f"set the backbone's output_stride to 32, or take unet, deeplab_v3, deeplab_v3_plus, pan or upernet"
        )
    chosen = [(level, index) for index, level in enumerate(levels) if level.stride > 1]
    if not chosen:
        raise DensekitError(f"head {name!r} needs a level of stride 2 or more; the backbone's strides are {strides}")
    return _pyramid(levels, [*chosen, *((empty, None) for empty in _missing(levels))])


def last_levels(levels: Sequence[Level], name: str, *, least: int, most: int = 4) -> Pyramid:
    """The coarsest ``most`` levels (c2 .. c5 of a ResNet).

    Raises:
        DensekitError: the backbone has fewer than ``least``.
    """
    if len(levels) < least:
        raise DensekitError(
            f"head {name!r} needs {least} levels but the backbone has {len(levels)} "
            f"({', '.join(level.name for level in levels)}); take another head, such as unet"
        )
    indexed = list(zip(levels, range(len(levels))))
    return _pyramid(levels, indexed[-most:])


def level_named(levels: Sequence[Level], name: str, option: str) -> int:
    """Index of a level by its name.

    Raises:
        DensekitError: the backbone has no such level.
    """
    names = [level.name for level in levels]
    if name not in names:
        raise DensekitError(f"{option}: there is no level {name!r}; the backbone has {', '.join(names)}")
    return names.index(name)


def _missing(levels: Sequence[Level]) -> list[Level]:
    """Empty levels at the powers of two from 2 to the coarsest stride that no level has."""
    strides = {level.stride for level in levels}
    powers = [1 << bit for bit in range(1, max(strides).bit_length())]
    return [Level(f"empty{stride}", 0, stride) for stride in powers if stride not in strides]


def _pyramid(levels: Sequence[Level], chosen: Sequence[tuple[Level, int | None]]) -> Pyramid:
    ordered = sorted(chosen, key=lambda pair: pair[0].stride)  # stable: levels of one stride keep their order
    return Pyramid(tuple(level for level, _ in ordered), tuple(source for _, source in ordered), levels[0])
