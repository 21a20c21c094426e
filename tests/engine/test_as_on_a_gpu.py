"""What a GPU would run, on the CPU under torch's profiler: it reads no value, and has a deterministic form.

Torch has formulas that read values and take another way on the device without values (``test_host_waits.py``) and
wherever operators are recorded by Python; the profiler changes nothing. It also names every operator of a step, forward
and backward, and torch's own documentation lists those that have no deterministic form on a GPU.
"""

from __future__ import annotations

import re

import pytest
import torch
import torchvision
from torch.profiler import ProfilerActivity, profile

from densekit.engine.distributed import World
from densekit.engine.optim import AveragedModel, make_optimizer, parameter_groups
from densekit.engine.step import TrainStep
from densekit.errors import DensekitError
from densekit.ops import roi_align
from tests.engine.parts import CASES, batch_on, model_on

META, CPU = torch.device("meta"), torch.device("cpu")

READING = {
    f"aten::{name}"
    for name in (
        *("item", "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "masked_scatter"),
        *("_unique2", "unique_dim", "bincount", "repeat_interleave", "histogram"),
    )
}
"""Operators that on a GPU read a value or a number of values."""

DOCUMENTED = {
    "nn.AvgPool3d": ["avg_pool3d_backward"],
    "nn.AdaptiveAvgPool2d": ["_adaptive_avg_pool2d_backward"],
    "nn.AdaptiveAvgPool3d": ["_adaptive_avg_pool3d_backward"],
    "nn.AdaptiveMaxPool2d": ["adaptive_max_pool2d_backward"],
    "nn.FractionalMaxPool2d": ["fractional_max_pool2d_backward"],
    "nn.FractionalMaxPool3d": ["fractional_max_pool3d_backward"],
    "nn.MaxUnpool1d": ["max_unpool2d"],
    "nn.MaxUnpool2d": ["max_unpool2d"],
    "nn.MaxUnpool3d": ["max_unpool3d"],
    "nn.functional.interpolate": [
        f"{name}_backward" for name in ("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d")
    ]
    + ["upsample_trilinear3d_backward", "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward"],
    "nn.ReflectionPad1d": ["reflection_pad1d_backward"],
    "nn.ReflectionPad2d": ["reflection_pad2d_backward"],
    "nn.ReflectionPad3d": ["reflection_pad3d_backward"],
    "nn.NLLLoss": ["nll_loss2d_backward"],  # where it sums; see below
    "nn.CTCLoss": ["_ctc_loss_backward"],
    "nn.EmbeddingBag": ["_embedding_bag_backward", "_embedding_bag_dense_backward"],
    "Tensor.put_": ["put_"],
    "histc": ["histc"],
    "bincount": ["bincount"],
    "median": ["median"],
    "nn.functional.grid_sample": ["grid_sampler_2d_backward", "grid_sampler_3d_backward"],
    "Tensor.scatter_reduce": ["scatter_reduce", "scatter_reduce_"],
    "kthvalue": ["kthvalue"],
}
"""Operators behind the names in the documentation of ``torch.use_deterministic_algorithms``."""

ELSEWHERE = {
    "Tensor.index_put",
    "Tensor.index_reduce",
    "nn.Embedding",
    "nn.MaxPool2d",
    "nn.MaxPool3d",
    "Tensor.resize_",
    "cumsum",
}
"""Listed there for other devices than CUDA's, for quantized tensors, or (by torch 2.11) for sums of floats."""


@pytest.fixture
def same_bits():
    """Deterministic algorithms, as ``train.deterministic`` sets them."""
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode("default")


def operators(action):
    """Names of the operators that ran; of a sum over pixels' losses the name with ``summed``."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        action()
    return {
        f"{event.name()} summed"
        if event.name() == "aten::nll_loss2d_backward" and not event.shapes()[0]
        else event.name()
        for event in profiler.profiler.kineto_results.events()  # as recorded: a tree of them takes torch seconds
    }


def unpredictable():
    names = {f"aten::{name}" for names in DOCUMENTED.values() for name in names} - {"aten::nll_loss2d_backward"}
    return names | {"aten::nll_loss2d_backward summed", "torchvision::_roi_align_backward"}


def step_of(model):
    optimizer = make_optimizer("sgd", parameter_groups(model, lr=0.1, weight_decay=0.1))
    options = {"world": World(0, 1, 1, CPU), "seed": 0, "clip": 1.0, "average": AveragedModel(model, 0.9)}
    return TrainStep(model, optimizer, lambda _: 1.0, **options)


@pytest.mark.parametrize(("head", "options", "kind"), [c for c in CASES if c[1].get("roi_align") != "kernel"])
def test_a_step_has_a_deterministic_form_and_reads_no_value(as_on_a_gpu, same_bits, head, options, kind):
    model, batch = model_on(CPU, head, options), batch_on(CPU, kind)
    step = step_of(model)
    ran = operators(lambda: step([batch], 0))
    assert any(name.endswith("Backward0") for name in ran)
    assert ran & unpredictable() == set()
    assert ran & READING == set()
    with torch.inference_mode():
        model.eval()
        assert operators(lambda: model.predict(batch)) & READING == set()


def test_the_kernel_of_roi_align_reads_no_value_and_is_refused_where_bits_must_be_the_same(as_on_a_gpu):
    head, options, kind = next(c for c in CASES if c[1].get("roi_align") == "kernel")
    step, batch = step_of(model_on(CPU, head, options)), batch_on(CPU, kind)
    ran = operators(lambda: step([batch], 0))
    assert "torchvision::_roi_align_backward" in ran
    assert ran & READING == set()
    maps, boxes = [torch.zeros(1, 2, 4, 4, device=META, requires_grad=True)], torch.zeros(1, 3, 4, device=META)
    torch.set_deterministic_debug_mode("error")
    try:
        with pytest.raises(DensekitError, match=r"roi_align: 'kernel' .* use auto"):
            roi_align.roi_align(maps, boxes, [4], method="kernel")
    finally:
        torch.set_deterministic_debug_mode("default")


def test_the_profiler_tells_what_reads_values_and_what_is_unpredictable():
    values, maps = torch.ones(3, requires_grad=True), torch.ones(1, 2, 4, 4, requires_grad=True)
    for reading in (lambda: values.prod(0).backward(), lambda: values[values > 0], lambda: bool(values[0] > 0)):
        assert operators(reading) & READING
    assert not operators(lambda: (values * 2).sum().backward()) & READING
    labels, boxes = torch.zeros(1, 4, 4, dtype=torch.int64), [torch.tensor([[0.0, 0.0, 2.0, 2.0]])]
    for action in (
        lambda: torch.nn.functional.interpolate(maps, scale_factor=2, mode="bilinear").sum().backward(),
        lambda: torch.nn.functional.adaptive_avg_pool2d(maps, 3).sum().backward(),
        lambda: torch.nn.functional.cross_entropy(maps, labels).backward(),
        lambda: torchvision.ops.roi_align(maps, boxes, 2).sum().backward(),
    ):
        assert operators(action) & unpredictable()
    summed_here = torch.nn.functional.cross_entropy(maps, labels, reduction="none")
    assert not operators(lambda: summed_here.sum().backward()) & unpredictable()


def test_the_list_is_torchs_own():
    text = torch.use_deterministic_algorithms.__doc__
    refused = text[text.index("normally-nondeterministic operations will throw") : text.index("In addition, several")]
    names = set(re.findall(r":(?:class|func):`torch\.([^`]+)`", refused))
    assert "nn.AdaptiveAvgPool2d" in names
    assert names - ELSEWHERE <= set(DOCUMENTED)
