"""The segmentation head: decoder, classifier and auxiliary classifier; what its losses and predictions are.

Letters: B images, C logits, K classes, D decoder channels, H, W size of the padded input, s stride of the decoder.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.heads.segmentation.pyramid import level_named
from densekit.layers import make_norm
from densekit.ops.enlarging import nearest_in_own_dtype
from densekit.ops.segmentation_losses import Losses, Mode, check_losses, default_losses, segmentation_losses
from densekit.registry import HEADS
from densekit.types import Batch, DensekitError, Level, Segmentation, Task
from densekit.weight_gradients import use_own_convolutions

Norm = Literal["batch", "sync", "group"]


@dataclasses.dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder and how it is fed.

    Attributes:
        module: takes the list that ``features`` makes, gives [B, D, H / s, W / s].
        features: from the backbone's maps to that list.
        channels: D. stride: s. kernel: size of the classifier's convolution.
        pools: it normalises a map of one pixel per image, which batch norm can't learn from a single image.
    """

    module: nn.Module
    features: Callable[[Sequence[Tensor]], list[Tensor]]
    channels: int
    stride: int = 1
    kernel: int = 3
    pools: bool = False


class SegmentationHead(nn.Module):
    """Per-pixel classes from a backbone's maps.

    The state dict has smp's keys under ``decoder``, and ``classifier.weight`` and ``classifier.bias`` for smp's
    ``segmentation_head.0``. The logits are smp's at every size that is a multiple of the coarsest stride; other sizes
    are padded by the model and cut here.

    Args:
        decoder: from maps to features.
        levels: of the backbone.
        num_classes: K, the classes of the data set's masks, background included.
        mode: ``multiclass``: one class a pixel (softmax); ``binary``: the second of two classes against the first, one
            logit; ``multilabel``: any number of classes a pixel (a sigmoid each).
        losses: weights and options; None is cross-entropy (or BCE) plus Dice.
        auxiliary_weight: weight of the same losses on a small classifier over one level, which helps deep backbones
            (Zhao et al. 2017, section 3.3: 0.4); 0 leaves it out. It learns, and predicts nothing.
        auxiliary_level: the level of that classifier; None takes the second coarsest.
        norm: of decoder and auxiliary classifier; ``group`` does not depend on the batch (Wu & He 2018).

    Raises:
        DensekitError: binary without two classes, or losses that don't go with the mode.
    """

    task: Task = "segmentation"
    class_weights: Tensor | None

    def __init__(
        self,
        decoder: Decoder,
        levels: Sequence[Level],
        *,
        num_classes: int,
        mode: Mode = "multiclass",
        losses: Losses | None = None,
        auxiliary_weight: Annotated[float, pydantic.Field(ge=0)] = 0.0,
        auxiliary_level: str | None = None,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.mode, self.stride, self.features = mode, decoder.stride, decoder.features
        self.base_stride = levels[0].stride
        self.loss_options = losses or default_losses(mode)
        self.auxiliary_weight = auxiliary_weight
        weights = self.loss_options.class_weights
        self.register_buffer("class_weights", None if weights is None else torch.tensor(weights), persistent=False)
        _check_classes(mode, num_classes)
        check_losses(self.loss_options, mode, num_classes)
        logits = 1 if mode == "binary" else num_classes
        self.decoder = decoder.module
        self.classifier = nn.Conv2d(decoder.channels, logits, decoder.kernel, padding=decoder.kernel // 2)
        self.auxiliary: nn.Module | None = None
        if auxiliary_weight > 0:
            self.auxiliary_index = _auxiliary_index(levels, auxiliary_level)
            self.auxiliary_stride = levels[self.auxiliary_index].stride
            self.auxiliary = auxiliary_classifier(levels[self.auxiliary_index].channels, logits)
        elif auxiliary_level is not None:
            raise DensekitError("auxiliary_level: has no effect with auxiliary_weight 0; set the weight, such as 0.4")
        _initialise(self)
        convert_norm(self, norm)
        use_own_convolutions(self)
        self.pools = decoder.pools and norm == "batch"

    def logits(self, maps: Sequence[Tensor]) -> Tensor:
        """Backbone maps -> [B, C, H, W] float32."""
        with nearest_in_own_dtype(maps[0].device):
            decoded = self.decoder(self.features(maps))
        height, width = (side * self.base_stride for side in maps[0].shape[-2:])
        return _upsampled(self.classifier(decoded), self.stride)[..., :height, :width]

    def losses(self, maps: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """The chosen losses, and ``auxiliary``: theirs on the auxiliary classifier, summed.

        Raises:
            DensekitError: the batch has no masks, masks of another shape than the mode wants, or is too small.
        """
        masks = self._masks(batch)
        if self.pools and self.training and masks.shape[0] == 1:
            raise DensekitError(
                "train.batch_size: this head can't train on one image at a time, its global pooling leaves one value "
                "per channel to batch norm; use 2 or more, or the head's norm: group"
            )
        return self._all_losses(self.logits(maps), maps, masks)

    def predict(self, maps: Sequence[Tensor], batch: Batch) -> Segmentation:
        """Probabilities and 0-based classes of each image, cut to its size."""
        return self._segmentation(self.logits(maps), batch)

    def probabilities(self, maps: Sequence[Tensor]) -> Tensor:
        """Those of ``predict`` for the padded images: [B, K, H, W] float32, two rows for a binary head."""
        return self._probabilities(self.logits(maps))

    def losses_and_predictions(self, maps: Sequence[Tensor], batch: Batch) -> tuple[dict[str, Tensor], Segmentation]:
        """What ``losses`` and ``predict`` give, from one pass of the decoder."""
        masks, logits = self._masks(batch), self.logits(maps)
        return self._all_losses(logits, maps, masks), self._segmentation(logits, batch)

    def _all_losses(self, logits: Tensor, maps: Sequence[Tensor], masks: Tensor) -> dict[str, Tensor]:
        losses = self._losses(logits, masks)
        if self.auxiliary is not None:
            small = self.auxiliary(maps[self.auxiliary_index])
            extra = self._losses(_upsampled(small, self.auxiliary_stride), masks)
            losses["auxiliary"] = self.auxiliary_weight * torch.stack(list(extra.values())).sum()
        return losses

    def _segmentation(self, logits: Tensor, batch: Batch) -> Segmentation:
        chances = self._probabilities(logits)
        # max, not argmax: the same labels, and 50 times faster on the CPU.
        classes = (chances >= 0.5).to(torch.uint8) if self.mode == "multilabel" else chances.max(1).indices
        sizes = batch.numbers(batch.sizes)
        probabilities = [p[:, :height, :width] for p, (height, width) in zip(chances, sizes)]
        return Segmentation(probabilities, [m[..., :height, :width] for m, (height, width) in zip(classes, sizes)])

    def _losses(self, logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
        # The model may have padded further than the masks go.
        logits = logits[..., : masks.shape[-2], : masks.shape[-1]]
        return segmentation_losses(
            logits, masks, mode=self.mode, losses=self.loss_options, class_weights=self.class_weights
        )

    def _masks(self, batch: Batch) -> Tensor:
        masks = batch.targets.masks if batch.targets is not None else None
        if masks is None:
            raise DensekitError("the data set has no masks; a segmentation head learns from masks or coco_masks")
        if masks.dim() == 4 and self.mode != "multilabel":
            raise DensekitError(f"masks with one layer per class need the head's mode multilabel, not {self.mode!r}")
        return masks

    def _probabilities(self, logits: Tensor) -> Tensor:
        if self.mode == "multiclass":
            return logits.softmax(1)
        chance = logits.sigmoid()
        return torch.cat([1 - chance, chance], 1) if self.mode == "binary" else chance


def register_decoder(builder: Callable[..., Decoder]) -> Callable[..., SegmentationHead]:
    """Register a head under the name of the function that builds its decoder (decorator).

    The head's options are the decoder's own and those of ``SegmentationHead``; they stand in its signature, where the
    registry checks what a config gives.

    Args:
        builder: ``(levels, *, own options) -> Decoder``.

    Returns:
        ``(levels, *, num_classes, own and common options) -> SegmentationHead``.
    """
    own = inspect.signature(builder, eval_str=True)
    common = inspect.signature(SegmentationHead, eval_str=True).parameters.values()
    shared = [p for p in common if p.kind is inspect.Parameter.KEYWORD_ONLY]
    names = {p.name for p in shared}

    @functools.wraps(builder)
    def build(levels: Sequence[Level], **options: Any) -> SegmentationHead:
        decoder = builder(levels, **{n: v for n, v in options.items() if n not in names})
        return SegmentationHead(decoder, levels, **{n: v for n, v in options.items() if n in names})

    signature = own.replace(parameters=[*own.parameters.values(), *shared], return_annotation=SegmentationHead)
    build.__signature__ = signature  # type: ignore[attr-defined]  # functions may carry one
    return HEADS.register(build)


def auxiliary_classifier(channels: int, logits: int) -> nn.Module:
    """A 3x3 convolution to a quarter of the channels, dropout, 1x1: the small classifier of PSPNet's auxiliary loss."""
    inner = max(channels // 4, 1)
    return nn.Sequential(
        nn.Conv2d(channels, inner, 3, padding=1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.1),
        nn.Conv2d(inner, logits, 1),
    )


def convert_norm(module: nn.Module, norm: Norm) -> None:
    """Replace every batch norm of smp's decoders, which know no group norm, in place.

    Under ``group`` the single channels inside PAN's attention go without: at one pixel their norm would always be zero.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d) and norm != "batch":
            single = norm == "group" and child.num_features == 1
            setattr(module, name, nn.Identity() if single else make_norm(norm, child.num_features))
        else:
            convert_norm(child, norm)


def _upsampled(logits: Tensor, stride: int) -> Tensor:
    """In float32: bf16 steps in the logits would show as steps at the objects' edges."""
    logits = logits.float()
    if stride == 1:
        return logits
    return F.interpolate(logits, scale_factor=stride, mode="bilinear", align_corners=True)


def _check_classes(mode: Mode, num_classes: int) -> None:
    if mode == "binary" and num_classes != 2:
        raise DensekitError(
            f"mode: 'binary' tells the second of two classes from the first, but the data set has {num_classes}; "
            f"use 'multiclass' or 'multilabel'"
        )
    if mode == "multiclass" and num_classes < 2:
        raise DensekitError(
            f"mode: 'multiclass' needs two classes or more, the data set has {num_classes}; "
            f"name the background as a class too, or use 'multilabel'"
        )


def _auxiliary_index(levels: Sequence[Level], name: str | None) -> int:
    return max(len(levels) - 2, 0) if name is None else level_named(levels, name, "auxiliary_level")


def _initialise(head: SegmentationHead) -> None:
    """As smp: He et al. 2015 for the decoder's convolutions, Glorot & Bengio 2010 for the classifier, zero biases."""
    for name, module in head.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            if name == "classifier":
                nn.init.xavier_uniform_(module.weight)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
