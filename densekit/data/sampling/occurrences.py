"""Which classes occur in which images of a data set."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from densekit.types import Dataset, DensekitError


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


def occurrences_of(train_set: Dataset, kind: str, asking: str, remedy: str) -> Occurrences:
    """The occurrences of a data set.

    Args:
        train_set: the data set.
        kind: its name in the config, for the error.
        asking: the option that needs them, likewise.
        remedy: what to do about it, likewise.

    Raises:
        DensekitError: a data set that doesn't tell its images' classes.
    """
    if not hasattr(getattr(train_set, "inner", train_set), "occurrences"):
        raise DensekitError(f"{asking} looks at the classes of each image, which {kind} does not tell; {remedy}")
    found: Occurrences = train_set.occurrences()  # type: ignore[attr-defined]  # seen above
    return found
