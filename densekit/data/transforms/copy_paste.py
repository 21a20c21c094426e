"""Copy-paste: objects of one image, or pixels of some of its classes, laid over another.

H, W size of an image.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pydantic

from densekit.data.transforms.geometry import keep_boxes, select_boxes
from densekit.data.transforms.instances import taken, trimmed
from densekit.data.transforms.mixing import Mixing, Others, Part, Probability, pixels_alike, with_objects_of
from densekit.types import IGNORE, Instance, Sample

Covered = npt.NDArray[np.bool_]


class CopyPaste(Mixing):
    """Paste objects of another image at their places (Ghiasi et al. 2021, arXiv 2012.07177), or pixels of its classes.

    With boxes and masks of objects, the number of objects is drawn from 1 to ``most``, then which. What they cover is
    taken from the masks below them, whose boxes shrink along; an object of which less than ``min_visible`` stays is
    dropped, one of which nothing stays always. Crowds and objects without a mask are not pasted; such an object is
    dropped where all of its box is covered.

    With a map of classes, half of the classes that occur in the other image are drawn, and their pixels are pasted with
    their labels (ClassMix, Olsson et al. 2021, arXiv 2007.07936); where there is a layer a class, all layers of these
    pixels are.

    The other image has been through the transforms before: ``ScaleJitter`` and a flip there, as in the paper, give it
    another scale and place.

    Args:
        p: probability that something is pasted.
        classes: names of those to paste; of a map of classes all of them then, not half. None: any.
        most: objects that are pasted at most.
        min_visible: part of its mask that a covered object must keep.
        until: part of the run's epochs after which nothing is pasted any more.
    """

    pastes_masks = True

    @pydantic.validate_call
    def __init__(
        self,
        *,
        p: Probability = 0.5,
        classes: tuple[str, ...] | None = None,
        most: Annotated[int, pydantic.Field(ge=1)] = 100,
        min_visible: Probability = 0.0,
        until: Part = 1.0,
    ) -> None:
        if classes == ():
            raise ValueError("classes lists no class")
        self.p, self.classes, self.most, self.min_visible, self.until = p, classes, most, min_visible, until

    def most_objects(self, most: int) -> int:
        """See ``Mixing``."""
        return most + min(most, self.most)

    def __call__(self, sample: Sample, random: np.random.Generator, others: Others) -> Sample:
        """Paste from another image, or nothing where it has nothing to paste."""
        other = others.draw()
        labels = np.array([i for i, n in enumerate(others.classes.names) if self.classes is None or n in self.classes])
        if sample.mask is not None:
            return self._with_classes(sample, other, labels, random)
        return self._with_objects(sample, other, labels, random)

    def _with_objects(
        self, sample: Sample, other: Sample, labels: npt.NDArray[np.int64], random: np.random.Generator
    ) -> Sample:
        assert other.boxes is not None, "copy-paste needs boxes, or a map of classes"
        size = sample.image.shape[:2]
        inside = taken(other.instances, *(np.arange(min(s, o)) for s, o in zip(size, other.image.shape[:2])))
        other = keep_boxes(dataclasses.replace(other, instances=inside), other.boxes, size)
        assert other.boxes is not None
        assert other.labels is not None
        assert other.crowd is not None
        assert other.instances is not None, "copy-paste needs the masks of objects"
        visible = np.array([one.mask.size > 0 for one in other.instances], np.bool_)
        choice = np.flatnonzero(visible & ~other.crowd & np.isin(other.labels, labels))
        if not len(choice):
            return sample
        count = int(random.integers(1, min(len(choice), self.most) + 1))
        rows = np.sort(random.permutation(choice)[:count])
        pasted = select_boxes(other, rows, other.boxes[rows])
        covered = _painted([other.instances[row] for row in rows.tolist()], size)
        sample = self._beneath(_over(sample, other, covered), covered)
        return with_objects_of(sample, pasted)

    def _with_classes(
        self, sample: Sample, other: Sample, labels: npt.NDArray[np.int64], random: np.random.Generator
    ) -> Sample:
        assert sample.mask is not None
        assert other.mask is not None
        height, width = (min(s, o) for s, o in zip(sample.image.shape[:2], other.image.shape[:2]))
        seen = other.mask[..., :height, :width]
        occurring = np.flatnonzero((seen == 1).any((1, 2))) if seen.ndim == 3 else np.unique(seen[seen != IGNORE])
        chosen = occurring[np.isin(occurring, labels)]
        if self.classes is None:
            chosen = random.permutation(chosen)[: len(chosen) // 2]
        covered = np.zeros(sample.image.shape[:2], np.bool_)
        covered[:height, :width] = (seen[chosen] == 1).any(0) if seen.ndim == 3 else np.isin(seen, chosen)
        mask = sample.mask.copy()
        inner = covered[:height, :width]
        mask[..., :height, :width][..., inner] = seen[..., inner]
        return dataclasses.replace(_over(sample, other, covered), mask=mask)

    def _beneath(self, sample: Sample, covered: Covered) -> Sample:
        """The sample with what its objects keep; those that keep too little dropped."""
        assert sample.boxes is not None
        assert sample.instances is not None
        boxes, instances, kept = sample.boxes.copy(), list(sample.instances), []
        for row, one in enumerate(sample.instances):
            x, y, mask = one
            if not mask.size:
                if not _hidden(boxes[row], covered):
                    kept.append(row)
                continue
            left = mask * ~covered[y : y + mask.shape[0], x : x + mask.shape[1]]
            before, after = int(mask.sum()), int(left.sum())
            if after and after >= self.min_visible * before:
                kept.append(row)
            if 0 < after < before:
                instances[row] = trimmed(Instance(x, y, left))
                boxes[row] = _shrunk(boxes[row], trimmed(one), instances[row])
        rows = np.array(kept, np.int64)
        return select_boxes(dataclasses.replace(sample, instances=instances), rows, boxes[rows])


def _over(sample: Sample, other: Sample, covered: Covered) -> Sample:
    """The sample with the other's pixels where it is covered."""
    image, pasted = pixels_alike((sample.image, other.image))
    height, width = (min(a, b) for a, b in zip(image.shape[:2], pasted.shape[:2]))
    image = image.copy()
    inner = covered[:height, :width]
    image[:height, :width][inner] = pasted[:height, :width][inner]
    return dataclasses.replace(sample, image=image)


def _painted(instances: list[Instance], size: tuple[int, ...]) -> Covered:
    """[H, W] which pixels any of the masks fills."""
    covered = np.zeros(size, np.bool_)
    for x, y, mask in instances:
        covered[y : y + mask.shape[0], x : x + mask.shape[1]] |= mask.view(np.bool_)
    return covered


def _hidden(box: npt.NDArray[Any], covered: Covered) -> bool:
    """Whether every pixel that a box touches is covered."""
    left, top = np.floor(box[:2]).astype(int)
    right, bottom = np.ceil(box[2:]).astype(int)
    return bool(covered[top:bottom, left:right].all())


def _shrunk(box: npt.NDArray[np.float32], before: Instance, after: Instance) -> npt.NDArray[np.float32]:
    """A box with those sides moved where its mask's own side moved."""
    old, new = (np.array([o.x, o.y, o.x + o.mask.shape[1], o.y + o.mask.shape[0]], np.float32) for o in (before, after))
    return np.where(old == new, box, new)
