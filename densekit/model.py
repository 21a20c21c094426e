"""``DenseModel``: one backbone under any heads, from uint8 images to losses or predictions.

B images, C channels, H, W padded size, K classes. No hidden transform: the model normalises by the numbers that its
checkpoint carries and pads to the coarsest stride, nothing else. Resizing happens in the data pipeline and is undone
on the predictions by ``Batch.sizes`` and ``Batch.original_sizes``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit import canvases
from densekit.calibration import Calibration
from densekit.config import ModelConfig
from densekit.errors import DensekitError
from densekit.ops.deterministic import deterministic_backward
from densekit.registry import BACKBONES, HEADS
from densekit.types import Batch, Classes, Classification, Detections, Head, Level, Predictions, Segmentation, Task
from densekit.weight_gradients import use_own_convolutions


class DenseModel(nn.Module):
    """A backbone and its heads.

    Args:
        backbone: a module with ``levels``; torch's own convolutions in it become ``weight_gradients.Conv2d``.
        heads: heads by name; the losses of several heads are summed.
        mean: per channel on the 0..1 scale; one value stands for all channels.
        std: likewise.
        channels: image channels.
        classes: the data set's own names and ids.
        channels_last: run in the channels-last memory layout, faster on every device that was measured.

    Attributes:
        calibration: what its checkpoint knows of its scores; ``Predictor`` reads them so, the model itself never.
    """

    mean: Tensor
    std: Tensor
    class_ids: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        heads: Mapping[str, nn.Module],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        classes: Classes,
        channels: int = 3,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        if heads and all(getattr(head, "runs_last_stage", False) for head in heads.values()):
            backbone.leave_last_stage()  # type: ignore[operator]  # an nn.Module's method
        use_own_convolutions(backbone)
        self.heads = nn.ModuleDict(heads)
        self.register_buffer("class_ids", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.classes = classes
        self.calibration: Calibration | None = None
        self.channels = channels
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise DensekitError(
                    f"model.normalize.{name} has {len(values)} values for {channels} image channels; "
                    f"give one, or one a channel"
                )
            tensor = torch.tensor(list(values), dtype=torch.float32).expand(channels).reshape(1, channels, 1, 1)
            self.register_buffer(name, tensor * 255.0)
        self.stride = max(32, max(level.stride for level in self.levels))
        self.to(memory_format=self.memory_format)

    @property
    def classes(self) -> Classes:
        """The data set's own names and ids, which predictions come in."""
        return self._classes

    @classes.setter
    def classes(self, classes: Classes) -> None:
        self._classes = classes
        # A buffer, so that predictions need no copy to the device.
        self.class_ids = torch.tensor(classes.ids, dtype=torch.int64, device=self.class_ids.device)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The backbone's levels, finest first."""
        levels: tuple[Level, ...] = self.backbone.levels  # type: ignore[assignment]  # nn.Module types its attributes
        return levels

    @property
    def task(self) -> Task:
        """The task of the first head."""
        return self.head().task

    def head(self, name: str | None = None) -> Head:
        """The head of a name, or the first."""
        return self.heads[name or next(iter(self.heads))]  # type: ignore[return-value]

    def normalize(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Normalise raw images and pad them to the coarsest stride.

        Args:
            images: [B, C, H, W] uint8, or float on the 0..255 scale.
            sizes: [B, 2] (height, width) of each image inside its padding; the padding becomes zero *after* the
                normalisation, as if each image had been normalised before it was put into the batch.

        Returns:
            [B, C, H', W'] float32, H' and W' multiples of the coarsest stride.
        """
        assert images.shape[1] == self.channels, f"{images.shape[1]} image channels, the model takes {self.channels}"
        normal = (images.float() - _as_rows(self.mean, images)).div_(_as_rows(self.std, images))
        if sizes is not None:
            rows, columns = _inside(sizes, images.shape[2], images.shape[3])
            normal.mul_(rows).mul_(_as_rows(columns, images))
        bottom, right = -images.shape[2] % self.stride, -images.shape[3] % self.stride
        normal = F.pad(normal, (0, right, 0, bottom)) if bottom or right else normal
        return normal.contiguous(memory_format=self.memory_format)

    def features(self, batch: Batch) -> list[Tensor]:
        """The backbone's maps of a batch of raw images, finest first.

        A batch that brings stored maps (``Batch.maps``) gets these back, as float32, and the backbone rests. A level
        that was not stored is NaN all over, so that a head that looks at it gives no plausible number.
        """
        if batch.maps is not None:
            return _stored(batch.maps, self.levels, self.memory_format)
        maps: list[Tensor] = self.backbone(self.normalize(batch.images, batch.sizes))
        return maps

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of every head, each a float32 scalar; named ``head.loss`` where there are several heads.

        This is the training step's path: a head that blends images (``mix``, as the classifier's mixup) does so first.
        """
        for head in self.heads.values():
            mixed = head.mix(batch) if hasattr(head, "mix") else batch  # type: ignore[operator]  # an nn.Module's method
            if mixed is not batch and batch.maps is not None:
                raise DensekitError(
                    "mixup blends images before the backbone, so stored features can't follow; set it to 0"
                )
            batch = mixed
        losses = {}
        with deterministic_backward(batch.images.device):
            maps = self.features(batch)
            for name in self.heads:
                for key, value in self.head(name).losses(maps, batch).items():
                    losses[key if len(self.heads) == 1 else f"{name}.{key}"] = value
        return losses

    def predict(self, batch: Batch, head: str | None = None, *, padded: bool = False) -> Predictions:
        """Predictions of one head in the pixels of the original images, with the data set's own ids.

        Those of an image do not depend on what else is in the batch: images of one canvas are computed together (see
        ``canvases.py``), so a batch whose images differ in size takes several passes.

        Args:
            batch: on the model's device.
            head: its name; None: the first.
            padded: one pass over the batch as it is padded, as torchvision's detectors do it. Then the predictions of
                an image depend on the size of its neighbours.
        """
        parts = [(list(range(len(batch.ids))), batch)] if padded else self._by_canvas(batch)
        return canvases.join([(rows, self._predict(part, head)) for rows, part in parts])

    def losses_and_predictions(self, batch: Batch) -> tuple[dict[str, Tensor], Predictions]:
        """Both of the first head, canvas by canvas as ``predict``; what the head's two methods share is computed once.

        The losses are the mean over the canvases, weighted by their images.
        """
        parts = [(rows, *self._both(part)) for rows, part in self._by_canvas(batch)]
        losses = canvases.mean([(rows, losses) for rows, losses, _ in parts])
        return losses, canvases.join([(rows, predictions) for rows, _, predictions in parts])

    def _by_canvas(self, batch: Batch) -> list[tuple[list[int], Batch]]:
        return canvases.split(batch, self.stride, self.levels)

    def _predict(self, batch: Batch, head: str | None) -> Predictions:
        return self.finish(self.head(head).predict(self.features(batch), batch), batch)

    def _both(self, batch: Batch) -> tuple[dict[str, Tensor], Predictions]:
        maps = self.features(batch)
        head = self.head()
        if hasattr(head, "losses_and_predictions"):
            losses, predictions = head.losses_and_predictions(maps, batch)
            return losses, self.finish(predictions, batch)
        return head.losses(maps, batch), self.finish(head.predict(maps, batch), batch)

    def finish(self, predictions: Predictions, batch: Batch) -> Predictions:
        """From the pixels of the batch to those of the original images, and from labels to the data set's ids."""
        if isinstance(predictions, Detections):
            return _finish_detections(predictions, batch, self.class_ids)
        if isinstance(predictions, Segmentation):
            return _finish_segmentation(predictions, batch, self.class_ids)
        return Classification(predictions.probabilities, self.class_ids[predictions.labels.long()])


def _stored(maps: Mapping[str, Tensor], levels: Sequence[Level], memory_format: torch.memory_format) -> list[Tensor]:
    """Stored maps in the order of the backbone's levels; a missing one has its shape and NaN, at no memory."""
    known = next(level for level in levels if level.name in maps)
    first = maps[known.name]
    height, width = first.shape[2] * known.stride, first.shape[3] * known.stride
    nothing = torch.full((), torch.nan, device=first.device)
    return [
        maps[level.name].to(torch.float32, memory_format=memory_format)
        if level.name in maps
        else nothing.expand(len(first), level.channels, height // level.stride, width // level.stride)
        for level in levels
    ]


def _as_rows(values: Tensor, images: Tensor) -> Tensor:
    """[B or 1, C or 1, 1, W or 1] -> [B or 1, C, 1, W], laid out like the images.

    So the CPU runs through whole rows. With a value a channel it stops after every pixel of images with channels last,
    and takes three to four times as long.
    """
    last = images.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return values.expand(-1, images.shape[1], 1, images.shape[3]).contiguous(memory_format=layout)


def _inside(sizes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """[B, 1, height, 1] and [B, 1, 1, width]: 1 for rows and columns of an image, 0 for those of its padding."""
    rows = torch.arange(height, device=sizes.device)[None, :] < sizes[:, :1]
    columns = torch.arange(width, device=sizes.device)[None, :] < sizes[:, 1:]
    return rows.float()[:, None, :, None], columns.float()[:, None, None, :]


def _finish_detections(found: Detections, batch: Batch, ids: Tensor) -> Detections:
    scale = (batch.original_sizes / batch.sizes).flip(-1).repeat(1, 2).to(found.boxes)  # [B, 4]: x, y, x, y
    limit = batch.original_sizes.flip(-1).repeat(1, 2).to(found.boxes)
    boxes = torch.minimum(found.boxes * scale[:, None], limit[:, None])
    return dataclasses.replace(found, boxes=boxes, labels=ids[found.labels.long()])


def _finish_segmentation(found: Segmentation, batch: Batch, ids: Tensor) -> Segmentation:
    probabilities, masks = [], []
    for p, mask, size in zip(found.probabilities, found.masks, batch.numbers(batch.original_sizes)):
        multi_label = mask.dim() == 3
        if list(p.shape[-2:]) != size:
            p = F.interpolate(p[None], size=size, mode="bilinear", align_corners=False)[0]
            # max, not argmax: the same labels, and 50 times faster over the first dimension on the CPU.
            mask = (p >= 0.5).to(torch.uint8) if multi_label else p.max(0).indices
        probabilities.append(p)
        masks.append(mask if multi_label else ids[mask.long()])
    return Segmentation(probabilities, masks)


def build_model(config: ModelConfig, classes: Classes, *, channels_last: bool = True) -> DenseModel:
    """Build the parts that a config names, with random weights.

    Raises:
        DensekitError: unknown part or option, or a value of the wrong type, with its path in the config.
    """
    backbone = BACKBONES.build(
        config.backbone.name, config.backbone.options, path="model.backbone", in_channels=config.channels
    )
    heads = {
        name: HEADS.build(
            part.name, part.options, backbone.levels, path=f"model.heads.{name}", num_classes=len(classes)
        )
        for name, part in config.heads.items()
    }
    return DenseModel(
        backbone,
        heads,
        mean=config.normalize.mean,
        std=config.normalize.std,
        classes=classes,
        channels=config.channels,
        channels_last=channels_last,
    )
