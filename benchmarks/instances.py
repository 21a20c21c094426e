"""Mask R-CNN on cell nuclei, trained for the same minutes by densekit and by torchvision: which finds more?

    python benchmarks/instances.py --minutes 10 --weights resnet18.pth
    python benchmarks/instances.py --only densekit torchvision
    python benchmarks/instances.py --short                      # a few steps of each, to see that it runs

densekit runs ``configs/instance/mask_rcnn_r18_nuclei.yaml``. The peer is torchvision's ``MaskRCNN`` on torchvision's
ResNet-18, in a loop as its users write it, from the same backbone weights, with the same anchors, optimiser, schedule
and averaged weights: once with the head that torchvision gives it (256 channels, 512 samples, 2,000 proposals), once
with that of densekit's config, which is narrow (``torchvision_narrow``). All learn from the same batches of the same
loader. The pace of each is measured first, and its schedule has the steps that fit into the minutes. The last averaged
weights are measured on the test images by the same metric. Data are looked for in $DENSEKIT_DATA/nuclei, or
data/nuclei.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from common import Training
from detector import whole_masks
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from densekit import config as configs
from densekit.config import Config
from densekit.console import print_table, run, say
from densekit.engine.optim import make_schedule, set_rate
from densekit.infer.evaluate import Measure
from densekit.model import DenseModel
from densekit.types import Batch, Detections

CONFIG = "mask_rcnn_r18_nuclei"
NUMBERS = ("AP", "AP50", "mask_AP", "mask_AP50")
PROBED = 6
"""Steps that tell the pace; the first two warm up."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="of training, for each side (default: 10)")
    parser.add_argument("--weights", help="of the backbone: a file, or a name (default: the config's own)")
    parser.add_argument("--only", nargs="+", choices=SIDES, default=list(SIDES), help="these sides alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="three steps of each, to see that it runs")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args(argv)
    given = [f"seed={args.seed}", "train.ema=0.98"]  # a few hundred steps: the config's average would remember too much
    if args.weights:
        given.append(f"model.backbone.weights={args.weights}")
    if args.short:
        given += ["model.backbone.weights=null", "train.batch_size=2", "data.workers=0"]
    rows = []
    for name in args.only:
        side = SIDES[name]
        probe = side(configs.load(CONFIG, [*given, f"train.steps={PROBED}"]))
        steps = 3 if args.short else int(args.minutes * 60 / pace(probe))
        trained = side(configs.load(CONFIG, [*given, f"train.steps={steps}"]))
        began = time.perf_counter()
        for _ in range(steps):
            trained.step()
        minutes = (time.perf_counter() - began) / 60
        learner = trained.peer if isinstance(trained, Theirs) else trained.model
        millions = sum(p.numel() for p in learner.parameters()) / 1e6
        numbers = trained.measured()
        rows.append({"side": name, "steps": steps, "minutes": minutes, "millions": millions}
                    | {number: float(numbers[number]) for number in NUMBERS})  # fmt: skip
        say(str(rows[-1]))
        if args.json:
            args.json.write_text(json.dumps(rows, indent=2))
    cells = [[r["side"], r["steps"], *(f"{r[k]:.1f}" for k in ("minutes", "millions")),
              *(f"{r[k]:.3f}" for k in NUMBERS)] for r in rows]  # fmt: skip
    print_table("nuclei, test images", ["Mask R-CNN of", "steps", "minutes", "M parameters", *NUMBERS], cells)
    return 0


def pace(side: Training) -> float:
    """Seconds a step."""
    times = []
    for _ in range(PROBED):
        began = time.perf_counter()
        side.step()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


class Theirs(Training):
    """Torchvision's model in a plain loop: AdamW, clipped gradients, averaged weights; mixed precision on a GPU."""

    narrow = False

    def prepare(self) -> None:
        """Make model, optimiser and average."""
        torch.set_deterministic_debug_mode("default")  # densekit's step had asked for the same bits on every run
        train = self.config.train
        self.peer = torchvision_mask_rcnn(self.config, self.model.backbone, narrow=self.narrow).to(self.world.device)
        rate, decay = train.optimizer.lr, train.optimizer.weight_decay
        self.optimizer = torch.optim.AdamW(self.peer.parameters(), lr=rate, weight_decay=decay)
        for group in self.optimizer.param_groups:
            group["base_lr"] = rate
        schedule = train.schedule
        self.schedule = make_schedule(schedule.name, self.plan.steps, warmup=schedule.warmup, end=schedule.end)
        self.average = copy.deepcopy(self.peer)

    def update(self, batches: Sequence[Batch]) -> None:
        """One update."""
        (batch,) = batches
        self.peer.train()
        set_rate(self.optimizer, self.schedule(self.done))
        with self.mixed():
            losses = self.peer(images(batch), [targets(batch, i) for i in range(len(batch.ids))])
            total = sum(losses.values())
        self.optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.peer.parameters(), self.config.train.clip or float("inf"))
        self.optimizer.step()
        weight = 1 - min(self.config.train.ema or 0.0, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            for mine, own in zip(self.average.state_dict().values(), self.peer.state_dict().values()):
                mine.lerp_(own, weight) if own.is_floating_point() else mine.copy_(own)

    def mixed(self) -> contextlib.AbstractContextManager[object]:
        """The peer's automatic mixed precision, on a GPU alone."""
        gpu = self.world.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if gpu else contextlib.nullcontext()

    def counted(self, measures: Sequence[Measure]) -> dict[str, Any]:
        """The numbers of the averaged weights."""
        (measure,) = measures
        ((_, metric),) = measure.metrics.items()
        self.average.eval()
        with torch.inference_mode(), self.mixed():
            for batch in measure.batches:
                batch = batch.to(self.world.device)
                metric.update(detections(self.average(images(batch)), batch, self.model), batch)
        return metric.compute()


class Narrow(Theirs):
    """Torchvision's model with the head of densekit's config."""

    narrow = True


SIDES: dict[str, type[Training]] = {"densekit": Training, "torchvision": Theirs, "torchvision_narrow": Narrow}


def torchvision_mask_rcnn(config: Config, ours: nn.Module, *, narrow: bool) -> nn.Module:
    """Torchvision's Mask R-CNN on its ResNet-18 up to the third stage.

    Args:
        config: of the run.
        ours: densekit's backbone, whose weights it starts from.
        narrow: have the config's head instead of torchvision's own.
    """
    torch.manual_seed(config.seed)
    options = next(iter(config.model.heads.values())).options
    body = torchvision.models.resnet18(weights=None)
    learned = ours.state_dict()  # under torchvision's names
    body.load_state_dict({key: learned.get(key, value) for key, value in body.state_dict().items()})
    channels, classes = options["channels"] if narrow else 256, 2
    backbone = BackboneWithFPN(body, {"layer1": "0", "layer2": "1", "layer3": "2"}, [64, 128, 256], channels)
    before, after = options["rpn_before_nms"], options["rpn_after_nms"]
    head = {
        "box_head": TwoMLPHead(channels * 7 * 7, options["box_head_width"]),
        "box_predictor": FastRCNNPredictor(options["box_head_width"], classes),
        "mask_head": MaskRCNNHeads(channels, (options["mask_channels"],) * options["mask_convs"], 1),
        "mask_predictor": MaskRCNNPredictor(options["mask_channels"], options["mask_channels"], classes),
        "box_batch_size_per_image": options["samples"],
        "rpn_pre_nms_top_n_train": before[0],
        "rpn_pre_nms_top_n_test": before[1],
        "rpn_post_nms_top_n_train": after[0],
        "rpn_post_nms_top_n_test": after[1],
    }
    sizes = tuple(map(tuple, options["anchor_sizes"]))
    model = detection.MaskRCNN(
        backbone,
        None if narrow else classes,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 7, 2),
        mask_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 14, 2),
        box_detections_per_img=options["max_detections"],
        **(head if narrow else {}),
    )
    # The loader has resized already, and masks stay on their 28 x 28 cells: the metric pastes those of both sides.
    model.transform.resize = lambda image, target: (image, target)
    model.transform.postprocess = lambda found, *_: found
    return model


def images(batch: Batch) -> list[Tensor]:
    """Each image without its padding, as torchvision takes it."""
    return [image[:, :h, :w].float() / 255 for image, (h, w) in zip(batch.images, batch.sizes.tolist())]


def targets(batch: Batch, image: int) -> dict[str, Tensor]:
    """The objects of an image as torchvision takes them: crowd left out, labels from 1, whole masks."""
    assert batch.targets is not None
    boxes = batch.targets.boxes
    assert boxes is not None
    own = boxes.boxes[image]
    kept = boxes.valid[image] & ~boxes.crowd[image] & (own[:, 2:] > own[:, :2]).all(-1)
    height, width = batch.sizes[image].tolist()
    masks = whole_masks(batch, image)[:, :height, :width]
    return {"boxes": own[kept], "labels": boxes.labels[image][kept] + 1, "masks": masks[kept]}


def detections(found: Sequence[dict[str, Tensor]], batch: Batch, ours: DenseModel) -> Detections:
    """Torchvision's results as densekit's, in the pixels of the original images."""
    most = max(1, *(len(one["scores"]) for one in found))
    device, count = batch.images.device, len(found)
    padded = Detections(
        boxes=torch.zeros(count, most, 4, device=device),
        scores=torch.zeros(count, most, device=device),
        labels=torch.zeros(count, most, dtype=torch.int64, device=device),
        valid=torch.zeros(count, most, dtype=torch.bool, device=device),
        masks=torch.zeros(count, most, 28, 28, device=device),
    )
    assert padded.masks is not None
    for row, one in enumerate(found):
        n = len(one["scores"])
        padded.boxes[row, :n], padded.scores[row, :n], padded.labels[row, :n] = (
            one["boxes"],
            one["scores"],
            one["labels"] - 1,
        )
        padded.valid[row, :n], padded.masks[row, :n] = True, one["masks"][:, 0]
    done = ours.finish(padded, batch)
    assert isinstance(done, Detections)
    return done


if __name__ == "__main__":
    run(main)
