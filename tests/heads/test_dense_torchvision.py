"""densekit's one-stage detectors against torchvision's, weights carried across: detections and losses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import detection

from densekit.heads.dense import fcos, retinanet
from densekit.heads.dense.torchvision import from_torchvision_dense, is_torchvision_dense
from densekit.model import DenseModel
from densekit.registry import BACKBONES
from densekit.types import DensekitError
from tests.heads.torchvision_detectors import (
    CLASSES,
    MEAN,
    STD,
    as_lists,
    assert_same_detections,
    noise_batch,
    spread_norms,
)

V2 = {"coarse_from": "c5", "norm": "group", "box_loss": "giou"}
KINDS = {
    "retinanet": (detection.retinanet_resnet50_fpn, retinanet, {}),
    "retinanet_v2": (detection.retinanet_resnet50_fpn_v2, retinanet, V2),
    "fcos": (detection.fcos_resnet50_fpn, fcos, {"score_threshold": 0.05}),
}


def spread(model: nn.Module) -> None:
    """Random statistics in the norms and large predictions, so that scores do not tie."""
    generator = torch.Generator().manual_seed(1)
    spread_norms(model, generator)
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.weight.data.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
    head = model.head
    for conv in (m for m in head.modules() if isinstance(m, nn.Conv2d)):
        fan = conv.weight[0].numel()
        conv.weight.data.copy_(torch.randn(conv.weight.shape, generator=generator) * (2 / fan) ** 0.5)
        if conv.bias is not None and conv is not head.classification_head.cls_logits:
            conv.bias.data.copy_(torch.randn(conv.bias.shape, generator=generator) * 0.1)
    last = head.classification_head.cls_logits
    seen = []
    hook = last.register_forward_hook(lambda module, given, result: seen.append(result))
    with torch.no_grad():
        model.eval()([torch.rand(3, 96, 128, generator=generator)])
        hook.remove()
        last.weight.mul_(2 / seen[0].std())
        last.bias.copy_(-3.0 - 2 / seen[0].std() * (seen[0].mean((0, 2, 3)) - last.bias))


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request):
    """torchvision's detector and densekit's with the same weights."""
    torch.manual_seed(0)
    build_theirs, build_ours, options = KINDS[request.param]
    threshold = {"score_thresh": options["score_threshold"]} if "score_threshold" in options else {}
    theirs = build_theirs(
        weights=None, weights_backbone=None, num_classes=len(CLASSES), min_size=96, max_size=128, **threshold
    )
    spread(theirs)
    backbone = BACKBONES.build("resnet50", {})
    head = build_ours(backbone.levels, num_classes=len(CLASSES), **options)
    ours = DenseModel(backbone, {"boxes": head}, mean=MEAN, std=STD, classes=CLASSES)
    state = theirs.state_dict()
    assert is_torchvision_dense(state)
    report = ours.load_state_dict(from_torchvision_dense(state, head="boxes", ids=CLASSES.ids), strict=False)
    assert not report.unexpected_keys
    assert not [key for key in report.missing_keys if key not in ("mean", "std")]
    return theirs.eval(), ours.eval()


@pytest.fixture(scope="module")
def batch():
    return noise_batch()


@torch.no_grad()
def test_detections_are_torchvisions(pair, batch):
    theirs, ours = pair
    found = ours.predict(batch, padded=True)
    for i, expected in enumerate(theirs(as_lists(batch)[0])):
        assert_same_detections(found, i, expected, first=0, spread=0.05)


def test_losses_and_their_gradients_are_torchvisions(pair, batch):
    theirs, ours = pair
    theirs.train()
    for module in theirs.modules():  # the norms as in evaluation, on both sides
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    expected = theirs(*as_lists(batch, first=0))
    found = ours(batch)
    assert set(found) == {"class", "box"} | ({"centerness"} if "bbox_ctrness" in expected else set())
    names = {"class": "classification", "box": "bbox_regression", "centerness": "bbox_ctrness"}
    for name, value in found.items():
        torch.testing.assert_close(value, expected[names[name]].float(), rtol=1e-4, atol=1e-4)
    tolerances = {
        ("head.classification_head.cls_logits.weight", "heads.boxes.logits.weight"): 1e-5,
        ("backbone.fpn.inner_blocks.2.0.weight", "heads.boxes.neck.fpn.lateral.2.0.weight"): 1e-2,
        ("backbone.body.layer4.0.conv1.weight", "backbone.layer4.0.conv1.weight"): 1e-2,
    }  # below the towers a rounding decides which side of a ReLU some values fall on
    gradients = [
        torch.autograd.grad(sum(losses.values()), [model.get_parameter(names[side]) for names in tolerances])
        for side, (model, losses) in enumerate(((theirs, expected), (ours, found)))
    ]
    for names, tolerance, wanted, got in zip(tolerances, tolerances.values(), *gradients):
        assert (got - wanted).norm() <= tolerance * wanted.norm(), names
    theirs.eval()


def test_the_rows_of_the_data_sets_ids_are_taken_and_an_id_beyond_them_is_named():
    state = detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
    found = from_torchvision_dense(state, head="boxes", ids=(17, 90))
    theirs = state["head.classification_head.cls_logits.bias"].reshape(9, 91)
    assert torch.equal(found["heads.boxes.logits.bias"].reshape(9, 2), theirs[:, [17, 90]])
    with pytest.raises(DensekitError, match="classes 0 to 90, the data set's ids run from 17 to 200"):
        from_torchvision_dense(state, head="boxes", ids=(17, 200))


def test_older_files_of_retinanet_name_their_towers_without_a_second_number():
    state = detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3).state_dict()
    old = {}
    for key, value in state.items():
        for i in range(4):
            key = key.replace(f"head.conv.{i}.0.", f"head.conv.{2 * i}.")
        old[key] = value
    assert old.keys() != state.keys()
    new, from_old = (from_torchvision_dense(s, head="boxes", ids=(1, 2)) for s in (state, old))
    assert new.keys() == from_old.keys()
    assert all(torch.equal(new[key], from_old[key]) for key in new)
