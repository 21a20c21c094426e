"""What RetinaNet and FCOS are alike in: a pyramid, two towers, a sigmoid a class that learns by the focal loss.

B images, C channels, A places an image (anchors or points, all levels), k places a cell, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Generic, TypeVar

from torch import Tensor, nn

from densekit.errors import DensekitError
from densekit.heads.dense.pyramid import DensePyramid
from densekit.heads.dense.towers import Tower, by_place, output
from densekit.layers import Norm
from densekit.ops.assignment import Assignment, box_targets
from densekit.ops.losses import focal_losses
from densekit.ops.suppression import Suppression
from densekit.types import Batch, BoxTargets, Detections, Task

Judged = TypeVar("Judged")


class DenseDetector(nn.Module, Generic[Judged]):
    """One-stage detector on the maps of any backbone; a kind of it says what the places are.

    Args:
        neck: the backbone's maps -> pyramid; announces ``levels``.
        num_classes: K.
        stride: of the backbone's last map: the padded image is that many times larger.
        places: k.
        convs: of each tower.
        norm: in the towers.
        bias: whether their convolutions have biases beside their norms.
        prior: probability of every class before training (Lin et al. 2017, "Focal loss", section 4.1).
        focal_alpha: weight of a label's sigmoid in the focal loss; the others' is 1 - alpha.
        focal_gamma: of the focal loss.
        box_weight: of the box loss.
        candidates: best (place, class) pairs of a level that enter the suppression.
        suppression: from candidates to detections.

    Raises:
        DensekitError: a ``prior`` that is no probability.
    """

    task: Task = "detection"

    def __init__(
        self,
        neck: DensePyramid,
        *,
        num_classes: int,
        stride: int,
        places: int,
        convs: int,
        norm: Norm | None,
        bias: bool,
        prior: float,
        focal_alpha: float,
        focal_gamma: float,
        box_weight: float,
        candidates: int,
        suppression: Suppression,
    ) -> None:
        super().__init__()
        if not 0 < prior < 1:
            raise DensekitError(f"prior {prior}: give a probability between 0 and 1, such as 0.01")
        self.neck, self.num_classes, self.stride = neck, num_classes, stride
        channels = neck.levels[0].channels
        self.class_tower = Tower(channels, convs=convs, norm=norm, bias=bias)
        self.box_tower = Tower(channels, convs=convs, norm=norm, bias=bias)
        self.logits = output(channels, places * num_classes, bias=-math.log((1 - prior) / prior))
        self.focal_alpha, self.focal_gamma, self.box_weight = focal_alpha, focal_gamma, box_weight
        self.candidates, self.suppression = candidates, suppression

    @property
    def nms_threshold(self) -> float:
        """IoU above which two detections are one object."""
        return self.suppression.threshold

    def losses(self, maps: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Float32 scalars, already weighted; see the kinds for their names.

        Crowd regions are ignored; images without objects train on what is not there.
        """
        return self._losses(self.judge(maps), box_targets(batch))

    def predict(self, maps: Sequence[Tensor], batch: Batch) -> Detections:
        """Detections in the pixels of ``batch.images`` cut to ``batch.sizes``, with 0-based labels."""
        return self._detections(self.judge(maps), batch.sizes)

    def losses_and_predictions(self, maps: Sequence[Tensor], batch: Batch) -> tuple[dict[str, Tensor], Detections]:
        """What ``losses`` and ``predict`` give, from one pass of the towers."""
        judged = self.judge(maps)
        return self._losses(judged, box_targets(batch)), self._detections(judged, batch.sizes)

    def judge(self, maps: Sequence[Tensor]) -> Judged:
        """Run the neck and both towers over all levels: what the kind's ``_losses`` and ``_detections`` look at."""
        raise NotImplementedError

    def _losses(self, judged: Judged, targets: BoxTargets) -> dict[str, Tensor]:
        raise NotImplementedError

    def _detections(self, judged: Judged, sizes: Tensor) -> Detections:
        raise NotImplementedError

    def _towers(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor], tuple[int, int]]:
        """The pyramid, what each tower makes of it, in float32, and (height, width) of the padded images."""
        pyramid: list[Tensor] = self.neck(maps)
        size = (maps[-1].shape[2] * self.stride, maps[-1].shape[3] * self.stride)
        classes, boxes = ([tower(x).float() for x in pyramid] for tower in (self.class_tower, self.box_tower))
        return pyramid, classes, boxes, size

    def _class_logits(self, classes: Sequence[Tensor]) -> Tensor:
        return by_place([self.logits(x) for x in classes], self.num_classes)

    def _class_losses(self, logits: Tensor, assigned: Assignment, targets: BoxTargets) -> Tensor:
        """[B, A], 0 where a place is ignored."""
        labels = targets.labels.gather(1, assigned.object)
        losses = focal_losses(logits, labels, assigned.positive, alpha=self.focal_alpha, gamma=self.focal_gamma)
        return losses.sum(-1) * (assigned.positive | assigned.negative)
