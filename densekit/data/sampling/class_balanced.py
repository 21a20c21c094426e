"""Classes are shown alike, however often they occur (Shen et al. 2016, arXiv 1512.05830, section 3.3)."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
import pydantic

from densekit.data.sampling.occurrences import Occurrences
from densekit.registry import SAMPLINGS


@SAMPLINGS.register
def class_balanced(
    occurrences: Occurrences, *, power: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
) -> npt.NDArray[np.float64]:
    """Show images as if first a class was drawn, then an image with it: of n images with probability n ** power.

    An epoch has as many images as the data set: some several times, and some not at all in most epochs. Those without
    an object keep their part of it.

    Args:
        occurrences: of the training set.
        power: 0 draws all classes alike, 0.5 by the square root of their images (q in Kang et al. 2020, arXiv
            1910.09217, equation 1); towards 1 the images are shown as they are.

    Returns:
        [total] how often an epoch shows each image, on average.
    """
    once = occurrences.once()
    images = np.maximum(np.bincount(once.labels), 1).astype(np.float64)
    shares = np.bincount(once.images, (images ** (power - 1))[once.labels], minlength=occurrences.total)
    shown = shares > 0
    repeats = np.ones(occurrences.total)
    repeats[shown] = shares[shown] / shares[shown].mean() if shown.any() else 1.0
    return repeats
