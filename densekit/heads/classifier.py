"""The ``classifier`` head: pool, dropout, one linear layer.

B images, C channels, H, W size of a map, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.errors import DensekitError, nearest
from densekit.ops.mixup import mix_batch
from densekit.precision import in_float32
from densekit.registry import HEADS
from densekit.types import Batch, Classification, Level, Task


class Classifier(nn.Module):
    """One class for the whole image, from one level.

    Cells outside an image's own size, where a batch is padded, do not count into its pooled vector. Logits and loss
    are float32 under mixed precision too.

    Args:
        levels: of the backbone.
        num_classes: K.
        level: name of the level to look at; None: the coarsest.
        pool: mean or maximum over the cells.
        dropout: probability of dropping a pooled channel in training.
        label_smoothing: share of the label that is spread evenly over all classes (Szegedy et al. 2016, arXiv
            1512.00567, section 7).
        mixup: alpha of mixup (``ops/mixup.py``), done to the images of a training step before the backbone; 0: none.

    Raises:
        DensekitError: there is no such level.
    """

    task: Task = "classification"

    float32_parts = ("fc",)

    def __init__(
        self,
        levels: Sequence[Level],
        *,
        num_classes: int,
        level: str | None = None,
        pool: Literal["mean", "max"] = "mean",
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
    ) -> None:
        super().__init__()
        names = [one.name for one in levels]
        if level is not None and level not in names:
            raise DensekitError(f"level: the backbone has no level {level!r}; {nearest(level, names)}")
        self.index = len(names) - 1 if level is None else names.index(level)
        self.stride = levels[self.index].stride
        self.pool = pool
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(levels[self.index].channels, num_classes)
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.mixup = mixup

    def mix(self, batch: Batch) -> Batch:
        """The batch that a training step learns from, before the backbone: blended in pairs where mixup is on.

        Raises:
            DensekitError: there are boxes or masks too, which can't be blended.
        """
        if not self.mixup:
            return batch
        if batch.targets is not None and (batch.targets.boxes is not None or batch.targets.masks is not None):
            raise DensekitError("mixup blends whole images, which boxes and masks do not survive; set mixup to 0")
        return mix_batch(batch, alpha=self.mixup, num_classes=self.num_classes)

    def losses(self, maps: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """``cross_entropy``, averaged over the images.

        Raises:
            DensekitError: the batch has no labels.
        """
        if batch.targets is None or batch.targets.labels is None:
            raise DensekitError("a classifier learns from class labels, and this data set has none; use image_folder")
        logits = self._logits(maps, batch)
        return {"cross_entropy": F.cross_entropy(logits, batch.targets.labels, label_smoothing=self.label_smoothing)}

    def predict(self, maps: Sequence[Tensor], batch: Batch) -> Classification:
        """Softmax probabilities and the best class."""
        probabilities = self._logits(maps, batch).softmax(1)
        return Classification(probabilities, probabilities.argmax(1))

    def _logits(self, maps: Sequence[Tensor], batch: Batch) -> Tensor:
        """[B, K] float32."""
        with in_float32(maps[self.index].device):
            pooled = self.dropout(self._pooled(maps[self.index].float(), batch.sizes))
            logits: Tensor = self.fc(pooled)
            return logits

    def _pooled(self, values: Tensor, sizes: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C] over the cells that an image reaches into."""
        cells = (sizes + self.stride - 1) // self.stride
        rows = torch.arange(values.shape[2], device=values.device) < cells[:, :1]
        columns = torch.arange(values.shape[3], device=values.device) < cells[:, 1:]
        inside = (rows[:, :, None] & columns[:, None, :])[:, None]
        if self.pool == "max":
            return values.masked_fill(~inside, float("-inf")).amax((2, 3))
        return (values * inside).sum((2, 3)) / inside.sum((2, 3))


@HEADS.register
def classifier(
    levels: Sequence[Level],
    *,
    num_classes: int,
    level: str | None = None,
    pool: Literal["mean", "max"] = "mean",
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0,
    label_smoothing: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0,
    mixup: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.0,
) -> Classifier:
    """Build the head; see ``Classifier`` for the options."""
    return Classifier(
        levels,
        num_classes=num_classes,
        level=level,
        pool=pool,
        dropout=dropout,
        label_smoothing=label_smoothing,
        mixup=mixup,
    )
