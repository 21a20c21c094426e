"""The masks that COCO's average precision of instances compares: as run lengths, made and kept one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from densekit.errors import DensekitError
from densekit.ops.paste import pasted_mask
from densekit.ops.run_lengths import compressed, encoded
from densekit.types import Instance

Rle = dict[str, Any]


class MaskTruth(Protocol):
    """The columns that mask AP needs of a COCO file beside those of box AP."""

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """[I, 2] (height, width) of each image."""
        ...

    @property
    def boxes(self) -> npt.NDArray[np.float64]:
        """[A, 4] (x, y, width, height)."""
        ...

    def runs(self, image: int, annotation: int) -> npt.NDArray[np.int64] | None:
        """Run lengths of the mask of an image's annotation; None where it has none."""
        ...


class TrueMasks(NamedTuple):
    """The masks of A annotations.

    Attributes:
        rles: their run lengths.
        unknown: [A] which of them have no mask. What is found in their boxes can be neither right nor wrong, so these
            boxes stand for a mask, and are to be ignored as crowds are.
    """

    rles: list[Rle]
    unknown: npt.NDArray[np.bool_]


def found_masks(
    cells: npt.NDArray[np.float32], boxes: npt.NDArray[Any], size: Sequence[int], image: object
) -> list[Rle]:
    """The masks that were found in an image.

    Args:
        cells: [n, M, M] probabilities.
        boxes: [n, 4] xyxy in the image's own pixels.
        size: (height, width) of the image.
        image: its id, for the message.

    Raises:
        DensekitError: a probability is not finite.
    """
    if not np.isfinite(cells).all():
        raise DensekitError(f"image {image!r}: a predicted mask is not finite; check the weights")
    return [encoded(pasted_mask(one, box, size), size) for one, box in zip(cells, boxes.tolist())]


def true_masks(truth: MaskTruth, rows: Iterable[tuple[int, int]]) -> TrueMasks | None:
    """The masks of annotations, each given by the positions of its image and of itself; None where none has a mask."""
    masks, unknown = [], []
    for image, row in rows:
        runs, size = truth.runs(image, row), truth.sizes[image].tolist()
        unknown.append(runs is None)
        masks.append(encoded(_filled(truth.boxes[row], size), size) if runs is None else compressed(runs, size))
    return None if all(unknown) else TrueMasks(masks, np.array(unknown, np.bool_))


def _filled(box: npt.NDArray[np.float64], size: Sequence[int]) -> Instance:
    """All pixels that a box (x, y, width, height) touches."""
    x, y, width, height = box.tolist()
    left, top = max(0, int(np.floor(x))), max(0, int(np.floor(y)))
    right, bottom = min(size[1], int(np.ceil(x + width))), min(size[0], int(np.ceil(y + height)))
    return Instance(left, top, np.ones((max(0, bottom - top), max(0, right - left)), np.uint8))
