"""Sizes of objects against the anchors of a config's detector."""

from __future__ import annotations

from collections.abc import Iterator

from densekit.config import Config
from densekit.doctor.defects import Defect
from densekit.doctor.sets import Split


def anchor_defects(config: Config, split: Split, source: str) -> Iterator[Defect]:
    yield from ()
