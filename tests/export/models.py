"""The smallest models that prove an export, and what their files give beside them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from densekit.export.graph import Graph
from densekit.model import DenseModel
from densekit.registry import HEADS
from densekit.types import Classes, Level

CLASSES = Classes(("cat", "dog"), (17, 90))
SIZES = ((3, 37, 90), (1, 64, 33), (2, 1, 5))
"""(images, height, width) that no graph was traced with."""

_PROPOSALS = {"rpn_before_nms": (40, 40), "rpn_after_nms": (30, 30)}
_BOXES = {"channels": 8, "box_head_width": 16, "pool_size": 3, "score_threshold": 0.2, "max_detections": 12}
DETECTORS = {
    "faster_rcnn": {**_BOXES, **_PROPOSALS},
    "mask_rcnn": {**_BOXES, **_PROPOSALS, "neck": "c5", "mask_convs": 1, "mask_channels": 8, "mask_pool_size": 4},
    "cascade_rcnn": {**_BOXES, **_PROPOSALS},
    "cascade_mask_rcnn": {**_BOXES, **_PROPOSALS, "mask_convs": 1, "mask_channels": 8, "mask_pool_size": 4},
    "retinanet": {"channels": 8, "convs": 1, "candidates": 40, "max_detections": 12, "prior": 0.3},
    "fcos": {"channels": 8, "convs": 1, "candidates": 40, "max_detections": 12, "prior": 0.3},
}


class Three(nn.Module):
    """Three convolutions: a map of stride 4, 8 and 16."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Conv2d(3, 8, 7, 4, 3), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        )  # fmt: skip
        self.levels = (Level("c2", 8, 4), Level("c3", 8, 8), Level("c4", 8, 16))

    def forward(self, images: Tensor) -> list[Tensor]:
        """One map a level."""
        c2 = self.first(images).relu()
        c3 = self.second(c2).relu()
        return [c2, c3, self.third(c3).relu()]


def detector(name: str, **options: object) -> DenseModel:
    """A detector with random weights, spread so that scores do not tie and boxes move."""
    torch.manual_seed(0)
    backbone = Three()
    head = HEADS.build(name, {**DETECTORS[name], **options}, backbone.levels, path="head", num_classes=2)
    with torch.no_grad():
        for key, weight in head.named_parameters():
            if any(part in key for part in ("objectness", "scores", "logits", "centerness")) and weight.dim() > 1:
                weight.mul_(60)
            elif "deltas" in key:
                weight.mul_(20)
    return DenseModel(backbone, {"boxes": head}, mean=(0.4,), std=(0.2,), classes=CLASSES).eval()


def images(count: int, height: int, width: int) -> Tensor:
    """Noise."""
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def of_model(graph: Graph, given: Tensor) -> dict[str, Tensor]:
    """What the graph gives without an export."""
    return graph(given)
