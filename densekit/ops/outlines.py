"""Outlines of masks as polygons, for programs that know no other masks."""

from __future__ import annotations

import cv2
import numpy as np

from densekit.types import Instance


def outlines(instance: Instance) -> list[list[float]]:
    """A polygon around each connected part of a mask; holes are filled, since a polygon can't have any.

    They run a quarter of a pixel outside of the outermost pixels' centres, so that drawing them gives these pixels
    again, down to parts of a single one.

    Returns:
        Flat lists x1, y1, x2, y2, ... in continuous pixels, where the first pixel spans 0..1; of at least four points.
    """
    x, y, mask = instance
    if not mask.size:
        return []
    doubled = np.ascontiguousarray(mask.repeat(2, 0).repeat(2, 1))
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((c.reshape(-1, 2) + 0.5) / 2 + (x, y)).ravel().tolist() for c in contours]
