"""``train.checkpoint_backbone``: less is kept for the backward, and every bit is the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from densekit.backbones.checkpointing import checkpoint_blocks
from densekit.engine.optim import AveragedModel
from densekit.errors import DensekitError
from densekit.model import DenseModel
from densekit.registry import BACKBONES, HEADS
from densekit.types import Classes
from tests.engine.test_fine_tuning import assert_same, run, step_of

BACKBONES_TO_SAVE = [("resnet8", {"drop_path": 0.3}), ("timm/test_resnet", {"drop_path": 0.3}), ("timm/test_vit", {})]


def model_of(name, **options):
    torch.manual_seed(0)
    body = BACKBONES.build(name, options)
    head = HEADS.build("classifier", {"dropout": 0.2, "mixup": 0.2}, body.levels, num_classes=3)
    return DenseModel(body, {"kind": head}, mean=(0.5,), std=(0.25,), classes=Classes(("a", "b", "c"), (0, 1, 2)))


@pytest.mark.parametrize(("name", "options"), BACKBONES_TO_SAVE)
def test_weights_statistics_and_average_are_the_same_bits(name, options):
    if name == "timm/test_vit":
        options = {"image_size": (32, 32)}
    plain, saving = (
        run(step_of(model_of(name, **options), ema=0.9, checkpoint_backbone=chosen), last=2) for chosen in (False, True)
    )
    assert_same(plain.model.state_dict(), saving.model.state_dict())
    assert_same(plain.model_to_use.state_dict(), saving.model_to_use.state_dict())


def kept(net):
    """Bytes that a forward keeps for its backward, each tensor's memory once."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(torch.randn(2, 3, 64, 64))
    return sum(sizes.values())


@pytest.mark.parametrize("name", ["resnet56", "timm/test_resnet"])
def test_less_is_kept_for_the_backward(name):
    net = BACKBONES.build(name, {})
    before = kept(net)
    checkpoint_blocks(net)
    assert kept(net) < 0.75 * before


def test_a_copy_runs_its_own_weights():
    model = model_of("timm/test_resnet")
    checkpoint_blocks(model.backbone)
    other = AveragedModel(model, 0.9).model.train()
    nn.init.zeros_(next(p for p in other.backbone.parameters() if p.dim() == 4))
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(other.backbone(x)[-1], model.backbone(x)[-1])
    assert_same(copy.deepcopy(other).state_dict(), other.state_dict())


def test_a_backbone_without_blocks_is_refused():
    with pytest.raises(DensekitError, match=r"train.checkpoint_backbone: Identity has no blocks"):
        checkpoint_blocks(nn.Identity())


class ChangesItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(self.first(x.mul_(2)))


def test_an_input_that_was_changed_in_place_is_an_error_and_not_a_wrong_gradient():
    net = nn.Sequential(nn.Linear(4, 4), ChangesItsInput())
    checkpoint_blocks(net)
    with pytest.raises((DensekitError, RuntimeError), match=r"in ?place"):  # ours, where torch has not seen it first
        net(torch.ones(1, 4)).sum().backward()


def test_several_backward_passes_go_through_one_graph():
    """As the gradients of several heads are compared in one step; statistics count once all the same."""
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        backbone = BACKBONES.build("resnet8", {}).train()
        if checkpointed:
            checkpoint_blocks(backbone)
        last = backbone(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))[-1]
        weight = backbone.layer3[0].conv2.weight
        first = torch.autograd.grad(last.sum(), weight, retain_graph=True)[0]
        second = torch.autograd.grad(last.square().sum(), weight)[0]
        found.append([first, second, *(b for b in backbone.buffers())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
