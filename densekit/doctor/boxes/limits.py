"""How many objects an image has, against how many a detector may give and how many its evaluation counts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from densekit.config import Config
from densekit.data.formats.coco.file import CocoFile
from densekit.doctor.defects import Defect
from densekit.doctor.sets import Split
from densekit.errors import DensekitError
from densekit.registry import HEADS

_OPTIONS = ("max_detections", "nms_candidates", "rpn_after_nms")
"""Options of heads that limit the detections of an image; of a pair the second one holds in prediction."""

_ROOM = 1.2  # a detector's best boxes are not all right ones: this many times the objects, rounded up to
_ROUND = 50


@dataclasses.dataclass(frozen=True, slots=True)
class Limit:
    """A number of the config.

    Attributes:
        key: where it stands.
        value: that holds in prediction and evaluation.
        training: of a pair, the first.
        by_class: whether it counts the objects of each class by themselves.
    """

    key: str
    value: int
    training: int | None = None
    by_class: bool = False

    def raised(self, value: int) -> str:
        """What to write into the config."""
        return f"{self.key}={value}" if self.training is None else f"{self.key}=[{self.training},{value}]"


def limits_of(config: Config) -> list[Limit]:
    """The limits of a config's detectors and of their evaluation; none where it has no detector."""
    found = []
    for name, part in config.model.heads.items():
        try:
            options = HEADS.options(part.name)
        except DensekitError:  # told where the model is built
            continue
        for option in _OPTIONS:
            if option in options and "max_detections" in options:
                value = part.options.get(option, options[option].default)
                pair = value if isinstance(value, Sequence) else (None, value)
                found.append(Limit(f"model.heads.{name}.{option}", int(pair[1]), pair[0]))
    if found:
        found.append(Limit("evaluation.max_detections", config.evaluation.max_detections, by_class=True))
    return found


def over_limits(limits: Iterable[Limit], images: Sequence[int], classes: Sequence[int]) -> str:
    """One line where some images have more objects than a limit allows; else nothing.

    Args:
        limits: of the config.
        images: objects of each image.
        classes: objects of each image and class.
    """
    low = [limit for limit in limits if max(classes if limit.by_class else images, default=0) > limit.value]
    if not low:
        return ""
    recalls = []
    for limit in low:
        objects = np.array(classes if limit.by_class else images)
        recalls.append(np.minimum(objects, limit.value).sum() / objects.sum())
    over = sum(objects > min(limit.value for limit in low) for objects in images)
    room = -(-int(max(images) * _ROOM) // _ROUND) * _ROUND
    now = " and ".join(f"{limit.key} is {limit.value}" for limit in low)
    return (
        f"{over} of {len(images)} images with objects have more than {min(limit.value for limit in low)}, up to "
        f"{max(images)}, but {now}: recall can be {min(recalls):.3f} at most; set "
        f"{' '.join(limit.raised(room) for limit in low)}"
    )


def limit_defects(config: Config, splits: Iterable[Split], source: str) -> Iterator[Defect]:
    """Splits with more objects an image than the config's detector and its evaluation take."""
    limits = limits_of(config)
    for split in splits:
        if split.rows is not None:
            objects = [a for a in split.rows.annotations if a.crowd != 1]
            images = Counter(a.image_id for a in objects)
            classes = Counter((a.image_id, a.category_id) for a in objects)
            if line := over_limits(limits, list(images.values()), list(classes.values())):
                yield Defect("max_detections", source, f"{split.name}: {line}", source=source)


def limit_note(config: Config, file: CocoFile) -> str:
    """The same of a file that training has opened."""
    objects = ~np.asarray(file.crowd)
    owners, labels = file.owners[objects], np.asarray(file.labels)[objects]
    counts = [np.unique(keys, return_counts=True)[1] for keys in (owners, owners * len(file.classes) + labels)]
    return over_limits(limits_of(config), counts[0].tolist(), counts[1].tolist())
