"""Non-maximum suppression over a whole batch, with results of constant size.

Greedy suppression has three ways to the same result:

* ``kernel``: torchvision's kernel inside one operator, images and levels side by side on the cores. The right one on a
  CPU: it never compares boxes of different images.
* ``triton``: our kernels for GPUs (``cuda/suppression.py``): who hits whom in bits, then one walk over each run.
* ``tiles``: batched products and tables (``tiled_nms.py``), no synchronisation of the host. For GPUs without Triton.

B images, n boxes an image, D results an image.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.ops import boxes as box_ops
from densekit.ops.cuda import suppression as in_triton
from densekit.ops.tiled_nms import tiled_nms

Method = Literal["auto", "kernel", "tiles", "triton"]
Decay = Literal["linear", "gaussian"]


def _load_kernels() -> None:
    """Register ``torch.ops.torchvision`` from torchvision's compiled library.

    Importing torchvision does so too, but brings torch's whole compiler along: half of the time to a first step.
    """
    package = importlib.util.find_spec("torchvision")
    folders = (package and package.submodule_search_locations) or ()
    for library in (path for folder in folders for path in Path(folder).glob("_C*.so")):
        with contextlib.suppress(OSError):  # torchvision itself knows how to load it, or says why it can't be
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
            return
    import torchvision  # noqa: F401  # on Windows the library is a .pyd, and finds others in folders that it adds


_load_kernels()


@torch.no_grad()
def greedy_nms(
    boxes: Tensor,
    valid: Tensor,
    threshold: float,
    *,
    groups: Tensor | None = None,
    parts: Sequence[int] | None = None,
    method: Method = "auto",
) -> Tensor:
    """Keep the boxes that no better kept box overlaps by more than ``threshold``.

    Args:
        boxes: [B, n, 4], best first.
        valid: [B, n] bool: the others are neither kept nor do they suppress.
        threshold: IoU.
        groups: [B, n] int64, such as classes: boxes of different groups ignore one another.
        parts: lengths of neighbouring runs of boxes that ignore one another, such as levels, each with its best first;
            they add up to n. None: all boxes are one run.
        method: see the module; ``auto`` takes what ``best_method`` says.

    Returns:
        [B, n] bool.
    """
    boxes = torch.where(valid[..., None], boxes.float(), 0.0)  # an empty box overlaps nothing
    lengths = list(parts or boxes.shape[1:2])
    method = best_method(boxes.device) if method == "auto" else method
    if method == "kernel":
        return cast(Tensor, torch.ops.densekit.greedy_nms(boxes, valid, groups, lengths, threshold))
    if method == "triton" and max(lengths) <= in_triton.MOST_BOXES:
        return in_triton.suppress(boxes, valid, groups, lengths, threshold)
    groups = torch.zeros_like(valid, dtype=torch.int64) if groups is None else groups
    return cast(Tensor, torch.ops.densekit.tiled_nms(boxes, valid, groups, lengths, threshold))


def best_method(device: torch.device) -> Literal["kernel", "tiles", "triton"]:
    """The faster way on a device."""
    if device.type == "cpu":
        return "kernel"
    return "triton" if in_triton.works(device) else "tiles"


def _apart(boxes: Tensor, groups: Tensor) -> Tensor:
    """Move the groups so far from one another that they cannot overlap; float64, so that no overlap changes."""
    span = boxes.amax() - boxes.amin() + 1
    return boxes.double() + (groups * span)[..., None]


# Operators of constant shape, so that graphs can hold them. Not by torch.library.custom_op: the first call of what that
# makes imports torch's compiler.
torch.library.define(
    "densekit::greedy_nms", "(Tensor boxes, Tensor valid, Tensor? groups, SymInt[] parts, float threshold) -> Tensor"
)
torch.library.define(
    "densekit::tiled_nms", "(Tensor boxes, Tensor valid, Tensor groups, SymInt[] parts, float threshold) -> Tensor"
)


@torch.library.impl("densekit::greedy_nms", "default")
def _kernel_nms(boxes: Tensor, valid: Tensor, groups: Tensor | None, parts: list[int], threshold: float) -> Tensor:
    """[B, n, 4] boxes, [B, n] bool, [B, n] integers -> [B, n] bool."""
    boxes = boxes if groups is None else _apart(boxes, groups)
    kept = torch.zeros_like(valid)
    order = torch.arange(boxes.shape[1], 0, -1, device=boxes.device, dtype=boxes.dtype)  # stands for the scores

    def keep(run: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        boxes, valid, _ = run
        places = valid.nonzero()[:, 0]
        best: Tensor = torch.ops.torchvision.nms(boxes[places], order[: len(places)], threshold)
        return places[best]

    # The kernel itself runs on one core: four times 2,000 boxes took 73 ms in a row, 25 ms side by side on four cores.
    runs = [run for image in zip(boxes, valid, kept) for run in zip(*(torch.split(values, parts) for values in image))]
    runs.sort(key=lambda run: -len(run[0]))  # else the longest would be waited for at the end
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for (_, _, mask), places in zip(runs, pool.map(keep, runs)):
            mask[places] = True
    return kept


@torch.library.register_fake("densekit::greedy_nms")  # type: ignore[untyped-decorator]
def _(boxes: Tensor, valid: Tensor, groups: Tensor | None, parts: list[int], threshold: float) -> Tensor:
    return torch.empty_like(valid)


@torch.library.impl("densekit::tiled_nms", "default")
def _nms_in_tiles(boxes: Tensor, valid: Tensor, groups: Tensor, parts: list[int], threshold: float) -> Tensor:
    """[B, n, 4] boxes, [B, n] bool, [B, n] integers -> [B, n] bool; the parts lie side by side as rows."""
    longest = max(parts)

    def side_by_side(values: Tensor) -> Tensor:
        runs = [F.pad(run.movedim(1, -1), (0, longest - run.shape[1])) for run in torch.split(values, parts, 1)]
        return torch.cat([run.movedim(-1, 1) for run in runs])

    kept = tiled_nms(side_by_side(boxes), side_by_side(valid), side_by_side(groups), threshold)
    return torch.cat([run[:, :length] for run, length in zip(torch.split(kept, len(boxes)), parts)], 1)


@torch.library.register_fake("densekit::tiled_nms")  # type: ignore[untyped-decorator]
def _(boxes: Tensor, valid: Tensor, groups: Tensor, parts: list[int], threshold: float) -> Tensor:
    return torch.empty_like(valid)


@torch.no_grad()
def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    count: int,
    *,
    decay: Decay,
    threshold: float = 0.5,
    sigma: float = 0.5,
    groups: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Lower the scores of boxes that overlap a better one, instead of dropping them (Bodla et al. 2017, eq. 2 and 3).

    Args:
        boxes: [B, n, 4].
        scores: [B, n] > 0; boxes with a score of 0 are never taken before those with one.
        count: D, at most n.
        decay: ``linear``: times 1 - IoU where the IoU is above ``threshold``; ``gaussian``: times exp(-IoU^2 / sigma).
        threshold: of the linear decay.
        sigma: of the Gaussian decay.
        groups: [B, n] int64: boxes of different groups ignore one another.

    Returns:
        [B, D] int64 indices and [B, D] decayed scores, best first.
    """
    left = scores.float().clone()
    places, values = [], []
    for _ in range(min(count, boxes.shape[1])):
        value, place = left.max(dim=1, keepdim=True)  # [B, 1]
        overlap = box_ops.iou(boxes.gather(1, place[..., None].expand(-1, -1, 4)), boxes)[:, 0].nan_to_num(0.0)
        if groups is not None:
            overlap = torch.where(groups == groups.gather(1, place), overlap, 0.0)
        left = left * (
            torch.where(overlap > threshold, 1 - overlap, 1.0)
            if decay == "linear"
            else torch.exp(-(overlap**2) / sigma)
        )
        left = left.scatter(1, place, -1.0)
        places.append(place)
        values.append(value.clamp(min=0))
    return torch.cat(places, dim=1), torch.cat(values, dim=1)


def best_of(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best ``count`` scores of each row, best first, or all where there are fewer.

    Args:
        scores: [B, n].
        count: D.

    Returns:
        [B, D] scores and [B, D] int64 places. In an exported graph D is always ``count``, so that no later shape
        depends on n; what is missing has the score minus infinity and some place.
    """
    if not torch.compiler.is_exporting():
        values, places = scores.topk(min(count, scores.shape[1]), dim=1)
        return values, places
    values, places = F.pad(scores, (0, count), value=-torch.inf).topk(count, dim=1)
    return values, torch.where(values > -torch.inf, places, 0)


def first_kept(kept: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Places of the first ``count`` true entries of each row.

    Args:
        kept: [B, n] bool.
        count: D.

    Returns:
        [B, D] int64 places (0 where there are fewer) and [B, D] bool.
    """
    slot = kept.cumsum(1) - 1
    slot = torch.where(kept & (slot < count), slot, count)  # what is not wanted goes to one slot more
    places = torch.arange(kept.shape[1], device=kept.device).expand_as(slot)
    first = torch.zeros(kept.shape[0], count + 1, dtype=torch.int64, device=kept.device).scatter_(1, slot, places)
    filled = torch.arange(count, device=kept.device)[None] < kept.sum(1, keepdim=True)
    return first[:, :count], filled
