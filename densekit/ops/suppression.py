"""From scored candidates to detections: the last step of every detector.

B images, M candidates an image, D detections an image.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from densekit.ops.nms import first_kept, greedy_nms, soft_nms
from densekit.types import Detections

NMS = Literal["greedy", "soft_linear", "soft_gaussian"]


@dataclasses.dataclass(frozen=True)
class Suppression:
    """Drops, or lowers the scores of, candidates that overlap better ones.

    Attributes:
        kind: ``greedy`` drops; ``soft_linear`` and ``soft_gaussian`` lower scores, see ``ops/nms.py``.
        threshold: IoU above which ``greedy`` drops and ``soft_linear`` lowers the worse of two.
        sigma: of ``soft_gaussian``.
        class_agnostic: candidates of different classes suppress one another too.
        score_threshold: lowest score of a detection.
        max_detections: D.
    """

    kind: NMS
    threshold: float
    sigma: float
    class_agnostic: bool
    score_threshold: float
    max_detections: int

    @torch.no_grad()
    def __call__(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Detections:
        """[B, M, 4] boxes, [B, M] scores (0: no candidate), [B, M] labels, best first -> D detections an image."""
        groups = None if self.class_agnostic else labels
        if self.kind == "greedy":
            kept = greedy_nms(boxes, scores > 0, self.threshold, groups=groups)
            place, valid = first_kept(kept, self.max_detections)
            scores = scores.gather(1, place)
        else:
            place, scores = soft_nms(
                boxes,
                scores,
                self.max_detections,
                decay="linear" if self.kind == "soft_linear" else "gaussian",
                threshold=self.threshold,
                sigma=self.sigma,
                groups=groups,
            )
            valid = scores > self.score_threshold
        boxes = boxes.gather(1, place[..., None].expand(-1, -1, 4))
        boxes = torch.where(valid[..., None], boxes, 0.0)
        return Detections(boxes, torch.where(valid, scores, 0.0), torch.where(valid, labels.gather(1, place), 0), valid)
