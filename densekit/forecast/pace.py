"""What a run turns out to take, told once when its first steps are done: it costs them nothing."""

from __future__ import annotations

from densekit.forecast.words import GIB, in_words

WATCHED = 5
"""Steps that are timed; the one before them also builds what the others find there."""


class Pace:
    """Times the first steps of a run, or of one that goes on.

    Args:
        steps: length of the run.
        folder: bytes that the run folder will take.
    """

    def __init__(self, steps: int, folder: int) -> None:
        self.steps, self.folder = steps, folder
        self._seconds: list[float] = []

    def line(self, step: int, seconds: float, memory: float | None) -> str | None:
        """A line on the pace, after the last of the steps that are timed; else None.

        Args:
            step: updates done.
            seconds: of the last one.
            memory: in GiB, so far.
        """
        if len(self._seconds) > WATCHED:
            return None
        self._seconds.append(seconds)
        if len(self._seconds) <= WATCHED:
            return None
        each = sorted(self._seconds[1:])[WATCHED // 2]
        held = "" if memory is None else f", {memory:.1f} GiB of memory"
        return (
            f"{each:.3g} s a step: {in_words(each * (self.steps - step))} to the last of {self.steps}, evaluations not "
            f"counted{held}, {self.folder / GIB:.1f} GiB of checkpoints to come"
        )
