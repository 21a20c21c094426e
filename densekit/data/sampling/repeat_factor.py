"""Images of rare classes are shown more often (LVIS, Gupta et al. 2019, arXiv 1908.03195, section 4.3)."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
import pydantic

from densekit.data.sampling.occurrences import Occurrences
from densekit.registry import SAMPLINGS


@SAMPLINGS.register
def repeat_factor(
    occurrences: Occurrences, *, threshold: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.001
) -> npt.NDArray[np.float64]:
    """Show an image max(1, sqrt(threshold / f)) times an epoch, f being the part of images with its rarest class.

    An epoch has more images than the data set then. Those without an object are shown once.

    Args:
        occurrences: of the training set.
        threshold: classes that occur in a smaller part of the images are oversampled.

    Returns:
        [total] how often an epoch shows each image, on average.
    """
    once = occurrences.once()
    parts = np.bincount(once.labels) / occurrences.total
    factors = np.sqrt(threshold / np.maximum(parts, 1 / occurrences.total))
    repeats = np.ones(occurrences.total)
    np.maximum.at(repeats, once.images, factors[once.labels])
    return repeats
