"""torchvision's detectors beside densekit's: the same weights, images, targets and samples on both sides."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import detection

from densekit.heads.faster_rcnn.roi import ProposalSamples
from densekit.heads.faster_rcnn.rpn import AnchorSamples
from densekit.heads.faster_rcnn.torchvision import from_torchvision
from densekit.model import DenseModel
from densekit.ops.assignment import assign
from densekit.registry import BACKBONES, HEADS
from densekit.types import Batch, BoxTargets, Classes, Detections, InstanceMasks, Targets

SIZES = ((96, 128), (128, 96), (96, 112))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = Classes(("a", "b", "c", "d", "e"), (0, 1, 2, 3, 4))
OPTIONS = {"rpn_before_nms": (150, 100), "rpn_after_nms": (120, 60), "samples": 64}
V2 = {"neck_norm": "batch", "rpn_convs": 2, "box_head": "four_conv_fc", "box_head_norm": "batch"}
LOSSES = {
    "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "class": "loss_classifier",
    "box": "loss_box_reg",
}


def spread_norms(model: nn.Module, generator: torch.Generator) -> None:
    """Random statistics in the batch norms."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(module.weight.shape, generator=generator) * 0.4 + 0.3)


def spread(model: nn.Module) -> None:
    """Random statistics in the norms and large predictions, so that scores do not tie."""
    generator = torch.Generator().manual_seed(1)
    spread_norms(model, generator)
    model.rpn.head.cls_logits.weight.data.mul_(40)
    model.rpn.head.bbox_pred.weight.data.mul_(10)
    if model.roi_heads.mask_predictor is not None:
        model.roi_heads.mask_predictor.mask_fcn_logits.weight.data.mul_(4)
    seen = []
    classify = model.roi_heads.box_predictor.cls_score
    hook = classify.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        model.eval()([torch.rand(3, 96, 128, generator=generator)])
        hook.remove()
        logits = classify(seen[0])
        classify.weight.mul_(2 / logits.std(0)[:, None])
        classify.bias.copy_(-(seen[0] @ classify.weight.T).mean(0))


def pair_of(name: str, head: str, **options) -> tuple[nn.Module, DenseModel]:
    """A detector of torchvision, by the name of its builder, and densekit's with the same weights, to evaluate."""
    torch.manual_seed(0)
    most = 12 if head == "mask_rcnn" else 100  # masks of more take seconds
    theirs = getattr(detection, name)(
        weights=None,
        weights_backbone=None,
        num_classes=len(CLASSES) + 1,
        min_size=96,
        max_size=128,
        rpn_pre_nms_top_n_train=150,
        rpn_post_nms_top_n_train=120,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_test=60,
        box_batch_size_per_image=64,
        box_detections_per_img=most,
    )
    spread(theirs)
    backbone = BACKBONES.build("resnet50", {})
    built = HEADS.build(head, OPTIONS | {"max_detections": most} | options, backbone.levels, num_classes=len(CLASSES))
    ours = DenseModel(backbone, {"boxes": built}, mean=MEAN, std=STD, classes=CLASSES)
    report = ours.load_state_dict(from_torchvision(theirs.state_dict(), head="boxes"), strict=False)
    assert not report.unexpected_keys
    assert not [key for key in report.missing_keys if key not in ("mean", "std")]
    return theirs.eval(), ours.eval()


def noise_batch() -> Batch:
    """Three images: with three objects, with one, and with none."""
    generator = torch.Generator().manual_seed(2)
    images = torch.zeros(3, 3, 128, 128, dtype=torch.uint8)
    for image, (height, width) in zip(images, SIZES):
        image[:, :height, :width] = torch.randint(0, 256, (3, height, width), generator=generator)
    sizes = torch.tensor(SIZES)
    boxes = torch.tensor([
        [[4.0, 6.0, 60.0, 70.0], [50.0, 30.0, 120.0, 90.0], [10.5, 60.25, 30.0, 80.0]],
        [[20.0, 30.0, 52.0, 118.0], [0.0] * 4, [0.0] * 4],
        [[0.0] * 4, [0.0] * 4, [0.0] * 4],
    ])  # fmt: skip
    valid = boxes.sum(-1) > 0
    labels = torch.tensor([[0, 4, 2], [1, 0, 0], [0, 0, 0]])
    masks = ellipses(boxes, valid)
    targets = Targets(boxes=BoxTargets(boxes, labels, torch.zeros_like(valid), valid, masks))
    return Batch(images, sizes, sizes, [1, 2, 3], torch.tensor([5, 6, 7]), targets)


def ellipses(boxes: Tensor, valid: Tensor) -> InstanceMasks:
    """The ellipse that fills each box, cut to its pixels."""
    pixels, starts, cuts = [], torch.zeros(valid.shape, dtype=torch.int64), torch.zeros(*valid.shape, 4).long()
    place = 0
    for where in valid.nonzero().tolist():
        x1, y1, x2, y2 = boxes[tuple(where)].tolist()
        left, top, width, height = int(x1), int(y1), int(x2) - int(x1), int(y2) - int(y1)
        x = (torch.arange(width) + 0.5) / width * 2 - 1
        y = (torch.arange(height) + 0.5) / height * 2 - 1
        pixels.append((y[:, None] ** 2 + x**2 < 1).to(torch.uint8).flatten())
        starts[tuple(where)] = place
        cuts[tuple(where)] = torch.tensor([left, top, width, height])
        place += width * height
    return InstanceMasks(torch.cat(pixels), starts, cuts)


def whole_masks(boxes: BoxTargets, image: int, size: tuple[int, int]) -> Tensor:
    """[n, H, W] uint8 masks of an image's objects."""
    masks = torch.zeros(int(boxes.valid[image].sum()), *size, dtype=torch.uint8)
    cuts = zip(boxes.masks.starts[image].tolist(), boxes.masks.cuts[image].tolist())
    for mask, (start, (x, y, width, height)) in zip(masks, cuts):
        mask[y : y + height, x : x + width] = boxes.masks.pixels[start : start + width * height].view(height, width)
    return masks


def assert_same_detections(
    ours: Detections, image: int, theirs: dict[str, Tensor], *, first: int, spread: float
) -> None:
    """The detections of an image are torchvision's, in its order but for ties; ``first`` is its label for our 0.

    ``spread`` is the least deviation of the scores: with equal ones the test would show nothing.
    """
    count = int(ours.valid[image].sum())
    assert count == len(theirs["boxes"]) > 10
    assert ours.valid[image, :count].all()
    scores = ours.scores[image, :count]
    torch.testing.assert_close(scores, theirs["scores"], atol=1e-4, rtol=0)
    assert scores.std() > spread
    same = (ours.boxes[image, :count, None] - theirs["boxes"]).abs().amax(-1) <= 1e-2
    same &= ours.labels[image, :count, None] == theirs["labels"] - first
    same &= (scores[:, None] - theirs["scores"]).abs() <= 1e-4
    assert same.any(0).all()
    assert same.any(1).all()
    assert same.diagonal().float().mean() > 0.9  # only ties change places


def as_lists(batch: Batch, *, first: int = 1) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The batch as torchvision's users give it; ``first`` is its label for our 0."""
    images = [im[:, :h, :w].float() / 255 for im, (h, w) in zip(batch.images, batch.sizes.tolist())]
    boxes = batch.targets.boxes
    return images, [
        {
            "boxes": boxes.boxes[i][boxes.valid[i]],
            "labels": boxes.labels[i][boxes.valid[i]] + first,
            "masks": whole_masks(boxes, i, image.shape[1:]),
        }
        for i, image in enumerate(images)
    ]


class Recorder:
    """Keeps what goes into torchvision's sampler and what comes out."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, labels):
        self.labels, self.result = list(labels), self.inner(labels)  # a copy: the list is changed later
        return self.result


def recorded_losses(theirs: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], list[Recorder], list[Tensor]]:
    """torchvision's losses, its labels and samples of anchors and proposals, and its proposals."""
    torch.manual_seed(3)
    stages = theirs.rpn, theirs.roi_heads
    samplers = [Recorder(stage.fg_bg_sampler) for stage in stages]
    for stage, sampler in zip(stages, samplers):
        stage.fg_bg_sampler = sampler
    proposals = []
    hook = theirs.roi_heads.register_forward_pre_hook(lambda module, given: proposals.extend(given[1]))
    theirs.train()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    losses = theirs(*as_lists(batch))
    hook.remove()
    for stage, sampler in zip(stages, samplers):
        stage.fg_bg_sampler = sampler.inner
    theirs.eval()
    return losses, samplers, proposals


def padded(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    valid = [torch.ones(len(part), dtype=torch.bool) for part in parts]
    return tuple(nn.utils.rnn.pad_sequence(p, batch_first=True) for p in (parts, valid))


def anchors_of(sampler: Recorder, anchors: Tensor, targets: BoxTargets) -> AnchorSamples:
    """torchvision's anchors; they are assigned as densekit assigns them."""
    assigned = assign(anchors[None], targets, positive_overlap=0.7, negative_overlap=0.3, best_for_each=True)
    labels = torch.stack(sampler.labels)
    assert torch.equal(assigned.positive, labels == 1)
    assert torch.equal(assigned.negative, labels == 0)
    positive, negative = (torch.stack(masks).bool() for masks in sampler.result)
    chosen, valid = padded([(p | n).nonzero()[:, 0] for p, n in zip(positive, negative)])
    boxes = torch.stack([b[i] for b, i in zip(targets.boxes, assigned.object.gather(1, chosen))])
    return AnchorSamples(chosen, positive.gather(1, chosen) & valid, valid, boxes)


def proposals_of(sampler: Recorder, proposals: list[Tensor], batch: Batch) -> ProposalSamples:
    """torchvision's proposals, positives first; they are assigned as densekit assigns them."""
    targets = batch.targets.boxes
    chosen = [torch.cat([p.nonzero()[:, 0], n.nonzero()[:, 0]]) for p, n in zip(*sampler.result)]
    candidates = [torch.cat([p, t["boxes"]]) for p, t in zip(proposals, as_lists(batch)[1])]
    boxes, valid = padded([c[i] for c, i in zip(candidates, chosen)])
    labels, _ = padded([given[i] for given, i in zip(sampler.labels, chosen)])
    assigned = assign(boxes, targets, positive_overlap=0.5, negative_overlap=0.5, best_for_each=False)
    assert torch.equal(assigned.positive & valid, labels > 0)
    matched = torch.stack([b[i] for b, i in zip(targets.boxes, assigned.object)])
    return ProposalSamples(boxes, labels, valid, matched, assigned.object, targets, batch.sizes)
