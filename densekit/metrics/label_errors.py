"""Objects that are probably labelled wrong, by what a detector says of them.

Three kinds: ``missing``, a confident box where nothing is annotated; ``class``, a confident box of another class on an
object whose own class nothing finds; ``not found``, an object that no box covers although the model finds most of its
class. A model finds errors best in images that it has not learned from; in those that it has, it may repeat them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from densekit.metrics.box_errors import IOU, Floats, Image, overlaps

Kind = Literal["missing", "class", "not found"]

CONFIDENT = 0.5
"""Lowest score of a box that contradicts the labels."""

_APART = 0.3  # overlap below which a box and an object are not one thing


class Suspect(NamedTuple):
    """Something to look at.

    Attributes:
        kind: of the probable error.
        image: its id.
        box: (x, y, width, height): of the detection, or of the object that is not found; empty for a whole image.
        label: what it probably is; of an object that is not found, what it is annotated as.
        was: what it is annotated as; None where nothing is.
        score: of the box; of an object that is not found the share of its class that is found.
        row: place of the object among those of its image; None where there is none.
    """

    kind: Kind
    image: int | str
    box: tuple[float, ...]
    label: int
    was: int | None
    score: float
    row: int | None


def suspects(images: Mapping[int | str, Image], classes: int) -> list[Suspect]:
    """All of them, the most probable first.

    Args:
        images: objects and what was found, by image id; scores should be calibrated.
        classes: how many there are.
    """
    found = [suspect for image_id, image in images.items() for suspect in _of_image(image_id, image)]
    known, hit = np.zeros(classes), np.zeros(classes)
    for objects, boxes in images.values():
        shares = overlaps(boxes.boxes, objects.boxes, objects.crowd)
        right = ((shares >= IOU) & (boxes.labels[:, None] == objects.labels)).any(0)
        np.add.at(known, objects.labels[~objects.crowd], 1)
        np.add.at(hit, objects.labels[~objects.crowd & right], 1)
    rates = hit / np.maximum(known, 1)
    scored = [one._replace(score=float(rates[one.label])) if one.kind == "not found" else one for one in found]
    return sorted((one for one in scored if one.score >= CONFIDENT), key=lambda one: -one.score)


def suspect_images(chances: Mapping[int | str, Floats], labels: Mapping[int | str, int]) -> list[Suspect]:
    """Images whose class is probably another one, the most probable first.

    Args:
        chances: [K] calibrated probabilities, by image id.
        labels: what each image is annotated as.
    """
    found = [
        Suspect("class", image_id, (), int(p.argmax()), labels[image_id], float(p.max()), None)
        for image_id, p in chances.items()
        if p.argmax() != labels[image_id] and p.max() >= CONFIDENT
    ]
    return sorted(found, key=lambda one: -one.score)


def _of_image(image_id: int | str, image: Image) -> list[Suspect]:
    objects, found = image
    shares = overlaps(found.boxes, objects.boxes, objects.crowd)
    alike = found.labels[:, None] == objects.labels
    own = ((shares >= IOU) & alike).any(1)
    free = ~objects.crowd
    suspicious: list[Suspect] = []
    for d in np.flatnonzero((found.scores >= CONFIDENT) & ~own):
        box, label, score = tuple(found.boxes[d].tolist()), int(found.labels[d]), float(found.scores[d])
        if shares[d].max(initial=0.0) < _APART:
            suspicious.append(Suspect("missing", image_id, box, label, None, score, None))
            continue
        best = int(np.where(free, shares[d], 0).argmax())
        rivals = (shares[:, best] >= IOU) & alike[:, best]
        if free[best] and shares[d, best] >= IOU and not (found.scores[rivals] >= CONFIDENT).any():
            was = int(objects.labels[best])
            suspicious.append(Suspect("class", image_id, box, label, was, score, best))
    for o in np.flatnonzero(free & (shares.max(0, initial=0.0) < _APART)):
        label = int(objects.labels[o])
        suspicious.append(Suspect("not found", image_id, tuple(objects.boxes[o].tolist()), label, label, 0.0, int(o)))
    return suspicious
