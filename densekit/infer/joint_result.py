"""What several heads found in one image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import PIL.Image

from densekit.errors import DensekitError, nearest
from densekit.infer.results import BoxResult, ClassResult, Legend, MaskResult, Seen
from densekit.show.drawing import Image, enlarged, with_legend

_ORDER = (MaskResult, BoxResult, ClassResult)
"""What is painted first: boxes lie over masks."""


@dataclasses.dataclass(frozen=True, eq=False)
class JointResult:
    """The results of the heads by name: ``result["boxes"].scores``, ``for head in result``.

    Attributes:
        image: that was predicted.
        heads: each one's result, in the names and ids of the data set that it learned from.
    """

    image: Seen
    heads: dict[str, BoxResult | MaskResult | ClassResult]

    def __getitem__(self, head: str) -> BoxResult | MaskResult | ClassResult:
        if head not in self.heads:
            raise DensekitError(f"there is no head {head!r}; {nearest(head, self.heads)}")
        return self.heads[head]

    def __iter__(self) -> Iterator[str]:
        return iter(self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    def draw(self, score: float | None = None) -> PIL.Image.Image:
        """The image with what all heads found, boxes over masks, and one legend below; enlarged where small.

        Classes have a colour each, over all heads.

        Args:
            score: lowest one of boxes that are drawn; None: see ``BoxResult.cuts``.
        """
        return PIL.Image.fromarray(self.picture(score))

    def picture(self, score: float | None = None) -> Image:
        """As ``draw``, as an RGB array."""
        return with_legend(*self._painted(score))

    def frame(self, score: float | None = None) -> Image:
        """As ``picture``, without the legend."""
        return self._painted(score)[0]

    def to_coco(self) -> list[dict[str, Any]]:
        """The heads' entries of a COCO result file, each with its ``head``."""
        return [{"head": head, **entry} for head, one in self.heads.items() for entry in one.to_coco()]

    def to_supervision(self) -> dict[str, Any]:
        """By head, the same in the types of the package ``supervision``.

        Raises:
            DensekitError: it is not installed.
        """
        return {head: one.to_supervision() for head, one in self.heads.items()}

    def _painted(self, score: float | None) -> tuple[Image, Legend]:
        colours, count = {}, 0
        for head, one in self.heads.items():
            colours[head] = count
            count += len(one.classes)
        picture, times = enlarged(self.image.look())
        legend: Legend = []
        for head, one in sorted(self.heads.items(), key=lambda item: _ORDER.index(type(item[1]))):
            picture, words = one.painted(picture, times, score=score, first=colours[head])
            legend += words
        return picture, legend
