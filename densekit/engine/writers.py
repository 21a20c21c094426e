"""Predictions on disk: COCO results, CSV, class-index masks, pictures; one writer a task.

Image ids in the files are positions in the list of inputs, from 1; ``images.json`` names the file behind each.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from densekit.engine.drawing import draw_boxes, write_picture
from densekit.engine.drawing_masks import overlay, write_mask
from densekit.errors import DensekitError
from densekit.files import whole_file, write_text
from densekit.types import Classes, Classification, Detections, Segmentation, Task

Pixels = npt.NDArray[Any]


class Writer(Protocol):
    """Takes the predictions of one image after the other, and finishes the files."""

    def add(self, path: Path, image: Pixels, predictions: Any, row: int) -> None:
        """Take row ``row`` of a batch of predictions on the image of a file; ``image`` is [H, W, C], untouched."""
        ...

    def close(self) -> str:
        """Write what is still to be written; a line that says what was written where."""
        ...


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
    """
    if out.exists() and not out.is_dir():
        raise DensekitError(f"--out {out} is a file; give a folder")
    if task == "detection":
        return BoxWriter(classes, out, score=score, pictures=pictures)
    if task == "segmentation":
        return MaskWriter(classes, out, pictures=pictures, probabilities=probabilities)
    return ClassWriter(classes, out)


class _Names:
    """Names of output files: those of the inputs, numbered where two inputs share one."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self._used: set[str] = set()

    def add(self, path: Path) -> tuple[int, str]:
        """Image id and output stem of the next input."""
        self.paths.append(path)
        stem, number = path.stem, 1
        while stem.lower() in self._used:
            number += 1
            stem = f"{path.stem}_{number}"
        self._used.add(stem.lower())
        return len(self.paths), stem

    def write(self, out: Path, sizes: Sequence[tuple[int, int]]) -> None:
        rows = [
            {"id": i, "file_name": str(path), "height": size[0], "width": size[1]}
            for i, (path, size) in enumerate(zip(self.paths, sizes), 1)
        ]
        write_text(out / "images.json", json.dumps(rows, indent=1) + "\n")


class BoxWriter:
    """``predictions.json`` (COCO results), ``predictions.csv``, ``pictures/``."""

    def __init__(self, classes: Classes, out: Path, *, score: float, pictures: bool) -> None:
        self.classes, self.out, self.score, self.pictures = classes, out, score, pictures
        self._names, self._sizes, self._rows = _Names(), list[tuple[int, int]](), list[dict[str, Any]]()
        self._label = {id: label for label, id in enumerate(classes.ids)}

    def add(self, path: Path, image: Pixels, predictions: Detections, row: int) -> None:
        """Take the boxes of one image."""
        image_id, stem = self._names.add(path)
        self._sizes.append((image.shape[0], image.shape[1]))
        valid = predictions.valid[row].cpu().numpy()
        boxes = predictions.boxes[row].float().cpu().numpy()[valid]
        scores = predictions.scores[row].float().cpu().numpy()[valid]
        ids = predictions.labels[row].cpu().numpy()[valid]
        for box, score, category in zip(boxes.tolist(), scores.tolist(), ids.tolist()):
            x1, y1, x2, y2 = box
            corners = [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)]
            self._rows.append(
                {"image_id": image_id, "category_id": category, "bbox": corners, "score": round(score, 6)}
            )
        if self.pictures:
            self._draw(stem, image, boxes, scores, ids)

    def _draw(self, stem: str, image: Pixels, boxes: Pixels, scores: Pixels, ids: Pixels) -> None:
        shown = scores >= self.score
        labels = [self._label[i] for i in ids[shown].tolist()]
        texts = [f"{self.classes.names[k]} {s:.2f}" for k, s in zip(labels, scores[shown].tolist())]
        picture = draw_boxes(image, boxes[shown], texts, labels)
        write_picture(self.out / "pictures" / f"{stem}.jpg", picture)

    def close(self) -> str:
        """Write the json, the csv and the list of images."""
        write_text(self.out / "predictions.json", json.dumps(self._rows) + "\n")
        names = dict(zip(self.classes.ids, self.classes.names))
        rows = [
            [self._names.paths[r["image_id"] - 1], names[r["category_id"]], r["category_id"], r["score"], *r["bbox"]]
            for r in self._rows
        ]
        _write_csv(self.out / "predictions.csv", ["file", "class", "category_id", "score", "x", "y", "w", "h"], rows)
        self._names.write(self.out, self._sizes)
        drawn = sum(r["score"] >= self.score for r in self._rows)
        return (
            f"{len(self._rows)} boxes ({drawn} with a score of at least {self.score:g}) in {len(self._sizes)} images, "
            f"written to {self.out}"
        )


class MaskWriter:
    """``masks/`` (class-index PNG), ``pictures/`` (overlays), ``probabilities/`` where asked for."""

    def __init__(self, classes: Classes, out: Path, *, pictures: bool, probabilities: bool) -> None:
        self.classes, self.out, self.pictures, self.probabilities = classes, out, pictures, probabilities
        self._names, self._sizes = _Names(), list[tuple[int, int]]()

    def add(self, path: Path, image: Pixels, predictions: Segmentation, row: int) -> None:
        """Write the mask of one image at once: masks of many images would not fit into memory."""
        probabilities = predictions.probabilities[row].cpu().numpy() if self.probabilities else None
        self.add_mask(path, image, predictions.masks[row].cpu().numpy(), probabilities)

    def add_mask(self, path: Path, image: Pixels, mask: Pixels, probabilities: Pixels | None) -> None:
        """Write a mask [H, W] (or [K, H, W] multi-label, one file a class) and what belongs to it."""
        _, stem = self._names.add(path)
        self._sizes.append((image.shape[0], image.shape[1]))
        if mask.ndim == 2:
            write_mask(self.out / "masks" / f"{stem}.png", mask)
        else:
            for name, layer in zip(self.classes.names, mask):
                write_mask(self.out / "masks" / f"{stem}.{_plain(name)}.png", layer)
        if probabilities is not None:
            with whole_file(self.out / "probabilities" / f"{stem}.npy") as file:
                np.save(file, probabilities.astype(np.float16))
        if self.pictures:
            write_picture(self.out / "pictures" / f"{stem}.jpg", overlay(image, mask, self.classes))

    def close(self) -> str:
        """Write the list of images."""
        self._names.write(self.out, self._sizes)
        return f"masks of {len(self._sizes)} images written to {self.out}"


class ClassWriter:
    """``predictions.json`` and ``predictions.csv`` with the best class and all probabilities."""

    def __init__(self, classes: Classes, out: Path) -> None:
        self.classes, self.out = classes, out
        self._names, self._sizes, self._rows = _Names(), list[tuple[int, int]](), list[dict[str, Any]]()

    def add(self, path: Path, image: Pixels, predictions: Classification, row: int) -> None:
        """Take the class of one image."""
        image_id, _ = self._names.add(path)
        self._sizes.append((image.shape[0], image.shape[1]))
        found = int(predictions.labels[row])
        values = [round(v, 6) for v in predictions.probabilities[row].float().cpu().tolist()]
        self._rows.append(
            {
                "image_id": image_id,
                "category_id": found,
                "name": self.classes.names[self.classes.ids.index(found)],
                "probabilities": dict(zip(self.classes.names, values)),
            }
        )

    def close(self) -> str:
        """Write the json, the csv and the list of images."""
        write_text(self.out / "predictions.json", json.dumps(self._rows) + "\n")
        rows = [
            [self._names.paths[r["image_id"] - 1], r["name"], r["category_id"], *r["probabilities"].values()]
            for r in self._rows
        ]
        _write_csv(self.out / "predictions.csv", ["file", "class", "category_id", *self.classes.names], rows)
        self._names.write(self.out, self._sizes)
        return f"classes of {len(self._rows)} images written to {self.out}"


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with whole_file(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _plain(name: str) -> str:
    """A class name as part of a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
