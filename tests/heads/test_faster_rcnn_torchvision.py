"""densekit's detector against torchvision's, weights carried across: detections, proposals, samples and losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection

from densekit.heads.faster_rcnn import faster_rcnn
from densekit.heads.faster_rcnn.roi import ProposalSamples
from densekit.heads.faster_rcnn.rpn import AnchorSamples
from densekit.heads.faster_rcnn.torchvision import from_torchvision, is_torchvision_detector, to_torchvision
from densekit.model import DenseModel
from densekit.ops.assignment import assign
from densekit.registry import BACKBONES
from densekit.types import Batch, BoxTargets, Classes, DensekitError, Targets

SIZES = ((96, 128), (128, 96), (96, 112))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = Classes(("a", "b", "c", "d", "e"), (0, 1, 2, 3, 4))
V2 = {"neck_norm": "batch", "rpn_convs": 2, "box_head": "four_conv_fc", "box_head_norm": "batch"}


def spread(model: nn.Module) -> None:
    """Random statistics in the norms and large predictions, so that scores do not tie."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(module.weight.shape, generator=generator) * 0.4 + 0.3)
    model.rpn.head.cls_logits.weight.data.mul_(40)
    model.rpn.head.bbox_pred.weight.data.mul_(10)
    seen = []
    classify = model.roi_heads.box_predictor.cls_score
    hook = classify.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        model.eval()([torch.rand(3, 96, 128, generator=generator)])
        hook.remove()
        logits = classify(seen[0])
        classify.weight.mul_(2 / logits.std(0)[:, None])
        classify.bias.copy_(-(seen[0] @ classify.weight.T).mean(0))


@pytest.fixture(scope="module", params=["v1", "v2"])
def pair(request):
    """torchvision's detector and densekit's with the same weights."""
    torch.manual_seed(0)
    build = {"v1": detection.fasterrcnn_resnet50_fpn, "v2": detection.fasterrcnn_resnet50_fpn_v2}[request.param]
    theirs = build(
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
    )
    spread(theirs)
    backbone = BACKBONES.build("resnet50", {})
    head = faster_rcnn(
        backbone.levels,
        num_classes=len(CLASSES),
        rpn_before_nms=(150, 100),
        rpn_after_nms=(120, 60),
        samples=64,
        **(V2 if request.param == "v2" else {}),
    )
    ours = DenseModel(backbone, {"boxes": head}, mean=MEAN, std=STD, classes=CLASSES)
    report = ours.load_state_dict(from_torchvision(theirs.state_dict(), head="boxes"), strict=False)
    assert not report.unexpected_keys
    assert not [key for key in report.missing_keys if key not in ("mean", "std")]
    return theirs.eval(), ours.eval()


@pytest.fixture(scope="module")
def batch() -> Batch:
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
    targets = Targets(boxes=BoxTargets(boxes, labels, torch.zeros_like(valid), valid))
    return Batch(images, sizes, sizes, [1, 2, 3], torch.tensor([5, 6, 7]), targets)


def as_lists(batch: Batch) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The batch as torchvision's users give it."""
    images = [im[:, :h, :w].float() / 255 for im, (h, w) in zip(batch.images, batch.sizes.tolist())]
    boxes = batch.targets.boxes
    return images, [
        {"boxes": boxes.boxes[i][boxes.valid[i]], "labels": boxes.labels[i][boxes.valid[i]] + 1}
        for i in range(len(images))
    ]


@torch.no_grad()
def test_detections_are_torchvisions(pair, batch):
    theirs, ours = pair
    found = ours.predict(batch, padded=True)
    for i, expected in enumerate(theirs(as_lists(batch)[0])):
        count = int(found.valid[i].sum())
        assert count == len(expected["boxes"]) > 10
        assert found.valid[i, :count].all()
        scores = found.scores[i, :count]
        torch.testing.assert_close(scores, expected["scores"], atol=1e-4, rtol=0)  # the same order up to ties
        assert scores.std() > 0.1  # few ties
        same = (found.boxes[i, :count, None] - expected["boxes"]).abs().amax(-1) <= 1e-2
        same &= found.labels[i, :count, None] == expected["labels"] - 1
        same &= (scores[:, None] - expected["scores"]).abs() <= 1e-4
        assert same.any(0).all()
        assert same.any(1).all()
        assert same.diagonal().float().mean() > 0.9  # only ties change places


class Recorder:
    """Keeps what goes into torchvision's sampler and what comes out."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, labels):
        self.labels, self.result = list(labels), self.inner(labels)  # a copy: the list is changed later
        return self.result


@pytest.fixture
def recorded(pair, batch):
    """torchvision's losses, its labels and samples of anchors and proposals, and its proposals."""
    theirs, _ = pair
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


def test_losses_of_the_same_samples_are_torchvisions(pair, batch, recorded):
    _, ours = pair
    expected, (anchor_sampler, proposal_sampler), proposals = recorded
    head, targets = ours.head(), batch.targets.boxes
    maps = ours.features(batch)
    pyramid, regions = head.regions(maps)

    assigned = assign(regions.anchors[None], targets, positive_overlap=0.7, negative_overlap=0.3, best_for_each=True)
    labels = torch.stack(anchor_sampler.labels)
    assert torch.equal(assigned.positive, labels == 1)
    assert torch.equal(assigned.negative, labels == 0)
    positive, negative = (torch.stack(masks).bool() for masks in anchor_sampler.result)
    chosen, valid = padded([(p | n).nonzero()[:, 0] for p, n in zip(positive, negative)])
    boxes = torch.stack([b[i] for b, i in zip(targets.boxes, assigned.object.gather(1, chosen))])
    anchors = AnchorSamples(chosen, positive.gather(1, chosen) & valid, valid, boxes)

    mine = head.proposals(regions, batch.sizes, training=True)
    for i, boxes in enumerate(proposals):
        torch.testing.assert_close(mine.boxes[i][mine.valid[i]], boxes, atol=1e-3, rtol=0)
    chosen = [(p | n).nonzero()[:, 0] for p, n in zip(*proposal_sampler.result)]
    candidates = [torch.cat([p, t["boxes"]]) for p, t in zip(proposals, as_lists(batch)[1])]
    boxes, valid = padded([c[i] for c, i in zip(candidates, chosen)])
    labels, _ = padded([given[i] for given, i in zip(proposal_sampler.labels, chosen)])
    assigned = assign(boxes, targets, positive_overlap=0.5, negative_overlap=0.5, best_for_each=False)
    assert torch.equal(assigned.positive & valid, labels > 0)
    matched = torch.stack([b[i] for b, i in zip(targets.boxes, assigned.object)])
    losses = head.losses_of(pyramid, regions, anchors, ProposalSamples(boxes, labels, valid, matched))

    names = {
        "rpn_objectness": "loss_objectness",
        "rpn_box": "loss_rpn_box_reg",
        "class": "loss_classifier",
        "box": "loss_box_reg",
    }
    assert set(losses) == set(names)
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[names[name]], rtol=1e-4, atol=0)


def test_state_dict_survives_the_way_there_and_back(pair):
    theirs, ours = pair
    original = theirs.state_dict()
    back = to_torchvision(ours.state_dict(), head="boxes")
    assert is_torchvision_detector(back)
    assert not is_torchvision_detector(ours.state_dict())
    assert back.keys() == original.keys()
    for key, value in back.items():
        background = 4 if "box_predictor.bbox_pred" in key else 0  # nothing reads it
        assert torch.equal(
            value[background:] if value.dim() else value, original[key][background:] if value.dim() else original[key]
        )


def test_old_key_names_and_any_head_name_load():
    state = {
        "rpn.head.conv.weight": torch.zeros(1),
        "backbone.fpn.inner_blocks.2.bias": torch.zeros(1),
        "backbone.body.layer1.0.bn1.running_var": torch.zeros(1),
    }
    assert list(from_torchvision(state, head="cells")) == [
        "heads.cells.rpn.head.convs.0.weight",
        "heads.cells.neck.lateral.2.0.bias",
        "backbone.layer1.0.bn1.running_var",
    ]


def test_foreign_keys_are_refused():
    with pytest.raises(DensekitError, match=r"'fc\.weight' is no key"):
        from_torchvision({"fc.weight": torch.zeros(1)}, head="boxes")
