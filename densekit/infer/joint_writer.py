"""Predictions of several heads on disk: a folder a head, and pictures of all in one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from densekit.infer.joint_result import JointResult
from densekit.infer.result_files import ResultFiles
from densekit.infer.writers import Writer, entry, make_writer, path_of
from densekit.model import DenseModel
from densekit.show.drawing import write_picture


def writer_of(
    model: DenseModel,
    out: Path,
    *,
    score: float | None = None,
    pictures: bool = True,
    probabilities: bool = False,
    formats: Sequence[str] = ("coco", "csv"),
) -> Writer:
    """The writer of a model's predictions: that of its head's task, or one of several heads.

    Args:
        model: with its classes.
        out: folder to write.
        score: see ``make_writer``, as for the rest.
        pictures: draw at all.
        probabilities: of segmenters: also write them.
        formats: of boxes.

    Raises:
        DensekitError: the folder can't be written, or another process writes there.
    """
    several = len(model.heads) > 1
    writers = {
        head: make_writer(
            model.head(head).task,
            model.classes_of(head),
            out / head if several else out,
            score=score,
            pictures=pictures and not several,
            probabilities=probabilities,
            formats=formats,
        )
        for head in model.heads
    }
    return JointWriter(writers, out, score=score, pictures=pictures) if several else next(iter(writers.values()))


class JointWriter(Writer):
    """The files of each head in a folder of its name; ``images.json`` and ``pictures/`` of all.

    Args:
        writers: by head; they draw nothing.
        out: folder to write.
        score: lowest score of a box that is drawn.
        pictures: draw at all.
    """

    def __init__(self, writers: dict[str, Writer], out: Path, *, score: float | None, pictures: bool) -> None:
        probabilities = any(writer.probabilities for writer in writers.values())
        super().__init__(ResultFiles(out, None, rows=False), pictures=pictures, probabilities=probabilities)
        self.writers, self.score = writers, score
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        super().__enter__()
        for writer in self.writers.values():
            self._open.enter_context(writer)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._open.__exit__(kind, value, at)
        super().__exit__(kind, value, at)

    def add(self, result: JointResult) -> str:
        """Take what all heads found in one image."""
        stem = self.files.stem(path_of(result.image))
        for head, writer in self.writers.items():
            writer.add(result[head])
        if self.pictures:
            write_picture(self.files.out / "pictures" / f"{stem}.jpg", result.picture(self.score))
        self.files.add(entry(result.image, stem))
        return stem

    def summary(self) -> str:
        """A line a head."""
        return "\n".join(f"{head}: {writer.summary()}" for head, writer in self.writers.items())
