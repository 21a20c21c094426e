"""A data set seen through another one's label order: classes matched by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from densekit.errors import DensekitError, nearest
from densekit.types import IGNORE, Classes, Dataset, Sample, Task


class Relabelled:
    """The samples of a data set, with labels in the order of ``names``; ids stay the data set's own.

    Args:
        inner: the data set.
        names: the same class names as the data set's, in the order that a model learned them.

    Raises:
        DensekitError: the names are not the same.
    """

    def __init__(self, inner: Dataset, names: tuple[str, ...]) -> None:
        own = dict(zip(inner.classes.names, inner.classes.ids))
        for name in names:
            if name not in own:
                raise DensekitError(f"the data set has no class {name!r} that the model learned; {nearest(name, own)}")
        for name in own:
            if name not in names:
                raise DensekitError(f"the data set has a class {name!r} that the model did not learn; leave it out")
        self.inner = inner
        self.task: Task = inner.task
        self.classes = Classes(names, tuple(own[name] for name in names))
        self._table = np.arange(max(256, len(own)), dtype=np.int64)
        self._table[: len(own)] = [names.index(name) for name in inner.classes.names]
        self._order = np.argsort(self._table[: len(own)])

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        # What metrics need beside samples, such as the annotations of a COCO file, is the data set's own.
        if name in ("inner", "__setstate__"):  # not there yet while a worker process rebuilds the object
            raise AttributeError(name)
        return getattr(self.inner, name)

    def sample(self, epoch: int, index: int) -> Sample:
        """One sample, relabelled."""
        sample = self.inner.sample(epoch, index)
        labels = None if sample.labels is None else self._table[sample.labels]
        target = None if sample.target is None else int(self._table[sample.target])
        mask, truth = self._mask(sample.mask), self._mask(sample.truth)
        return dataclasses.replace(sample, labels=labels, target=target, mask=mask, truth=truth)

    def aspect_ratios(self) -> npt.NDArray[np.float32] | None:
        """The data set's own."""
        return self.inner.aspect_ratios()

    def _mask(self, mask: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.uint8] | None:
        if mask is None or mask.ndim == 3:  # a layer a class: the layers change places
            return None if mask is None else np.ascontiguousarray(mask[self._order])
        table = self._table[:256].astype(np.uint8)
        table[IGNORE] = IGNORE
        return table[mask]
