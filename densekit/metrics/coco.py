"""COCO's average precision: the same 12 numbers as pycocotools, counted by hotcoco.

hotcoco is bit-identical to pycocotools on valid input and forty to a hundred times faster, but takes some invalid input
in silence; so ids, boxes and scores are checked here first, and ids are replaced by positions (pycocotools silently
miscounts an annotation with id 0). A number that is not defined, such as ``AP_large`` without large objects, is None,
where COCO's own evaluation writes -1: nothing may take it for a very bad result.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import hotcoco
import numpy as np
import numpy.typing as npt

from densekit.metrics.boundary import BoundaryEvaluation
from densekit.metrics.box_errors import Found, Objects, box_errors
from densekit.metrics.coco_masks import MaskTruth, Rle, TrueMasks, found_masks, true_masks
from densekit.metrics.coco_numbers import Floats, IouType, add, category_entries, count, image_entries, match
from densekit.metrics.coco_resampled import CocoResampler
from densekit.metrics.intervals import in_order
from densekit.types import Batch, Classes, DensekitError, Detections

OfImage = tuple[Floats, Floats, npt.NDArray[np.int64], list[Rle] | None]
"""What was found in an image: boxes (x, y, width, height), scores, label positions; masks where the head gives some."""


class CocoTruth(MaskTruth, Protocol):
    """The columns that the metric needs of a COCO file; annotations are ordered by image."""

    @property
    def path(self) -> Path:
        """The json file."""
        ...

    @property
    def classes(self) -> Classes:
        """Names and ids of the categories."""
        ...

    @property
    def first(self) -> npt.NDArray[np.int64]:
        """[I + 1] where each image's annotations start."""
        ...

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """[A] positions in ``classes``."""
        ...

    @property
    def areas(self) -> Floats:
        """[A] areas as the file gives them."""
        ...

    @property
    def crowd(self) -> npt.NDArray[np.bool_]:
        """[A] regions of many objects."""
        ...

    def __len__(self) -> int: ...

    def image_id(self, image: int) -> int | str:
        """The file's own id of the image at a position."""
        ...


class CocoDataset(Protocol):
    """A data set with the columns of its COCO file."""

    @property
    def file(self) -> CocoTruth:
        """The columns."""
        ...


class CocoMetric:
    """Collects detections and counts COCO's numbers for boxes and masks, over the images that were seen.

    Masks are counted where the head gives some and the file has some. An object without a mask is ignored there.

    Args:
        data: the data set that is evaluated on.
        classes: of the model, whose ids the predictions have; matched by name with those of the data set, which may
            lack some. None: the data set's own.
        max_detections: best detections of each image and class that count; COCO's own numbers take 100.
        boundary: count masks by their outlines too; see ``boundary.py``.
    """

    def __init__(
        self,
        data: CocoDataset,
        *,
        classes: Classes | None = None,
        max_detections: int = 100,
        boundary: bool = False,
    ) -> None:
        if max_detections < 1:
            raise DensekitError(f"max_detections must be at least 1, not {max_detections}; COCO takes 100")
        self.truth = data.file
        self.classes = classes or self.truth.classes
        self._places = np.array([self.classes.names.index(name) for name in self.truth.classes.names], np.int64)
        self.max_detections = max_detections
        self.boundary = boundary
        self._positions = {self.truth.image_id(i): i for i in range(len(self.truth))}
        self._found: dict[int | str, OfImage] = {}

    def update(self, predictions: Detections, batch: Batch) -> None:
        """Add one batch; an image that was added before does not count again.

        Args:
            predictions: boxes in the original pixels, labels as ids of ``classes``.
            batch: whose ids are image ids of the data set.

        Raises:
            DensekitError: an image or category is not of this data set, or a number is not finite.
        """
        boxes, scores, labels, valid = (
            getattr(predictions, name).detach().cpu().numpy() for name in ("boxes", "scores", "labels", "valid")
        )
        for b, image_id in enumerate(batch.ids):
            if image_id not in self._positions:
                raise DensekitError(
                    f"{self.truth.path}: image {image_id!r} is not in the file; evaluate on its own data"
                )
            if image_id in self._found:
                continue
            corners = boxes[b][valid[b]].astype(np.float64)
            xywh = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1)
            own = scores[b][valid[b]].astype(np.float64)
            if not (np.isfinite(xywh).all() and np.isfinite(own).all()):
                raise DensekitError(f"image {image_id!r}: a predicted box or score is not finite; check the weights")
            masks = None
            if predictions.masks is not None:
                cells = predictions.masks[b].detach().float().cpu().numpy()[valid[b]]
                masks = found_masks(cells, corners, batch.numbers(batch.original_sizes)[b], image_id)
            self._found[image_id] = (xywh, own, self._labels(labels[b][valid[b]]), masks)

    def state(self) -> dict[int | str, OfImage]:
        """What was found by image id."""
        return self._found

    def merge(self, states: Sequence[dict[int | str, OfImage]]) -> None:
        """Take the union of the ranks' detections; the first rank that saw an image wins."""
        self._found = {image_id: found for state in reversed(states) for image_id, found in state.items()}

    def compute(self) -> dict[str, Any]:
        """Count.

        Returns:
            ``AP``, ``AP50``, ``AP75``, ``AP_small``, ``AP_medium``, ``AP_large``, ``AR1``, ``AR10``, ``AR100`` (or
            whatever ``max_detections`` is), ``AR_small``, ``AR_medium``, ``AR_large``; ``per_class``: by name ``AP``,
            ``AP50``, ``AP75``, ``AR`` and ``objects``, the annotations that are no crowd; ``images``: how many. Those
            of masks beside them as ``mask_AP`` and so on, and those of their outlines, where they are counted, as
            ``boundary_AP`` and so on. A number that is not defined is None.

        Raises:
            DensekitError: there was no image.
        """
        if not self._found:
            raise DensekitError("there is no image to evaluate; give a data set with images")
        ids = self._ids()
        numbers: dict[str, Any] = {}
        for prefix, matched in self._matched(ids).items():
            counted = count(matched, self.classes.names)
            if prefix:
                add(numbers, counted, prefix)
            else:
                numbers = counted
        chosen = [row for _, row in self._rows(ids)]
        labels = self._places[self.truth.labels[chosen]]
        objects = np.bincount(labels[~self.truth.crowd[chosen]], minlength=len(self.classes))
        for name, own in zip(self.classes.names, objects):
            numbers["per_class"][name]["objects"] = int(own)
        return {**numbers, "images": len(ids)}

    def resampler(self) -> CocoResampler:
        """What each image adds to the numbers of ``compute``."""
        ids = self._ids()
        return CocoResampler(ids, self._matched(ids), self.classes.names)

    def _ids(self) -> list[int | str]:
        """The images in the order of their ids, because ties between the scores of two images are broken by it."""
        return in_order(self._found)

    def _rows(self, ids: Sequence[int | str]) -> list[tuple[int, int]]:
        """The annotations of images, each by the positions of its image and of itself."""
        images, first = [self._positions[i] for i in ids], self.truth.first
        return [(i, row) for i in images for row in range(int(first[i]), int(first[i + 1]))]

    def _matched(self, ids: Sequence[int | str]) -> dict[str, Any]:
        """Evaluations of boxes, and of masks where there are some, by what stands before the names of their numbers."""
        rows = self._rows(ids)
        matched = {"": self._match(ids, rows, self._detection_rows(ids), None)}
        found = self._mask_rows(ids)
        if found is not None and (masks := true_masks(self.truth, rows)) is not None:
            matched["mask_"] = self._match(ids, rows, found, masks)
            if self.boundary:
                matched["boundary_"] = self._match_outlines(ids, rows, found, masks)
        return matched

    def _match(self, ids: Sequence[int | str], rows: list[tuple[int, int]], found: Any, masks: TrueMasks | None) -> Any:
        """Boxes, or masks, of the images ``ids`` against the annotations ``rows``."""
        truth, chosen = self.truth, [row for _, row in rows]
        numbers_of = {self._positions[image]: number for number, image in enumerate(ids, 1)}
        crowd = truth.crowd[chosen]
        annotated = hotcoco.COCO.from_arrays(
            images=image_entries(len(ids)),
            categories=category_entries(self.classes.names),
            image_ids=np.array([numbers_of[image] for image, _ in rows], np.int64),
            category_ids=self._places[truth.labels[chosen]] + 1,
            boxes=truth.boxes[chosen],
            area=truth.areas[chosen],
            iscrowd=(crowd if masks is None else crowd | masks.unknown).astype(np.int64),
            segmentation=None if masks is None else masks.rles,  # type: ignore[arg-type]  # takes any kind of them
        )
        kind: IouType = "bbox" if masks is None else "segm"
        return match(annotated, annotated.load_res(found), kind, self.max_detections)

    def _match_outlines(
        self, ids: Sequence[int | str], rows: list[tuple[int, int]], found: list[dict[str, Any]], masks: TrueMasks
    ) -> BoundaryEvaluation:
        truth, numbers_of = self.truth, {self._positions[image]: number for number, image in enumerate(ids, 1)}
        objects = [
            {
                "image_id": numbers_of[image],
                "category_id": int(self._places[truth.labels[row]]) + 1,
                "segmentation": mask,
                "area": float(truth.areas[row]),
                "iscrowd": int(truth.crowd[row] or unknown),
            }
            for (image, row), mask, unknown in zip(rows, *masks)
        ]
        sizes = {"images": len(ids), "classes": len(self.classes), "most": self.max_detections}
        evaluation = BoundaryEvaluation(objects, found, **sizes)
        evaluation.evaluate()
        return evaluation

    def _mask_rows(self, ids: Sequence[int | str]) -> list[dict[str, Any]] | None:
        """Rows of a result list, without boxes, so that the areas are those of the masks; None where there are none."""
        rows = []
        for number, (_, scores, labels, masks) in enumerate((self._found[image] for image in ids), 1):
            if masks is None:
                return None
            rows += [
                {"image_id": number, "category_id": label + 1, "score": score, "segmentation": mask}
                for label, score, mask in zip(labels.tolist(), scores.tolist(), masks)
            ]
        return rows

    def details(self) -> dict[str, Any]:
        """What the numbers are made of: precision over recall, and what is taken for what; see ``box_errors``."""
        return box_errors(list(self.pairs().values()), self.classes.names, self.max_detections)

    def tide(self) -> dict[str, Any]:
        """Kinds of errors of the boxes, and what AP50 would gain without each; see ``COCOeval.tide_errors``."""
        found: dict[str, Any] = self._matched(self._ids())[""].tide_errors()
        return found

    def pairs(self) -> dict[int | str, tuple[Objects, Found]]:
        """The objects of each image, and what was found in it, in the order that breaks ties of scores."""
        images: dict[int | str, tuple[Objects, Found]] = {}
        for image_id in self._ids():
            image, (boxes, scores, labels) = self._positions[image_id], self._found[image_id][:3]
            rows = slice(self.truth.first[image], self.truth.first[image + 1])
            true = Objects(self.truth.boxes[rows], self._places[self.truth.labels[rows]], self.truth.crowd[rows])
            images[image_id] = (true, Found(boxes, scores, labels))
        return images

    def _detection_rows(self, ids: Sequence[int | str]) -> Floats:
        """[n, 7] image position, box, score, class position."""
        parts = [
            np.column_stack((np.full(len(scores), i, np.float64), boxes, scores, labels + 1.0))
            for i, (boxes, scores, labels, _) in enumerate((self._found[image] for image in ids), 1)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, 7))

    def _labels(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        known = np.array(self.classes.ids, np.int64)
        order = np.argsort(known)
        at = order[np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)]
        if (known[at] != ids).any():
            wrong = ids[known[at] != ids][0]
            raise DensekitError(
                f"{self.truth.path}: category id {wrong} was predicted but is none of {list(self.classes.ids)[:20]}; "
                "evaluate on data with the classes that the model learned"
            )
        return at
