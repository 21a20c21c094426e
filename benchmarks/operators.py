"""How many operators a training step queues on a GPU, part by part, and the memory it needs at once; without a GPU.

    python benchmarks/operators.py [--short] [--head faster_rcnn|mask_rcnn|cascade_rcnn|retinanet|fcos] [--json FILE]

The step of a ResNet-50 under each head (--short: under Faster R-CNN alone) runs on torch's device without values, in
float32, in the ways that a GPU with Triton takes. Every operator counts once, but for views and those that only set
memory aside; mixed precision adds casts, and suppression is two kernels in one operator. The update is left out, which
a GPU does in a few fused kernels. The second step is counted: the first one computes what later ones keep. Memory is
that of all tensors which live at once, but for the weights and what the first step kept; a GPU's own kernels may take
more for themselves.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import json
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from detector import CLASSES
from mask_rcnn import with_masks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from densekit.console import print_table, run
from densekit.engine.step import head_losses, total_loss
from densekit.heads.anchors import Anchors
from densekit.heads.faster_rcnn.roi import RegionHead
from densekit.heads.faster_rcnn.rpn import RegionProposalNetwork
from densekit.model import DenseModel
from densekit.ops import nms, roi_align
from densekit.ops.cuda import random_keys
from densekit.registry import BACKBONES, HEADS
from densekit.types import Batch

META = torch.device("meta")
IMAGES, SIZE, OBJECTS = 8, (800, 1344), 10
VIEWS = ["view", "as_strided", "permute", "transpose", "t", "expand", "select", "slice", "unsqueeze", "squeeze"]
MORE_VIEWS = ["detach", "alias", "_unsafe_view", "unbind", "split", "split_with_sizes", "unfold", "lift_fresh"]
SET_ASIDE = ["empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"]
NOT_QUEUED = frozenset([*VIEWS, *MORE_VIEWS, *SET_ASIDE])
PARTS = [
    *((RegionProposalNetwork, name, f"rpn {name}") for name in ("sample", "losses", "proposals")),
    *((RegionHead, name, f"regions {name}") for name in ("sample", "losses")),
    (Anchors, "forward", "anchors"),
    (torch.Tensor, "backward", "backward"),
]
HEAD_NAMES = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet", "fcos")


class Counting(TorchDispatchMode):
    """Counts the operators of each part, and the bytes of the tensors that live."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.counts = ["elsewhere"], collections.Counter[str]()
        self.living: dict[int, int] = {}
        self.bytes = self.most_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ not in NOT_QUEUED:
            self.counts[self.parts[-1]] += 1
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device == META:
                self._lives(tensor.untyped_storage(), given)
        return result

    def _lives(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        name = storage._cdata
        if name in self.living or name in given:  # a view, or what was there before
            return
        self.living[name] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.most_bytes = max(self.most_bytes, self.bytes)
        weakref.finalize(storage, self._dies, name)

    def _dies(self, name: int) -> None:
        self.bytes -= self.living.pop(name)

    @contextlib.contextmanager
    def of_parts(self, model: DenseModel) -> Iterator[None]:
        """Tell the parts apart."""
        with contextlib.ExitStack() as stack:
            for owner, name, part in [*PARTS, (type(model.backbone), "forward", "backbone")]:
                plain = getattr(owner, name)
                stack.enter_context(mock.patch.object(owner, name, self._within(part, plain)))
            yield

    def _within(self, part: str, plain: Any) -> Any:
        @functools.wraps(plain)
        def within(*args: Any, **kwargs: Any) -> Any:
            self.parts.append(part)
            try:
                return plain(*args, **kwargs)
            finally:
                self.parts.pop()

        return within


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="Faster R-CNN alone")
    parser.add_argument("--head", nargs="+", choices=HEAD_NAMES, help="these heads alone")
    parser.add_argument("--json", type=Path, help="also write the counts here")
    args = parser.parse_args(argv)
    heads = args.head or (HEAD_NAMES[:1] if args.short else HEAD_NAMES)
    found = {head: count_a_step(head) for head in heads}
    counts = {head: dict(counting.counts) for head, counting in found.items()}
    parts = list(dict.fromkeys(part for count in counts.values() for part in count))
    rows = [[part, *(str(count.get(part, "-")) for count in counts.values())] for part in parts]
    rows.append(["a step", *(str(sum(count.values())) for count in counts.values())])
    rows.append(["memory at once, GiB", *(f"{counting.most_bytes / 2**30:.2f}" for counting in found.values())])
    print_table("operators of a training step on a GPU, without the update", ["part", *heads], rows)
    if args.json:
        most = {head: counting.most_bytes for head, counting in found.items()}
        args.json.write_text(json.dumps({"operators": counts, "bytes at once": most}, indent=2))
    return 0


def count_a_step(head: str, backbone: str = "resnet50") -> Counting:
    """What the forward and backward pass of a step queue, by part, and need."""
    with (
        mock.patch.object(torch, "autocast", return_value=contextlib.nullcontext()),  # that device has none
        mock.patch.object(nms, "best_method", return_value="triton"),
        mock.patch.object(roi_align, "best_method", return_value="triton"),
        mock.patch.object(roi_align, "_check"),
        mock.patch.object(random_keys, "works", return_value=True),
    ):
        trunk = BACKBONES.build(backbone, {"norm": "frozen", "frozen_stages": 2})
        heads = {"boxes": HEADS.build(head, {}, trunk.levels, num_classes=len(CLASSES))}
        model = DenseModel(trunk, heads, mean=(0.5,) * 3, std=(0.25,) * 3, classes=CLASSES).to(META)
        batch = with_masks(IMAGES, SIZE, OBJECTS).to(META, non_blocking=False)
        learn(model, batch)
        with Counting() as counting, counting.of_parts(model):
            learn(model, batch)
    return counting


def learn(model: DenseModel, batch: Batch) -> None:
    """Forward and backward, gradients made anew as in a step."""
    model.train()
    model.zero_grad(set_to_none=True)
    total_loss(head_losses(model, model(batch), dict.fromkeys(model.heads, 1)), {}).backward()


if __name__ == "__main__":
    run(main)
