"""The words that the parts of densekit share: levels, batches, targets, predictions, and the protocols of the parts.

Conventions, stated here once and converted at the edge (readers, writers, weights of other libraries):

* **images** RGB, channels first, uint8 in 0..255 (float32 on the same 0..255 scale where the file holds
  more than 8 bits) until the model normalises them on the device; padded at the bottom and right with zeros.
* **boxes** ``(x1, y1, x2, y2)``, absolute pixels, continuous: width = x2 - x1, the first pixel spans 0..1.
* **labels** 0-based class indices, foreground only; nobody sees a background class. ``Classes`` maps them to the
  data set's own ids and names.
* **masks** int64 class indices [H, W]; ``IGNORE`` (255) is ignored by every loss and metric. Multi-label masks are
  uint8 [K, H, W] with 0, 1 or ``IGNORE``.
* **sizes** (height, width).

Letters: B images in a batch, C channels, H height, W width, N padded boxes an image, D detections an image, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densekit.errors import DensekitError as DensekitError
from densekit.errors import nearest as nearest
from densekit.instances import Instance as Instance
from densekit.instances import InstanceMasks as InstanceMasks

IGNORE = 255
"""The mask value that no loss and no metric looks at."""

Task = Literal["detection", "segmentation", "classification"]


@dataclasses.dataclass(frozen=True, slots=True)
class Level:
    """One feature map that a backbone or a neck gives.

    Attributes:
        name: ``c1`` .. ``c5`` of a backbone (stride 2 .. 32 in a plain ResNet), ``p2`` .. ``p6`` of an FPN.
        channels: number of channels of the map.
        stride: input pixels per cell, the same in both directions.
        stage: what makes this map from that of the level before, [B, C', H', W'] -> [B, C, H, W], for heads that run it
            on regions; the last level of a backbone may have one, others have None.
    """

    name: str
    channels: int
    stride: int
    stage: Callable[[Tensor], Tensor] | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Classes:
    """The data set's own class names and ids; position = the label that the model uses.

    Attributes:
        names: unique names, in label order.
        ids: unique ids of the data set (COCO category ids, values in mask files, digits, ...), in label order.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.ids):
            raise DensekitError(f"{len(self.names)} class names but {len(self.ids)} class ids; give one id per name")
        for what, values, others in (("name", self.names, self.ids), ("id", self.ids, self.names)):
            if len(set(values)) < len(values):
                raise DensekitError(_twice(what, values, others))

    @classmethod
    def named_in(cls, source: object, names: Iterable[str], ids: Iterable[int]) -> Classes:
        """The classes that a file or an option gives.

        Raises:
            DensekitError: they break a rule; names ``source``.
        """
        try:
            return cls(tuple(names), tuple(ids))
        except DensekitError as error:
            raise DensekitError(f"{source}: {error}") from None

    def __len__(self) -> int:
        return len(self.names)

    def are_among(self, others: Classes) -> bool:
        """Whether each of these classes is one of the others, by name and id."""
        return set(zip(self.names, self.ids)) <= set(zip(others.names, others.ids))

    def difference(self, other: Classes) -> str | None:
        """Explain in one phrase how ``other`` differs from these classes, or return None where they are equal."""
        if self == other:
            return None
        mine, others = dict(zip(self.names, self.ids)), dict(zip(other.names, other.ids))
        parts = []
        if lost := [n for n in mine if n not in others]:
            parts.append("missing " + ", ".join(f"{n!r} ({nearest(n, others)})" for n in lost[:5]))
        if new := [n for n in others if n not in mine]:
            parts.append("not known " + ", ".join(f"{n!r}" for n in new[:5]))
        if moved := [n for n in mine if n in others and mine[n] != others[n]]:
            parts.append("other ids " + ", ".join(f"{n!r} {mine[n]} -> {others[n]}" for n in moved[:5]))
        return "; ".join(parts) or "the same classes in another order"


def _twice(what: str, values: Sequence[object], others: Sequence[object]) -> str:
    value = next(v for v in values if values.count(v) > 1)
    first, second = [repr(other) for v, other in zip(values, others) if v == value][:2]
    other = "id" if what == "name" else "name"
    return (
        f"class {what} {value!r} occurs twice ({other}s {first} and {second}), and {what}s must be unique: give one of "
        f"the classes another {what}, or remove the one that no object is of"
    )


@dataclasses.dataclass(slots=True)
class BoxTargets:
    """The boxes of a batch, padded to the same N for every image.

    Attributes:
        boxes: [B, N, 4] float32 xyxy in the pixels of ``Batch.images``; zeros where not valid.
        labels: [B, N] int64 in 0..K-1; zero where not valid.
        crowd: [B, N] bool: a region of many objects: ignored by the losses, honoured by COCO AP.
        valid: [B, N] bool: False for padding.
        masks: of the objects; None where the data set has none, or was not asked for them.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    valid: Tensor
    masks: InstanceMasks | None = None


@dataclasses.dataclass(slots=True)
class Targets:
    """What a batch is to be learned from; each part is there where the data set has it.

    Attributes:
        boxes: for detection.
        masks: for segmentation: [B, H, W] int64, or [B, K, H, W] uint8 for multi-label; padded with ``IGNORE``.
        labels: for classification: [B] int64, or [B, K] float32 class weights where images were mixed.
    """

    boxes: BoxTargets | None = None
    masks: Tensor | None = None
    labels: Tensor | None = None


@dataclasses.dataclass(slots=True)
class Batch:
    """Images and their targets, ready for the device.

    Attributes:
        images: [B, C, H, W] uint8 (or float32 on the 0..255 scale), padded at the bottom and right with zeros.
        sizes: [B, 2] int64 (height, width) of each image inside the padding.
        original_sizes: [B, 2] int64 (height, width) of each image's file, before any resizing.
        ids: the data set's own image ids (COCO's ``id``, else the path relative to the image folder).
        seeds: [B] int64, one random number per image and epoch: all randomness of a training step (which anchors and
            proposals are sampled) is a pure function of it, so it does not depend on ranks, workers or resumption.
        targets: None where there is nothing to learn from (prediction).
        truth: evaluation only: what the file says in its own pixels, untouched by resizing; for segmentation a list of
            [H0, W0] uint8 (or [K, H0, W0]) masks.
        maps: stored feature maps by level name, [B, C, H / stride, W / stride]; the model's backbone then rests and
            ``images`` are blank.
        skipped: one line for each image that could not be read and was replaced (``data.on_bad_image: skip``).
        pad_to: an image alone would be padded to a multiple of this.
        heads: names of the heads that learn from it; None: all.
        data_set: the name in the config of where it comes from; empty where there is one data set.
        host: ``sizes`` and ``original_sizes`` with their numbers, see ``numbers``.
    """

    images: Tensor
    sizes: Tensor
    original_sizes: Tensor
    ids: list[int | str]
    seeds: Tensor
    targets: Targets | None = None
    truth: list[Tensor] | None = None
    maps: dict[str, Tensor] | None = None
    skipped: list[str] = dataclasses.field(default_factory=list)
    pad_to: int = 1
    heads: tuple[str, ...] | None = None
    data_set: str = ""
    host: tuple[tuple[Tensor, list[list[int]]], ...] = ()

    def to(self, device: torch.device, non_blocking: bool = True) -> Batch:
        """Move every tensor but ``truth`` to ``device``; ids and the sizes' numbers stay on the host.

        Only CUDA's copies go on unwaited.
        """
        unwaited = non_blocking and device.type == "cuda"
        return self.changed(lambda tensor: tensor.to(device, non_blocking=unwaited))

    def changed(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """With ``change`` made to every tensor but ``truth``; the sizes' numbers stay as they are."""
        fields = dataclasses.fields(self)
        new = dataclasses.replace(self, **{f.name: _changed(getattr(self, f.name), change) for f in fields})
        before, after = (self.sizes, self.original_sizes), (new.sizes, new.original_sizes)
        new.host = tuple((there, self.numbers(here)) for here, there in zip(before, after))
        return new

    def numbers(self, sizes: Tensor) -> list[list[int]]:
        """[[height, width], ...] of ``sizes`` or ``original_sizes``, without waiting for the device they are on."""
        for known, numbers in self.host:
            if known is sizes:
                return numbers
        values: list[list[int]] = sizes.tolist()
        return values

    def pin_memory(self) -> Batch:
        """With the tensors pinned in host memory, so that the copy to the GPU runs beside the computation."""
        return self.changed(lambda tensor: tensor.pin_memory())


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _changed(one, change) for name, one in value.items()}
    if isinstance(value, Targets | BoxTargets | InstanceMasks):
        fields = dataclasses.fields(value)
        return dataclasses.replace(value, **{f.name: _changed(getattr(value, f.name), change) for f in fields})
    return value  # ids, and ``truth``, which is a list


@dataclasses.dataclass(slots=True)
class Sample:
    """One image with its annotations, on the CPU, after the transforms; data sets give these, ``collate`` batches.

    Attributes:
        image: [H, W, C] uint8 (or float32 on the 0..255 scale), RGB.
        id: the data set's own image id.
        original_size: (height, width) of the file.
        seed: random number of this (seed, epoch, index).
        boxes: [n, 4] float32 xyxy in the pixels of ``image``; None where the data set has no boxes.
        labels: [n] int64 box labels; crowd: [n] bool.
        instances: n masks of the boxes' objects; None where the data set has none, or was not asked for them.
        mask: [H, W] uint8 class indices, or [K, H, W] multi-label; None where the data set has no masks.
        truth: the mask before any transform; evaluation only.
        target: class label of the whole image; None where the data set has none.
        maps: stored feature maps [C, h, w] by level, in place of the pixels: then ``image`` is blank and tells the
            size alone; None where the model is to run its backbone.
    """

    image: npt.NDArray[Any]
    id: int | str
    original_size: tuple[int, int]
    seed: int
    boxes: npt.NDArray[np.float32] | None = None
    labels: npt.NDArray[np.int64] | None = None
    crowd: npt.NDArray[np.bool_] | None = None
    instances: list[Instance] | None = None
    mask: npt.NDArray[np.uint8] | None = None
    truth: npt.NDArray[np.uint8] | None = None
    target: int | None = None
    maps: dict[Level, Tensor] | None = None


@dataclasses.dataclass(slots=True)
class Detections:
    """Boxes found in a batch, best first, padded to the same D for every image.

    Attributes:
        boxes: [B, D, 4] float32 xyxy.
        scores: [B, D] float32 in 0..1; zero where not valid.
        labels: [B, D] int64; from a head 0-based, from ``DenseModel.predict`` the data set's own ids.
        valid: [B, D] bool.
        masks: [B, D, M, M] float32 in 0..1: how probably each of M x M equal cells of a box belongs to its object; None
            from heads that find boxes alone.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    masks: Tensor | None = None


@dataclasses.dataclass(slots=True)
class Segmentation:
    """Per-pixel predictions of a batch.

    Attributes:
        probabilities: one [K, H, W] float32 per image: softmax over classes, or a sigmoid per class (multi-label).
            A binary head (one class against the rest) gives K = 2 rows: rest, class.
        masks: one [H, W] int64 (or [K, H, W] uint8 for multi-label) per image: the class of each pixel; from a head
            0-based, from ``DenseModel.predict`` the data set's own ids.
    """

    probabilities: list[Tensor]
    masks: list[Tensor]


@dataclasses.dataclass(slots=True)
class Classification:
    """Class scores of a batch.

    Attributes:
        probabilities: [B, K] float32, in label order.
        labels: [B] int64 best class; from a head 0-based, from ``DenseModel.predict`` the data set's own ids.
    """

    probabilities: Tensor
    labels: Tensor


Predictions = Detections | Segmentation | Classification


@runtime_checkable
class Backbone(Protocol):
    """Turns an image batch into feature maps.

    ``levels`` says name, channels and stride of each map that ``__call__`` gives, finest first. Any head takes any
    backbone through ``levels`` alone.
    """

    levels: tuple[Level, ...]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """[B, C, H, W] normalised float images -> one [B, level.channels, ceil(H / stride), ceil(W / stride)] a level.

        H and W are multiples of the coarsest stride (``DenseModel`` pads).
        """
        ...


class Head(Protocol):
    """Turns feature maps into losses and predictions; takes nothing of the backbone but its maps and levels.

    ``losses`` and ``predict`` never look at ``self.training`` to decide what to return. A head may have a third method,
    ``losses_and_predictions(maps, batch)``, which gives both and computes what they share once. One that runs the stage
    of the last level itself, and so does not look at that level's map, says so by ``runs_last_stage = True``.
    """

    task: Task

    def losses(self, maps: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Each loss as a float32 scalar, already weighted: their sum is what the step minimises."""
        ...

    def predict(self, maps: Sequence[Tensor], batch: Batch) -> Predictions:
        """Predictions in the pixels of ``batch.images`` cut to ``batch.sizes``, with 0-based labels."""
        ...


class Dataset(Protocol):
    """Samples addressed by (epoch, index): every random draw comes from ``SeedSequence([seed, epoch, index])``."""

    task: Task
    classes: Classes

    def __len__(self) -> int: ...

    def sample(self, epoch: int, index: int) -> Sample:
        """Read, decode and transform one image; the same (epoch, index) always gives the same sample."""
        ...

    def aspect_ratios(self) -> npt.NDArray[np.float32] | None:
        """[len] width / height of each image where known without decoding, for batches of like shapes; else None.

        A data set may have a second method, ``seen_sizes()``: [len, 2] (height, width) of each image after its
        transforms, where known without decoding, else None. Evaluation then puts equal ones together. And a third,
        ``occurrences()``: which classes occur in which images, for ``data.sampling``.
        """
        ...


class Metric(Protocol):
    """Collects predictions over a data set and says how good they are."""

    def update(self, predictions: Any, batch: Batch) -> None:
        """Add one batch of ``DenseModel.predict`` results (original pixels, the data set's own ids)."""
        ...

    def state(self) -> Any:
        """What this rank has collected, picklable, to be gathered over ranks."""
        ...

    def merge(self, states: Sequence[Any]) -> None:
        """Replace this metric's state by the union of the ranks' states; each image counts once (first rank wins)."""
        ...

    def compute(self) -> dict[str, Any]:
        """Numbers by name (``AP``, ``mIoU``, ``top1``, ...) and nested tables such as ``per_class``."""
        ...
