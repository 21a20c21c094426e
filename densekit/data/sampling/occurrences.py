"""Which classes occur in which images of a data set."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt


class Occurrences(NamedTuple):
    """The objects of a data set, or what stands for them: labels of whole images, classes in maps.

    Attributes:
        total: images in the data set.
        images: [n] the image of each object.
        labels: [n] its class.
    """

    total: int
    images: npt.NDArray[np.integer[Any]]
    labels: npt.NDArray[np.integer[Any]]

    def once(self) -> Self:
        """Each class once in each image."""
        classes = int(self.labels.max(initial=0)) + 1
        pairs = np.unique(self.images.astype(np.int64) * classes + self.labels)
        return type(self)(self.total, *np.divmod(pairs, classes))
