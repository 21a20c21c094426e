"""The mask branch (He et al. 2017, section 3 and figure 4): a small network that tells an object's pixels in its box.

B images, P proposals or detections an image, R regions of the batch that are looked at, C channels of the pyramid, Q
side of the patch that the convolutions see, M = 2 Q side of a mask, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.heads.faster_rcnn.last_stage import LastStage
from densekit.heads.faster_rcnn.roi import ProposalSamples
from densekit.layers import ConvNormAct, Norm
from densekit.ops.instance_masks import crop_masks, values_are_known
from densekit.ops.losses import mean_over_ranks
from densekit.ops.roi_align import Method, roi_align
from densekit.types import BoxTargets, Detections
from densekit.weight_gradients import ConvTranspose2d

TOGETHER = 256
"""Detections that are looked at together: what bounds the memory of a prediction."""


class MaskHead(nn.Module):
    """Convolutions, a transposed convolution of 2 x 2 with stride 2, and a mask for each class.

    Of a region the mask of its own class alone is computed: with many classes the others would be most of the work.

    Args:
        channels: C.
        stage: what pooled regions go through first; None where the convolutions look at them at once.
        num_classes: K.
        strides: of the levels that are pooled, finest first.
        convs: 3 x 3 convolutions.
        width: channels of them and of the transposed one.
        norm: after each convolution.
        class_agnostic: one mask for all classes.
        pool_size: Q.
        sampling_ratio: samples a bin and direction of RoIAlign.
        aligned: half-cell shift of RoIAlign, also where it crops what is to be learned. Without it, as in torchvision,
            masks are learned half a pixel too far up and left: objects of 16 pixels reach an IoU of 0.92 at best.
        roi_align: way to compute it, see ``ops/roi_align.py``.
        most: positives of an image in the loss, at the most.
        weight: of the loss.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_classes: int,
        strides: Sequence[int],
        stage: LastStage | None = None,
        convs: int = 4,
        width: int = 256,
        norm: Norm | None = None,
        class_agnostic: bool = False,
        pool_size: int = 14,
        sampling_ratio: int = 2,
        aligned: bool = False,
        roi_align: Method = "auto",
        most: int = 128,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.strides, self.class_agnostic, self.most, self.weight = tuple(strides), class_agnostic, most, weight
        self.pool_size, self.sampling_ratio = pool_size, sampling_ratio
        self.aligned, self.roi_align, self.stage = aligned, roi_align, stage
        inputs = [channels, *[width] * convs]
        self.convs = nn.Sequential(*(ConvNormAct(c, width, kernel=3, norm=norm) for c in inputs[:-1]))
        self.upsample = ConvTranspose2d(inputs[-1], width, 2, stride=2)
        self.logits = nn.Conv2d(width, 1 if class_agnostic else num_classes, 1)
        nn.init.kaiming_normal_(self.upsample.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.logits.weight, std=0.001)
        for layer in (self.upsample, self.logits):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, pyramid: Sequence[Tensor], boxes: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Look at regions.

        Args:
            pyramid: one [B, C, H, W] a level, finest first; levels beyond ``strides`` are not used.
            boxes: [R, 4].
            images: [R] int64: the image of each.
            labels: [R] int64 in 0..K-1.

        Returns:
            [R, M, M] float32 logits of the regions' own classes.
        """
        pooled = roi_align(
            pyramid[: len(self.strides)],
            boxes,
            self.strides,
            images=images,
            output_size=self.pool_size * (1 if self.stage is None else self.stage.shrinks),
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            method=self.roi_align,
        )
        pooled = pooled if self.stage is None else self.stage.patch(pooled)
        cells = self.convs(pooled).permute(0, 2, 3, 1)  # [R, Q, Q, width]
        # As products of matrices: a kernel as large as its stride never sees two cells, and the last layer one pixel.
        # Pixels are put into their places when they are one number each.
        weight, bias = self.upsample.weight, self.upsample.bias
        assert bias is not None
        pixels = F.relu(F.linear(cells, weight.permute(2, 3, 1, 0).flatten(0, 2), bias.repeat(4)))
        pixels = pixels.reshape(boxes.shape[0], -1, weight.shape[1])  # [R, Q Q 4, width]
        own = torch.zeros_like(labels) if self.class_agnostic else labels
        assert self.logits.bias is not None
        scale = F.embedding(own, self.logits.weight.flatten(1))
        shift = F.embedding(own, self.logits.bias[:, None])
        logits = (pixels @ scale[..., None]).squeeze(-1).float() + shift
        side = self.pool_size
        return logits.view(-1, side, side, 2, 2).permute(0, 1, 3, 2, 4).reshape(-1, 2 * side, 2 * side)

    def losses(
        self, pyramid: Sequence[Tensor], samples: ProposalSamples, targets: BoxTargets, sizes: Tensor
    ) -> dict[str, Tensor]:
        """Loss over the positives whose object has a mask: ``mask``, the mean over them and their pixels."""
        masks = targets.masks
        assert masks is not None
        positive = (samples.valid & (samples.labels > 0))[:, : self.most]
        place, counts = _filled(positive)
        images = place // positive.shape[1]
        boxes, labels, objects = (
            part[:, : self.most].flatten(0, 1)[place] for part in (samples.proposals, samples.labels, samples.objects)
        )
        logits = self(pyramid, boxes, images, (labels - 1).clamp(min=0))
        longest = max(pyramid[0].shape[2:]) * self.strides[0]
        side = 2 * self.pool_size
        wanted = crop_masks(masks, boxes, images, objects, sizes, side=side, longest=longest, aligned=self.aligned)
        counts = counts & (masks.cuts[images, objects, 2] > 0)
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean((1, 2))
        return {"mask": self.weight * (loss * counts).sum() / mean_over_ranks(counts.sum())}

    def predict(self, pyramid: Sequence[Tensor], found: Detections) -> Tensor:
        """[B, P, M, M] float32 in 0..1: masks of the detections; zero where not valid."""
        place, _ = _filled(found.valid)
        boxes, labels = found.boxes.flatten(0, 1), found.labels.flatten()
        masks = boxes.new_zeros(boxes.shape[0], 2 * self.pool_size, 2 * self.pool_size)
        # An exported graph does not know how many there are, so it can't take them part by part.
        for some in [place] if torch.compiler.is_exporting() else torch.split(place, TOGETHER):
            logits = self(pyramid, boxes[some], some // found.valid.shape[1], labels[some])
            masks = masks.index_copy(0, some, logits.sigmoid())
        return torch.where(found.valid[..., None, None], masks.view(*found.valid.shape, *masks.shape[1:]), 0.0)


def _filled(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Which regions to look at, of [B, P] that are valid first.

    Where the host knows how many are valid, those alone, and at least one. Elsewhere all: then invalid ones give way to
    one more look at the valid ones of their image, so that norms over the batch see objects alone.

    Returns:
        [R] int64 places in the flattened regions, and [R] bool: whether it is valid, and looked at for the first time.
    """
    if values_are_known(valid.device):
        place = valid.flatten().nonzero()[:, 0]
        place = place if len(place) else place.new_zeros(1)
        return place, valid.flatten()[place]
    images, most = valid.shape
    slot = torch.arange(most, device=valid.device)
    first = torch.arange(images, device=valid.device)[:, None] * most
    return (first + slot % valid.sum(1, keepdim=True).clamp(min=1)).flatten(), valid.flatten()
