"""Predictions on disk: COCO results, CSV, class-index masks, pictures; one writer a task.

``images.json`` names the file behind each image id: its position in the list of inputs, from 1, unless the ids of a
data set were given.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from densekit.files import printable, whole_file
from densekit.infer.result_files import ResultFiles, unique_stem
from densekit.show.drawing import draw_boxes, drawable, write_picture
from densekit.show.drawing_masks import overlay, write_mask
from densekit.types import Classes, Classification, Detections, Segmentation, Task

Pixels = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """An image that was predicted.

    Attributes:
        id: in the files that are written.
        path: of its file.
        size: (height, width) of its file.
        pixels: [H, W, C], untouched; None where the writer does not look at them.
    """

    id: int | str
    path: Path
    size: tuple[int, int]
    pixels: Pixels | None

    def entry(self, stem: str) -> dict[str, Any]:
        """Its entry in ``images.json``; ``stem`` is the name of its own files."""
        named = {"id": self.id, "file_name": printable(self.path), "height": self.size[0], "width": self.size[1]}
        return {**named, "output": stem}


class Writer:
    """Takes the predictions of one image after the other; a context that ends with every file whole.

    Args:
        files: that grow with the images.
        pictures: whether it draws, and so has to be given pixels.
    """

    def __init__(self, files: ResultFiles, *, pictures: bool) -> None:
        self.files, self.pictures = files, pictures

    def __enter__(self) -> Self:
        self.files.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.files.__exit__(kind, value, at)

    def add(self, seen: Seen, predictions: Any, row: int) -> str:
        """Take row ``row`` of a batch of predictions on an image; the name that the image's own files have."""
        raise NotImplementedError

    def summary(self) -> str:
        """A line that says what was written where."""
        raise NotImplementedError


def make_writer(
    task: Task, classes: Classes, out: Path, *, score: float = 0.5, pictures: bool = True, probabilities: bool = False
) -> Writer:
    """The writer of a task.

    Args:
        task: of the head.
        classes: of the model.
        out: folder to write.
        score: lowest score of a box that is drawn (all are written).
        pictures: draw at all.
        probabilities: segmentation: also write them, [K, H, W] float16 ``.npy``.

    Raises:
        DensekitError: the folder can't be written, or another process writes there.
    """
    if task == "detection":
        return BoxWriter(classes, out, score=score, pictures=pictures)
    if task == "segmentation":
        return MaskWriter(classes, out, pictures=pictures, probabilities=probabilities)
    return ClassWriter(classes, out)


class BoxWriter(Writer):
    """``predictions.json`` (COCO results), ``predictions.csv``, ``pictures/``."""

    def __init__(self, classes: Classes, out: Path, *, score: float, pictures: bool) -> None:
        columns = ["file", "class", "category_id", "score", "x", "y", "w", "h"]
        super().__init__(ResultFiles(out, columns), pictures=pictures)
        self.classes, self.score = classes, score
        self._label, self._words = {id: label for label, id in enumerate(classes.ids)}, drawable(classes.names)
        self._found = self._drawn = 0
        self._best = 0.0

    def add(self, seen: Seen, predictions: Detections, row: int) -> str:
        """Take the boxes of one image."""
        valid = predictions.valid[row].cpu().numpy()
        boxes = predictions.boxes[row].float().cpu().numpy()[valid]
        scores = predictions.scores[row].float().cpu().numpy()[valid]
        ids = predictions.labels[row].cpu().numpy()[valid].tolist()
        rows = [
            {"image_id": seen.id, "category_id": category, "bbox": _corner_and_sides(box), "score": score}
            for box, score, category in zip(boxes.tolist(), _shortest(scores), ids)
        ]
        names = [self.classes.names[self._label[category]] for category in ids]
        table = [[printable(seen.path), name, r["category_id"], r["score"], *r["bbox"]] for name, r in zip(names, rows)]
        stem = self.files.stem(seen.path)
        if self.pictures and seen.pixels is not None:
            self._draw(stem, seen.pixels, boxes, scores, ids)
        self.files.add(seen.entry(stem), rows, table)
        self._found, self._drawn = self._found + len(rows), self._drawn + int((scores >= self.score).sum())
        self._best = max(self._best, float(scores.max(initial=0)))
        return stem

    def _draw(self, stem: str, image: Pixels, boxes: Pixels, scores: Pixels, ids: list[int]) -> None:
        shown = scores >= self.score
        labels = [self._label[i] for i, is_shown in zip(ids, shown) if is_shown]
        texts = [f"{self._words[k]} {s:.2f}" for k, s in zip(labels, scores[shown].tolist())]
        picture = draw_boxes(image, boxes[shown], texts, labels)
        write_picture(self.files.out / "pictures" / f"{stem}.jpg", picture)

    def summary(self) -> str:
        """Boxes, and how many of them are drawn."""
        lower = (
            f"; the best score is {self._best:.2f}, --score draws lower ones" if self._found > self._drawn == 0 else ""
        )
        return (
            f"{self._found} boxes ({self._drawn} with a score of at least {self.score:g}{lower}) in {self.files.count} "
            f"images, written to {self.files.out}"
        )


class MaskWriter(Writer):
    """``masks/`` (class-index PNG), ``pictures/`` (overlays), ``probabilities/`` where asked for."""

    def __init__(self, classes: Classes, out: Path, *, pictures: bool, probabilities: bool) -> None:
        super().__init__(ResultFiles(out, None), pictures=pictures)
        self.classes, self.probabilities = classes, probabilities
        taken = set[str]()
        self._endings = [unique_stem(_plain(name), taken) for name in classes.names]

    def add(self, seen: Seen, predictions: Segmentation, row: int) -> str:
        """Write the mask of one image at once: masks of many images would not fit into memory."""
        probabilities = predictions.probabilities[row].cpu().numpy() if self.probabilities else None
        return self.add_mask(seen, predictions.masks[row].cpu().numpy(), probabilities)

    def add_mask(self, seen: Seen, mask: Pixels, probabilities: Pixels | None) -> str:
        """Write a mask [H, W] (or [K, H, W] multi-label, one file a class) and what belongs to it."""
        stem, out = self.files.stem(seen.path), self.files.out
        if mask.ndim == 2:
            write_mask(out / "masks" / f"{stem}.png", mask)
        else:
            for ending, layer in zip(self._endings, mask):
                write_mask(out / "masks" / f"{stem}.{ending}.png", layer)
        if probabilities is not None:
            with whole_file(out / "probabilities" / f"{stem}.npy") as file:
                np.save(file, probabilities.astype(np.float16))
        if self.pictures and seen.pixels is not None:
            write_picture(out / "pictures" / f"{stem}.jpg", overlay(seen.pixels, mask, self.classes))
        self.files.add(seen.entry(stem))
        return stem

    def summary(self) -> str:
        """How many masks."""
        return f"masks of {self.files.count} images written to {self.files.out}"


class ClassWriter(Writer):
    """``predictions.json`` and ``predictions.csv`` with the best class and all probabilities."""

    def __init__(self, classes: Classes, out: Path) -> None:
        super().__init__(ResultFiles(out, ["file", "class", "category_id", *classes.names]), pictures=False)
        self.classes = classes

    def add(self, seen: Seen, predictions: Classification, row: int) -> str:
        """Take the class of one image."""
        found = int(predictions.labels[row])
        values = [round(v, 6) for v in predictions.probabilities[row].float().cpu().tolist()]
        name = self.classes.names[self.classes.ids.index(found)]
        about = {"image_id": seen.id, "category_id": found, "name": name}
        line = [printable(seen.path), name, found, *values]
        stem = self.files.stem(seen.path)
        self.files.add(seen.entry(stem), [{**about, "probabilities": dict(zip(self.classes.names, values))}], [line])
        return stem

    def summary(self) -> str:
        """How many images."""
        return f"classes of {self.files.count} images written to {self.files.out}"


def _corner_and_sides(box: list[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [round(v, 4) for v in (x1, y1, x2 - x1, y2 - y1)]


def _shortest(scores: npt.NDArray[np.float32]) -> list[float]:
    """The shortest numbers that are these float32 values: rounding further would change the order of the boxes."""
    return [float(text) for text in scores.astype(str)]


def _plain(name: str) -> str:
    """A class name as part of a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
