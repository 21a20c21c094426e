"""Predictions on disk: COCO results, CSV, class-index masks, pictures; one writer a task.

``images.json`` names the file behind each image id: its position in the list of inputs, from 1, unless the ids of a
data set were given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from densekit.data.images.web import address
from densekit.files import printable, whole_file, write_text
from densekit.infer.label_files import LABEL_FORMATS
from densekit.infer.result_files import ResultFiles, unique_stem
from densekit.infer.results import DRAWN_FROM, BoxResult, ClassResult, MaskResult, Result, Seen
from densekit.show.drawing import write_picture
from densekit.show.drawing_masks import write_mask
from densekit.types import Classes, Task


class Writer:
    """Takes the predictions of one image after the other; a context that ends with every file whole.

    Args:
        files: that grow with the images.
        pictures: whether it draws, and so looks at the pixels.
        probabilities: whether it needs a segmenter's.
    """

    def __init__(self, files: ResultFiles, *, pictures: bool, probabilities: bool = False) -> None:
        self.files, self.pictures, self.probabilities = files, pictures, probabilities

    def __enter__(self) -> Self:
        self.files.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.files.__exit__(kind, value, at)

    def add(self, result: Any) -> str:
        """Take what was found in an image; the name that the image's own files have."""
        raise NotImplementedError

    def summary(self) -> str:
        """A line that says what was written where."""
        raise NotImplementedError


def make_writer(
    task: Task,
    classes: Classes,
    out: Path,
    *,
    score: float | None = None,
    pictures: bool = True,
    probabilities: bool = False,
    formats: Sequence[str] = ("coco", "csv"),
) -> Writer:
    """The writer of a task.

    Args:
        task: of the head.
        classes: of the model.
        out: folder to write.
        score: lowest score of a box that is drawn or written as a label (COCO results and CSV have all); None: see
            ``BoxResult.cuts``.
        pictures: draw at all.
        probabilities: segmentation: also write them, [K, H, W] float16 ``.npy``.
        formats: detection: ``coco``, ``csv``, and those of ``label_files.py``.

    Raises:
        DensekitError: the folder can't be written, or another process writes there.
    """
    if task == "detection":
        return BoxWriter(classes, out, score=score, pictures=pictures, formats=formats)
    if task == "segmentation":
        return MaskWriter(classes, out, pictures=pictures, probabilities=probabilities)
    return ClassWriter(classes, out)


class BoxWriter(Writer):
    """``predictions.json`` (COCO results), ``predictions.csv``, a folder of labels a format, ``pictures/``."""

    def __init__(
        self, classes: Classes, out: Path, *, score: float | None, pictures: bool, formats: Sequence[str]
    ) -> None:
        columns = ["file", "class", "category_id", "score", "x", "y", "w", "h"]
        files = ResultFiles(out, columns if "csv" in formats else None, rows="coco" in formats)
        super().__init__(files, pictures=pictures)
        self.score = score
        self._labels = [LABEL_FORMATS[name] for name in dict.fromkeys(formats) if name not in ("coco", "csv")]
        if "yolo" in formats:
            write_text(out / "classes.txt", "".join(f"{printable(name)}\n" for name in classes.names))
        self._found = self._drawn = 0
        self._best = 0.0
        self._least = "at least their class's"  # score that is drawn

    def add(self, result: BoxResult) -> str:
        """Take the boxes of one image."""
        rows, shown = result.to_coco(), result.above(self.score)
        name = _printed(result)
        table = [[name, kind, r["category_id"], r["score"], *r["bbox"]] for kind, r in zip(result.names, rows)]
        stem = self.files.stem(path_of(result.image))
        if self.pictures:
            write_picture(self.files.out / "pictures" / f"{stem}.jpg", result.picture(self.score))
        for labels in self._labels:
            path = self.files.out / labels.folder / f"{stem}.{labels.ending}"
            write_text(path, labels.text(shown, path))
        self.files.add(entry(result.image, stem), rows, table)
        self._found, self._drawn = self._found + len(rows), self._drawn + len(shown)
        if self.score is not None or result.cuts is None:
            self._least = f"at least {DRAWN_FROM if self.score is None else self.score:g}"
        self._best = max(self._best, float(result.scores.max(initial=0)))
        return stem

    def summary(self) -> str:
        """Boxes, and how many of them are drawn."""
        lower = (
            f"; the best score is {self._best:.2f}, --score draws lower ones" if self._found > self._drawn == 0 else ""
        )
        return (
            f"{self._found} boxes ({self._drawn} with a score of {self._least}{lower}) in {self.files.count} "
            f"images, written to {self.files.out}"
        )


class MaskWriter(Writer):
    """``masks/`` (class-index PNG), ``pictures/`` (overlays), ``probabilities/`` where asked for."""

    def __init__(self, classes: Classes, out: Path, *, pictures: bool, probabilities: bool) -> None:
        super().__init__(ResultFiles(out, None, rows=False), pictures=pictures, probabilities=probabilities)
        taken = set[str]()
        self._endings = [unique_stem(_plain(name), taken) for name in classes.names]

    def add(self, result: MaskResult) -> str:
        """Write the mask of one image at once: masks of many images would not fit into memory.

        A multi-label one is a file a class.
        """
        stem, out = self.files.stem(path_of(result.image)), self.files.out
        if result.masks.ndim == 2:
            write_mask(out / "masks" / f"{stem}.png", result.masks)
        else:
            for ending, layer in zip(self._endings, result.masks):
                write_mask(out / "masks" / f"{stem}.{ending}.png", layer)
        if self.probabilities and result.probabilities is not None:
            with whole_file(out / "probabilities" / f"{stem}.npy") as file:
                np.save(file, result.probabilities.astype(np.float16))
        if self.pictures:
            write_picture(out / "pictures" / f"{stem}.jpg", result.picture())
        self.files.add(entry(result.image, stem))
        return stem

    def summary(self) -> str:
        """How many masks."""
        return f"masks of {self.files.count} images written to {self.files.out}"


class ClassWriter(Writer):
    """``predictions.json`` and ``predictions.csv`` with the best class and all probabilities."""

    def __init__(self, classes: Classes, out: Path) -> None:
        super().__init__(ResultFiles(out, ["file", "class", "category_id", *classes.names]), pictures=False)

    def add(self, result: ClassResult) -> str:
        """Take the class of one image."""
        (row,) = result.to_coco()
        line = [_printed(result), row["name"], row["category_id"], *row["probabilities"].values()]
        stem = self.files.stem(path_of(result.image))
        self.files.add(entry(result.image, stem), [row], [line])
        return stem

    def summary(self) -> str:
        """How many images."""
        return f"classes of {self.files.count} images written to {self.files.out}"


def path_of(image: Seen) -> Path:
    """Of an image's file; of pixels, what stands for it."""
    return Path(image.name) if image.path is None else image.path


def _printed(result: Result) -> str:
    return printable(address(path_of(result.image)))


def entry(image: Seen, stem: str) -> dict[str, Any]:
    """An image's entry in ``images.json``; ``stem`` is the name of its own files."""
    height, width = image.size
    return {
        "id": image.id,
        "file_name": printable(address(path_of(image))),
        "height": height,
        "width": width,
        "output": stem,
    }


def _plain(name: str) -> str:
    """A class name as part of a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
