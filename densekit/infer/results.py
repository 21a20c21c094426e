"""What was found in one image, in its own pixels and in the data set's own names and ids; one class a task.

Letters: H, W size of the image, n boxes, K classes.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from densekit.calibration import of_labels
from densekit.data.images.web import address
from densekit.errors import DensekitError
from densekit.ops.paste import pasted_mask
from densekit.ops.run_lengths import encoded
from densekit.show.drawing import Image, colours, draw_boxes, drawable, enlarged, with_legend
from densekit.show.drawing_masks import coloured, tinted
from densekit.types import Classes, Classification, Detections, Instance, Predictions, Segmentation

Pixels = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Legend = list[tuple[str, tuple[int, int, int]]]

DRAWN_FROM = 0.5
"""Lowest score of a box that is drawn where nothing says otherwise."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """An image that was predicted.

    Attributes:
        id: what the results call it.
        path: of its file; None where it came as pixels.
        size: (height, width), the pixels that results are in.
        look: gives its untouched pixels [H, W, C].
    """

    id: int | str
    path: Path | None
    size: tuple[int, int]
    look: Callable[[], Pixels]

    @property
    def name(self) -> str:
        """Its path, or its number."""
        return f"image {self.id}" if self.path is None else address(self.path)


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What the three tasks share.

    Attributes:
        image: that was predicted.
        classes: of the model: names and the data set's own ids.
    """

    image: Seen
    classes: Classes

    def draw(self) -> PIL.Image.Image:
        """The image with what was found.

        Raises:
            DensekitError: its file can't be read any more.
        """
        raise NotImplementedError

    def frame(self, score: float | None = None) -> Image:
        """As ``draw``, as an RGB array without the legend, whose height changes from image to image.

        Args:
            score: lowest one of boxes that are drawn; None: see ``BoxResult.cuts``.
        """
        raise NotImplementedError

    def painted(
        self, picture: Image, times: int, *, score: float | None = None, first: int = 0
    ) -> tuple[Image, Legend]:
        """A picture with what was found painted on it, and the words of its legend with their colours.

        Args:
            picture: RGB, of the image.
            times: how many times the image's pixels were enlarged in it.
            score: see ``frame``.
            first: number of the first class's colour.
        """
        raise NotImplementedError

    def to_coco(self) -> list[dict[str, Any]]:
        """Entries of a COCO result file; ``image_id`` is that of the image."""
        raise NotImplementedError

    def to_supervision(self) -> Any:
        """The same in the types of the package ``supervision``.

        Raises:
            DensekitError: it is not installed.
        """
        raise NotImplementedError

    def names_of(self, ids: npt.NDArray[np.int64]) -> list[str]:
        """Class names of the data set's ids."""
        names = dict(zip(self.classes.ids, self.classes.names))
        return [names[i] for i in ids.tolist()]


@dataclasses.dataclass(frozen=True, eq=False)
class BoxResult(Result):
    """Boxes, the best first; with the masks of their objects from heads that find these too.

    Attributes:
        boxes: [n, 4] float32 xyxy in pixels of the image.
        scores: [n] float32 in 0..1.
        ids: [n] int64, the data set's own category ids.
        cells: [n, M, M] float32 in 0..1, how probably each of M x M equal cells of a box belongs to its object; None
            from heads that find boxes alone.
        cuts: [K] the score of each class from which on its boxes are drawn where none is given; None: 0.5 of all.
    """

    boxes: Floats
    scores: Floats
    ids: npt.NDArray[np.int64]
    cells: Floats | None = None
    cuts: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """[n] class names."""
        return self.names_of(self.ids)

    def above(self, score: float | None = None) -> BoxResult:
        """Only the boxes of at least this score; None: of at least that of ``cuts``."""
        if score is None:
            return self.at(self.scores >= of_labels(self.cuts or (DRAWN_FROM,), self.labels))
        return self.at(self.scores >= score)

    def at(self, places: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> BoxResult:
        """Some of the boxes: [n] whether, or the places of those to take, in their order."""
        chosen = {name: getattr(self, name)[places] for name in ("boxes", "scores", "ids")}
        return dataclasses.replace(self, **chosen, cells=None if self.cells is None else self.cells[places])

    @functools.cached_property
    def instances(self) -> list[Instance] | None:
        """[n] the mask of each object, cut to its box; None from heads that find boxes alone."""
        if self.cells is None:
            return None
        size = self.image.size
        return [pasted_mask(one, box, size) for one, box in zip(self.cells, self.boxes.tolist(), strict=True)]

    @property
    def masks(self) -> npt.NDArray[np.bool_] | None:
        """[n, H, W] the mask of each object, made when asked for; ``instances`` and ``rle`` need much less memory."""
        if self.instances is None:
            return None
        masks = np.zeros((len(self), *self.image.size), np.bool_)
        for whole, (x, y, mask) in zip(masks, self.instances):
            whole[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
        return masks

    @property
    def rle(self) -> list[dict[str, Any]] | None:
        """[n] the mask of each object as COCO's compressed run lengths, ``{"size": [H, W], "counts": text}``."""
        return None if self.instances is None else [encoded(one, self.image.size) for one in self.instances]

    def draw(self, score: float | None = None) -> PIL.Image.Image:
        """The image with the boxes of at least this score (see ``above``) and a legend below; enlarged where small."""
        return PIL.Image.fromarray(self.picture(score))

    def picture(self, score: float | None = None) -> Image:
        """As ``draw``, as an RGB array."""
        return with_legend(*self.painted(*enlarged(self.image.look()), score=score))

    def frame(self, score: float | None = None) -> Image:
        """As ``picture``, without the legend."""
        return self.painted(*enlarged(self.image.look()), score=score)[0]

    def painted(
        self, picture: Image, times: int, *, score: float | None = None, first: int = 0
    ) -> tuple[Image, Legend]:
        """With the boxes of at least this score, and how many of each class there are."""
        shown, words = self.above(score), drawable(self.classes.names)
        labels, palette = shown.labels, colours(first + len(self.classes))
        texts = [f"{words[k]} {s:.2f}" for k, s in zip(labels, shown.scores.tolist())]
        kinds = [first + k for k in labels]
        if shown.instances is not None:
            picture = tinted(picture, shown.instances, kinds, scale=times)
        counts = [(f"{words[k]}: {labels.count(k)}", palette[first + k]) for k in sorted(set(labels))]
        return draw_boxes(picture, shown.boxes * times, texts, kinds), counts

    @property
    def labels(self) -> list[int]:
        """[n] the classes' places among those of the model."""
        return [self.classes.ids.index(i) for i in self.ids.tolist()]

    def to_coco(self) -> list[dict[str, Any]]:
        """``image_id``, ``category_id``, ``bbox`` [x, y, width, height], ``score`` and ``segmentation`` of each box."""
        found: list[dict[str, Any]] = [
            {"image_id": self.image.id, "category_id": category, "bbox": _corner_and_sides(box), "score": score}
            for box, score, category in zip(self.boxes.tolist(), _shortest(self.scores), self.ids.tolist())
        ]
        for entry, mask in zip(found, self.rle or ()):
            entry["segmentation"] = mask
        return found

    def to_supervision(self) -> Any:
        """``supervision.Detections``; ``class_id`` are the data set's own ids, ``data["class_name"]`` the names."""
        names = {"class_name": np.array(self.names, dtype=str)}
        return _supervision().Detections(
            xyxy=self.boxes, mask=self.masks, confidence=self.scores, class_id=self.ids, data=names
        )


@dataclasses.dataclass(frozen=True, eq=False)
class MaskResult(Result):
    """The class of each pixel.

    Attributes:
        masks: [H, W] the data set's own ids; or [K, H, W] layers of 0 and 1, where classes may lie on one another.
        probabilities: [K, H, W] float32, or None where they were not asked for.
    """

    masks: Pixels
    probabilities: Floats | None = None

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """[n] the ids of the classes that occur, in the order of the model's classes."""
        return np.array([i for i, layer in zip(self.classes.ids, self._layers()) if layer.any()], np.int64)

    @property
    def names(self) -> list[str]:
        """[n] their names."""
        return self.names_of(self.ids)

    def draw(self) -> PIL.Image.Image:
        """The image, coloured by class, with a legend below; a small image is enlarged."""
        return PIL.Image.fromarray(self.picture())

    def picture(self) -> Image:
        """As ``draw``, as an RGB array."""
        return with_legend(*self.painted(*enlarged(self.image.look())))

    def frame(self, score: float | None = None) -> Image:
        """As ``picture``, without the legend."""
        return self.painted(*enlarged(self.image.look()))[0]

    def painted(
        self, picture: Image, times: int, *, score: float | None = None, first: int = 0
    ) -> tuple[Image, Legend]:
        """Coloured by class, and the classes that are drawn."""
        return coloured(picture, self.masks.repeat(times, -2).repeat(times, -1), self.classes, first=first)

    def to_coco(self) -> list[dict[str, Any]]:
        """``image_id``, ``category_id`` and ``segmentation`` (compressed RLE) of each class that occurs."""
        found = []
        for category, layer in zip(self.classes.ids, self._layers()):
            if layer.any():
                runs = encoded(Instance(0, 0, layer.view(np.uint8)), layer.shape)
                found.append({"image_id": self.image.id, "category_id": category, "segmentation": runs})
        return found

    def to_supervision(self) -> Any:
        """``supervision.Detections`` with a mask and the box around it for each class that occurs."""
        ids = self.ids
        layers = [layer for layer in self._layers() if layer.any()]
        masks = np.stack(layers) if layers else np.zeros((0, *self.image.size), np.bool_)
        boxes = np.array([_extent(layer) for layer in layers], np.float32).reshape(-1, 4)
        names = {"class_name": np.array(self.names, dtype=str)}
        return _supervision().Detections(xyxy=boxes, mask=masks, class_id=ids, data=names)

    def _layers(self) -> list[npt.NDArray[np.bool_]]:
        if self.masks.ndim == 3:
            return [layer == 1 for layer in self.masks]
        return [self.masks == value for value in self.classes.ids]


@dataclasses.dataclass(frozen=True, eq=False)
class ClassResult(Result):
    """The class of an image.

    Attributes:
        probabilities: [K] float32, in the order of the model's classes.
        best: the data set's own id of the class.
    """

    probabilities: Floats
    best: int

    @property
    def scores(self) -> Floats:
        """[K] probabilities, the best first."""
        return self.probabilities[self._order()]

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """[K] the classes' ids, the best first."""
        return np.array(self.classes.ids, np.int64)[self._order()]

    @property
    def names(self) -> list[str]:
        """[K] the classes' names, the best first."""
        return [self.classes.names[k] for k in self._order()]

    def draw(self) -> PIL.Image.Image:
        """The image with its class in a corner."""
        return PIL.Image.fromarray(self.frame())

    def frame(self, score: float | None = None) -> Image:
        """As ``draw``, as an RGB array."""
        return self.painted(*enlarged(self.image.look()))[0]

    def painted(
        self, picture: Image, times: int, *, score: float | None = None, first: int = 0
    ) -> tuple[Image, Legend]:
        """With the class in a corner; there is no legend."""
        label = self.classes.ids.index(self.best)
        text = f"{drawable(self.classes.names)[label]} {self.probabilities[label]:.2f}"
        frame = np.array([[0, 0, picture.shape[1] - 1, picture.shape[0] - 1]], np.float32)
        return draw_boxes(picture, frame, [text], [first + label]), []

    def to_coco(self) -> list[dict[str, Any]]:
        """One entry with ``image_id``, ``category_id``, ``name`` and the ``probabilities`` of all classes by name."""
        name = self.classes.names[self.classes.ids.index(self.best)]
        values = {n: round(v, 6) for n, v in zip(self.classes.names, self.probabilities.tolist())}
        return [{"image_id": self.image.id, "category_id": self.best, "name": name, "probabilities": values}]

    def to_supervision(self) -> Any:
        """``supervision.Classifications``; ``class_id`` are the data set's own ids, the best first."""
        return _supervision().Classifications(class_id=self.ids, confidence=self.scores)

    def _order(self) -> npt.NDArray[np.int64]:
        return np.argsort(-self.probabilities, kind="stable")


def result_of(
    image: Seen, classes: Classes, predictions: Predictions, row: int, *, probabilities: bool = False
) -> BoxResult | MaskResult | ClassResult:
    """One image of a batch of ``DenseModel.predict``.

    Args:
        image: the one at ``row``.
        classes: of the model.
        predictions: of the batch.
        row: of the image in it.
        probabilities: segmentation: keep them.
    """
    if isinstance(predictions, Detections):
        valid = predictions.valid[row].cpu().numpy()
        boxes, scores = (v[row].float().cpu().numpy()[valid] for v in (predictions.boxes, predictions.scores))
        cells = None if predictions.masks is None else predictions.masks[row].float().cpu().numpy()[valid]
        return BoxResult(image, classes, boxes, scores, predictions.labels[row].cpu().numpy()[valid], cells)
    if isinstance(predictions, Segmentation):
        chances = predictions.probabilities[row].float().cpu().numpy() if probabilities else None
        return MaskResult(image, classes, predictions.masks[row].cpu().numpy(), chances)
    assert isinstance(predictions, Classification)
    values = predictions.probabilities[row].float().cpu().numpy()
    return ClassResult(image, classes, values, int(predictions.labels[row]))


def _corner_and_sides(box: list[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [round(v, 4) for v in (x1, y1, x2 - x1, y2 - y1)]


def _shortest(scores: Floats) -> list[float]:
    """The shortest numbers that are these float32 values: rounding further would change the order of the boxes."""
    return [float(text) for text in scores.astype(str)]


def _extent(layer: npt.NDArray[np.bool_]) -> list[int]:
    """Xyxy of the pixels of a mask that has some."""
    rows, columns = np.flatnonzero(layer.any(1)), np.flatnonzero(layer.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def _supervision() -> Any:
    try:
        return importlib.import_module("supervision")
    except ImportError as error:
        raise DensekitError(
            f"to_supervision needs the package supervision ({error}); pip install supervision"
        ) from None
