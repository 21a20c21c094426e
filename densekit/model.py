"""``DenseModel``: one backbone under any heads, from uint8 images to losses or predictions.

B images, C channels, H, W padded size, K classes. No hidden transform: the model normalises by the numbers that its
checkpoint carries and pads to the coarsest stride, nothing else. Resizing happens in the data pipeline and is undone
on the predictions by ``Batch.sizes`` and ``Batch.original_sizes``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit import canvases
from densekit.calibration import Calibration
from densekit.config import ModelConfig
from densekit.errors import DensekitError, nearest
from densekit.ops.deterministic import deterministic_backward
from densekit.original_pixels import detections_of_files, masks_of_files
from densekit.packed import packed
from densekit.registry import BACKBONES, HEADS
from densekit.set_statistics import Passes, SetStatistics
from densekit.types import Batch, Classes, Classification, Detections, Head, Level, Predictions, Segmentation, Task
from densekit.weight_gradients import use_own_convolutions


class DenseModel(nn.Module):
    """A backbone and its heads.

    Args:
        backbone: a module with ``levels``; torch's own convolutions in it become ``weight_gradients.Conv2d``.
        heads: heads by name, in their order; what needs one head takes the first where no other is named.
        mean: per channel on the 0..1 scale; one value stands for all channels.
        std: likewise.
        channels: image channels.
        classes: the data sets' own names and ids, by head; one for all heads.
        channels_last: run in the channels-last memory layout, faster on every device that was measured.

    Attributes:
        frozen: the heads that do not learn, see ``freeze``.
        statistics: of the backbone's batch norms for each of several data sets; None: one for all.
        calibrations: what its checkpoint knows of the scores of some heads; ``Predictor`` reads them so, the model
            itself never.
        captured: takes the place of ``predict_part``, see ``infer/captured.py``.
    """

    mean: Tensor
    std: Tensor
    statistics: SetStatistics | None

    def __init__(
        self,
        backbone: nn.Module,
        heads: Mapping[str, nn.Module],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        classes: Classes | Mapping[str, Classes],
        channels: int = 3,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        if heads and all(getattr(head, "runs_last_stage", False) for head in heads.values()):
            backbone.leave_last_stage()  # type: ignore[operator]  # an nn.Module's method
        use_own_convolutions(backbone)
        self.heads = nn.ModuleDict(heads)
        self._classes: dict[str, Classes] = {}
        for head in self.heads:
            self.register_buffer(f"class_ids_of_{head}", torch.zeros(0, dtype=torch.int64), persistent=False)
            self.set_classes(head, classes if isinstance(classes, Classes) else classes[head])
        self.frozen: tuple[str, ...] = ()
        self.statistics = None
        self.calibrations: dict[str, Calibration] = {}
        self.captured: Callable[[Batch, Sequence[str]], dict[str, Predictions]] | None = None
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
        """The first head's: the data set's own names and ids, which its predictions come in."""
        return self.classes_of()

    @classes.setter
    def classes(self, classes: Classes) -> None:
        self.set_classes(next(iter(self.heads)), classes)

    def classes_of(self, head: str | None = None) -> Classes:
        """The names and ids that the predictions of a head come in; None: of the first."""
        return self._classes[head or next(iter(self.heads))]

    @property
    def classes_by_head(self) -> dict[str, Classes]:
        """``classes_of`` every head."""
        return dict(self._classes)

    def set_classes(self, head: str, classes: Classes) -> None:
        """Let a head's predictions come in these names and ids, in the order of its labels."""
        self._classes[head] = classes
        # A buffer, so that predictions need no copy to the device.
        before = self.class_ids(head)
        setattr(self, f"class_ids_of_{head}", torch.tensor(classes.ids, dtype=torch.int64, device=before.device))

    def class_ids(self, head: str | None = None) -> Tensor:
        """[K] the ids of a head's classes, on the model's device; None: of the first head."""
        ids: Tensor = getattr(self, f"class_ids_of_{head or next(iter(self.heads))}")
        return ids

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

    def freeze(self, heads: Iterable[str]) -> None:
        """Let heads rest: they learn from no batch, and in training too their norms keep their statistics."""
        self.frozen = tuple(heads)
        for name in self.frozen:
            self.heads[name].requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation; frozen heads stay in evaluation."""
        super().train(mode)
        for name in self.frozen:
            self.heads[name].train(False)
        return self

    def keep(self, heads: Iterable[str]) -> None:
        """Forget all heads but these; their order stays.

        Raises:
            DensekitError: there is no such head.
        """
        wanted = set(heads)
        for name in sorted(wanted - set(self.heads)):
            raise DensekitError(f"there is no head {name!r}; {nearest(name, self.heads)}")
        self.frozen = tuple(name for name in self.frozen if name in wanted)
        for name in [name for name in self.heads if name not in wanted]:
            del self.heads[name], self._classes[name]
            delattr(self, f"class_ids_of_{name}")
            self.calibrations.pop(name, None)
        self.statistics = None if self.statistics is None else self.statistics.kept(self.heads)

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

    def using(self, batch: Batch) -> contextlib.AbstractContextManager[None]:
        """Let the batch norms have the statistics of the data set of a batch, where each set has its own."""
        return contextlib.nullcontext() if self.statistics is None else self.statistics.use(batch.data_set)

    def pack(self, dtype: torch.dtype) -> None:
        """Let each data set's statistics be folded into convolutions of their own, see ``packed``."""
        if self.statistics is not None:
            self.statistics.split(lambda: packed(self.backbone, dtype))

    def features(self, batch: Batch) -> list[Tensor]:
        """The backbone's maps of a batch of raw images, finest first.

        A batch that brings stored maps (``Batch.maps``) gets these back, as float32, and the backbone rests. A level
        that was not stored is NaN all over, so that a head that looks at it gives no plausible number. Where data sets
        have ``statistics`` of their own those in use count, as a rule the first one's.
        """
        return self._maps(batch, None)

    def _maps(self, batch: Batch, data_set: str | None) -> list[Tensor]:
        """As ``features``, by the statistics of a data set where it is named."""
        if batch.maps is not None:
            return _stored(batch.maps, self.levels, self.memory_format)
        images = self.normalize(batch.images, batch.sizes)
        if self.statistics is not None and data_set is not None:
            return self.statistics.maps(self.backbone, images, data_set)
        maps: list[Tensor] = self.backbone(images)
        return maps

    def prefix(self, head: str) -> str:
        """What the names of a head's losses and numbers begin with: ``head.`` where the model has several heads."""
        return f"{head}." if len(self.heads) > 1 else ""

    def learning(self, batch: Batch) -> list[str]:
        """The heads that learn from a batch, in their order."""
        wanted = self.heads if batch.heads is None else batch.heads
        return [name for name in self.heads if name in wanted and name not in self.frozen]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of the heads that learn from a batch, each a float32 scalar; named ``head.loss`` if there are several.

        This is the training step's path: a head that blends images (``mix``, as the classifier's mixup) does so first.
        """
        names = self.learning(batch)
        for head in map(self.head, names):
            mixed = head.mix(batch) if hasattr(head, "mix") else batch
            if mixed is not batch and batch.maps is not None:
                raise DensekitError(
                    "mixup blends images before the backbone, so stored features can't follow; set it to 0"
                )
            batch = mixed
        with deterministic_backward(batch.images.device):
            maps = self.features(batch)
            return self._named({name: self.head(name).losses(maps, batch) for name in names})

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
        name = head or next(iter(self.heads))
        return self.predict_all(batch, (name,), padded=padded)[name]

    def predict_all(
        self, batch: Batch, heads: Sequence[str] | None = None, *, padded: bool = False
    ) -> dict[str, Predictions]:
        """As ``predict``, of several heads from one pass of the backbone; from one a data set with ``statistics``.

        Args:
            batch: on the model's device.
            heads: their names; None: all.
            padded: see ``predict``.
        """
        names = list(self.heads) if heads is None else list(heads)
        parts = [(list(range(len(batch.ids))), batch)] if padded else self._by_canvas(batch)
        found = [(rows, (self.captured or self.predict_part)(part, names)) for rows, part in parts]
        return {name: canvases.join([(rows, one[name]) for rows, one in found]) for name in names}

    def losses_and_predictions(
        self, batch: Batch, heads: Sequence[str] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Predictions]]:
        """Both of several heads, canvas by canvas as ``predict``; what they share is computed once.

        The losses are the mean over the canvases, weighted by their images.

        Args:
            batch: on the model's device.
            heads: their names; None: all.
        """
        names = list(self.heads) if heads is None else list(heads)
        parts = [(rows, *self._both(part, names)) for rows, part in self._by_canvas(batch)]
        losses = canvases.mean([(rows, losses) for rows, losses, _ in parts])
        return losses, {name: canvases.join([(rows, found[name]) for rows, _, found in parts]) for name in names}

    def _by_canvas(self, batch: Batch) -> list[tuple[list[int], Batch]]:
        return canvases.split(batch, self.stride, self.levels)

    def _named(self, losses: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {f"{self.prefix(name)}{key}": value for name, own in losses.items() for key, value in own.items()}

    def _seen(self, batch: Batch, names: Sequence[str]) -> Iterator[tuple[str, list[Tensor]]]:
        """Each head with the maps that it looks at."""
        passes: Passes = [(None, names)] if self.statistics is None else self.statistics.passes(names)
        for data_set, heads in passes:
            maps = self._maps(batch, data_set)
            yield from ((name, maps) for name in heads)

    def predict_part(self, batch: Batch, names: Sequence[str]) -> dict[str, Predictions]:
        """As ``predict_all``, of images of one canvas."""
        seen = self._seen(batch, names)
        return {name: self.finish(self.head(name).predict(maps, batch), batch, name) for name, maps in seen}

    def _both(self, batch: Batch, names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Predictions]]:
        losses: dict[str, dict[str, Tensor]] = {}
        predictions: dict[str, Predictions] = {}
        for name, maps in self._seen(batch, names):
            head = self.head(name)
            if hasattr(head, "losses_and_predictions"):
                losses[name], found = head.losses_and_predictions(maps, batch)
            else:
                losses[name], found = head.losses(maps, batch), head.predict(maps, batch)
            predictions[name] = self.finish(found, batch, name)
        return self._named(losses), predictions

    def finish(self, predictions: Predictions, batch: Batch, head: str | None = None) -> Predictions:
        """From the pixels of the batch to those of the original images, and from labels to the data set's ids."""
        ids = self.class_ids(head)
        if isinstance(predictions, Detections):
            return detections_of_files(predictions, batch, ids)
        if isinstance(predictions, Segmentation):
            return masks_of_files(predictions, batch, ids)
        return Classification(predictions.probabilities, ids[predictions.labels.long()])


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


def build_model(
    config: ModelConfig, classes: Classes | Mapping[str, Classes], *, channels_last: bool = True
) -> DenseModel:
    """Build the parts that a config names, with random weights.

    Args:
        config: names them.
        classes: of each head; one for all.
        channels_last: see ``DenseModel``.

    Raises:
        DensekitError: unknown part or option, or a value of the wrong type, with its path in the config.
    """
    backbone = BACKBONES.build(
        config.backbone.name, config.backbone.options, path="model.backbone", in_channels=config.channels
    )
    own = dict.fromkeys(config.heads, classes) if isinstance(classes, Classes) else classes
    heads = {
        name: HEADS.build(
            part.name, part.options, backbone.levels, path=f"model.heads.{name}", num_classes=len(own[name])
        )
        for name, part in config.heads.items()
    }
    return DenseModel(
        backbone,
        heads,
        mean=config.normalize.mean,
        std=config.normalize.std,
        classes=own,
        channels=config.channels,
        channels_last=channels_last,
    )
