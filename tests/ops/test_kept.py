"""What is kept from step to step is what would be computed anew, whatever happens to what it was computed from."""

import copy
import pickle

import pytest
import torch
from torch import nn

from densekit.layers import FrozenBatchNorm2d
from densekit.ops.kept import SHAPES, ByShape, OfTensors

CPU_TENSOR = torch.zeros(1)


def anew(norm):
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return torch.stack([scale, norm.bias - norm.running_mean * scale])


def filled(seed=0):
    norm, generator = FrozenBatchNorm2d(4), torch.Generator().manual_seed(seed)
    for buffer in norm.buffers():
        buffer.copy_(torch.rand(4, generator=generator) + 0.5)
    return norm


def is_up_to_date(norm):
    return torch.equal(torch.stack(norm.affine()), anew(norm))


def test_a_frozen_norm_computes_its_scale_once():
    norm = filled()
    assert is_up_to_date(norm)
    assert norm.affine()[0] is norm.affine()[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda norm: norm.running_var.mul_(2.0),
        lambda norm: norm.bias.__setitem__(0, 7.0),
        lambda norm: norm.load_state_dict(filled(1).state_dict()),
        lambda norm: norm.load_state_dict(filled(1).state_dict(), assign=True),
        lambda norm: norm.double(),
        lambda norm: norm.register_buffer("weight", torch.full((4,), 3.0)),
        lambda norm: torch._foreach_copy_(list(norm.buffers()), list(filled(1).buffers())),
        lambda norm: torch._foreach_lerp_(list(norm.buffers()), list(filled(1).buffers()), 0.5),
    ],
)
def test_a_frozen_norm_follows_every_change_of_its_buffers(change):
    norm = filled()
    before = torch.stack(norm.affine())
    change(norm)
    assert is_up_to_date(norm)
    assert not (norm.affine()[0].dtype == before.dtype and torch.equal(torch.stack(norm.affine()), before))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda norm: pickle.loads(pickle.dumps(norm))])
def test_a_copy_of_a_frozen_norm_goes_its_own_way(copied):
    norm = FrozenBatchNorm2d(4)  # whose buffers count no write yet, like those of a copy
    norm.affine()
    norm.running_var.mul_(2.0)  # what is kept now is old
    other = copied(norm)
    assert is_up_to_date(other)
    other.running_var.mul_(3.0)
    assert is_up_to_date(other)
    assert is_up_to_date(norm)


def test_what_was_first_asked_for_in_inference_serves_a_step_that_learns():
    norm, weight = filled(), torch.ones(4, requires_grad=True)
    places = ByShape()
    with torch.inference_mode():
        norm.affine()
        places("key", CPU_TENSOR, lambda: torch.arange(4.0))
    scale, kept = norm.affine()[0], places("key", CPU_TENSOR, lambda: torch.zeros(4))
    (weight * scale * kept).sum().backward()
    assert torch.equal(weight.grad, scale * torch.arange(4.0))


def test_buffers_that_were_made_in_inference_are_read_anew():
    with torch.inference_mode():
        norm = filled()
        norm.affine()
        norm.running_var.mul_(2.0)  # no counter shows it
        assert is_up_to_date(norm)


def test_shapes_seen_last_are_kept():
    made, kept = [], ByShape()

    def make(key):
        made.append(key)
        return torch.tensor(key)

    for key in [*range(SHAPES + 1), *range(SHAPES, 0, -1)]:
        assert int(kept(key, CPU_TENSOR, lambda key=key: make(key))) == key
    assert made == [*range(SHAPES + 1)]
    kept(0, CPU_TENSOR, lambda: make(0))
    assert made[-1] == 0
    assert copy.deepcopy(kept)(0, CPU_TENSOR, lambda: make(5)) == 5


def test_nothing_is_kept_of_what_a_compiler_or_an_exporter_records(monkeypatch):
    by_shape, of_tensors = ByShape(), OfTensors()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for number in (1, 2):
        assert by_shape("key", CPU_TENSOR, lambda n=number: n) == number
        assert of_tensors([CPU_TENSOR], lambda n=number: n) == number
    monkeypatch.undo()
    assert by_shape("key", CPU_TENSOR, lambda: 3) == 3
    assert by_shape("key", nn.Parameter(CPU_TENSOR), lambda: 4) == 4  # of a type that may stand for something else
