"""A data set seen through a model's label order: classes matched by name."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from densekit.data.sampling.occurrences import Occurrences
from densekit.errors import DensekitError, nearest
from densekit.types import IGNORE, Classes, Dataset, Sample, Task


class Relabelled:
    """The samples of a data set, with labels in the order of the model's classes.

    Its classes have the model's names and the data set's own ids. A class that the data set lacks keeps the model's id
    where the data set has not given it to another one.

    Args:
        inner: the data set; it may lack some of the model's classes, such as those that a small split has no object of.
        learned: the model's classes.
        where: the data set's place in the config, for messages.

    Raises:
        DensekitError: the data set has a class that the model did not learn, or none that it did.
    """

    def __init__(self, inner: Dataset, learned: Classes, where: str = "the data set") -> None:
        own = inner.classes.names
        self.inner = inner
        self.task: Task = inner.task
        self.classes = matched(inner.classes, learned, where)
        self.notes = list(getattr(inner, "notes", ()))
        if lacking := [name for name in learned.names if name not in own]:
            more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
            named = ", ".join(map(repr, lacking[:5])) + more
            self.notes.append(f"{where} does not have all of the model's classes: nothing is measured for {named}")
        self._count = len(own)
        self._table = np.arange(max(256, len(own)), dtype=np.int64)
        self._table[: len(own)] = [learned.names.index(name) for name in inner.classes.names]

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        # What metrics need beside samples, such as the annotations of a COCO file, is the data set's own.
        if name in ("inner", "__setstate__"):  # not there yet while a worker process rebuilds the object
            raise AttributeError(name)
        return getattr(self.inner, name)

    def sample(self, epoch: int, index: int) -> Sample:
        """One sample, relabelled."""
        return self._relabelled(self.inner.sample(epoch, index))

    def read(self, index: int) -> Sample:
        """One image before the transforms, relabelled."""
        sample: Sample = self.inner.read(index)  # type: ignore[attr-defined]  # of those that can be joined
        return self._relabelled(sample)

    def _relabelled(self, sample: Sample) -> Sample:
        labels = None if sample.labels is None else self._table[sample.labels]
        target = None if sample.target is None else int(self._table[sample.target])
        mask, truth = self._mask(sample.mask), self._mask(sample.truth)
        return dataclasses.replace(sample, labels=labels, target=target, mask=mask, truth=truth)

    def occurrences(self) -> Occurrences:
        """Which of the model's classes occur in which images."""
        found: Occurrences = self.inner.occurrences()  # type: ignore[attr-defined]  # not every data set tells
        return found._replace(labels=self._table[found.labels])

    def aspect_ratios(self) -> npt.NDArray[np.float32] | None:
        """The data set's own."""
        return self.inner.aspect_ratios()

    def _mask(self, mask: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.uint8] | None:
        if mask is None:
            return None
        if mask.ndim == 3:  # a layer a class: the layers change places, those of lacking classes are empty
            layers = np.zeros((len(self.classes), *mask.shape[1:]), mask.dtype)
            layers[self._table[: self._count]] = mask
            return layers
        table = self._table[:256].astype(np.uint8)
        table[IGNORE] = IGNORE
        return table[mask]


def matched(own: Classes, learned: Classes, where: str) -> Classes:
    """The model's classes with a data set's ids, by name; see ``Relabelled``.

    Raises:
        DensekitError: the data set has a class that the model did not learn.
    """
    for name in own.names:
        if name not in learned.names:
            raise DensekitError(
                f"{where} has a class {name!r} that the model did not learn ({nearest(name, learned.names)}); "
                f"rename it, or leave it out by the data set's option classes"
            )
    return Classes(learned.names, _ids(dict(zip(own.names, own.ids)), learned))


def _ids(own: dict[str, int], learned: Classes) -> tuple[int, ...]:
    used = set(own.values())
    free = (i for i in itertools.count(max([*used, *learned.ids], default=0) + 1))
    ids = []
    for name, learned_id in zip(learned.names, learned.ids):
        taken = name not in own and learned_id in used
        ids.append(next(free) if taken else own.get(name, learned_id))
    return tuple(ids)
