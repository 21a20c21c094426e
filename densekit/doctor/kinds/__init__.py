"""The table of everything that the doctor can find: one line a code, with why it hurts and what to do about it."""

from __future__ import annotations

from densekit.doctor.kinds.annotations import ANNOTATIONS
from densekit.doctor.kinds.files import FILES
from densekit.doctor.kinds.kind import Kind
from densekit.doctor.kinds.sets import SETS

KINDS: dict[str, Kind] = {**ANNOTATIONS, **FILES, **SETS}
