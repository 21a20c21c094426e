"""Recorded predictions without a GPU: a graph is the operators that ran, with the memory that they read and wrote."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from densekit.errors import DensekitError
from densekit.infer.captured import WARM_UP, Captured, capture
from densekit.model import DenseModel
from tests.engine.parts import CASES, batch_on, model_on

CPU = torch.device("cpu")
ONE_OF_EACH = list({head: (head, options, kind) for head, options, kind in reversed(CASES)}.values())


def tensors(values):
    return [one for one in tree_leaves(values) if isinstance(one, torch.Tensor)]


class Graph(TorchDispatchMode):
    """As CUDA's: what is replayed reads where it read, and writes where it wrote, whatever lies there by then."""

    made = 0

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Stream:
    def __init__(self, device):
        pass

    def wait_stream(self, other):
        pass


@pytest.fixture
def recording(monkeypatch):
    """Graphs that record operators; gives the list of them."""
    made = []

    @contextlib.contextmanager
    def graph(recorder, pool, capture_error_mode):
        assert (pool, capture_error_mode) == ("pool", "thread_local")
        made.append(recorder)
        with recorder:
            yield

    nothing = lambda *_: contextlib.nullcontext()  # noqa: E731
    for name, fake in {"Stream": Stream, "current_stream": Stream, "stream": nothing, "device": nothing}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for name, fake in {"graph_pool_handle": lambda: "pool", "CUDAGraph": Graph, "graph": graph}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return made


def another(batch, seed, size=None):
    """Other pixels; of boxes and labels another size of image and file, too."""
    images = torch.randint(0, 256, batch.images.shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    if size is None:
        return dataclasses.replace(batch, images=images)
    sizes = torch.tensor([size, size])
    return dataclasses.replace(batch, images=images, sizes=sizes, original_sizes=sizes * 2, host=())


def values_of(found):
    return tensors([dataclasses.asdict(one) for one in found.values()])


@pytest.mark.parametrize(("head", "options", "kind"), ONE_OF_EACH, ids=[case[0] for case in ONE_OF_EACH])
def test_a_replayed_prediction_is_that_of_the_batch_that_is_given(as_on_a_gpu, recording, head, options, kind):
    model = model_on(CPU, head, options | ({"score_threshold": 0.0} if kind == "boxes" else {})).eval()
    first = batch_on(CPU, kind)
    second = another(first, 1, None if kind == "masks" else (60, 40))
    captured = Captured(model)
    captured(first, ["head"])
    assert not recording
    captured(first, ["head"])
    kept = captured(another(first, 2), ["head"])
    before = [value.clone() for value in values_of(kept)]
    found = captured(second, ["head"])
    assert len(recording) == 1
    with torch.inference_mode():
        expected = values_of(model.predict_part(second, ["head"]))
    torch.testing.assert_close(values_of(found), expected)
    assert any(not torch.equal(*pair) for pair in zip(before, expected))
    assert all(torch.equal(*pair) for pair in zip(values_of(kept), before)), "what was given is the caller's own"


def test_the_shape_that_was_seen_longest_ago_goes(recording):
    model = model_on(CPU, "classifier", {}).eval()
    captured = Captured(model, most=2)
    batches = {side: batch_on(CPU, "labels") for side in (32, 64, 96)}
    for side, batch in batches.items():
        batch.images = torch.zeros(2, 3, side, side, dtype=torch.uint8)

    def made_by(*sides):
        before = len(recording)
        for side in sides:
            captured(batches[side], ["head"])
        return len(recording) - before

    assert made_by(32, 32, 64, 64) == 2
    assert made_by(32, 64, 32) == 0
    assert made_by(96, 96) == 1  # in the place of 64
    assert made_by(32) == 0
    assert made_by(64, 64) == 1


def test_maps_of_other_sizes_are_recorded_anew_and_boxes_are_not(recording):
    for head, kind, graphs in (("linknet", "masks", 2), ("classifier", "labels", 1)):
        captured, batch = Captured(model_on(CPU, head, {}).eval()), batch_on(CPU, kind)
        recording.clear()
        for one in (batch, batch, another(batch, 1, (60, 40)), another(batch, 2, (60, 40))):
            captured(one, ["head"])
        assert len(recording) == graphs


def test_what_cannot_be_recorded_is_predicted_plainly_and_said_once(recording, monkeypatch, recwarn):
    model = model_on(CPU, "classifier", {}).eval()

    @contextlib.contextmanager
    def graph(recorder, pool, capture_error_mode):
        yield
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", graph)
    model.captured, batch = Captured(model), batch_on(CPU, "labels")
    expected = model.predict_part(batch, ["head"])["head"].probabilities
    for _ in range(3):
        torch.testing.assert_close(model.predict(batch).probabilities, expected)
    told = [str(one.message) for one in recwarn if "capture" in str(one.message)]
    assert told == [
        "capture: predictions run without recorded graphs: operation not permitted when stream is capturing"
    ]


def test_all_predictions_of_a_model_go_through_its_graphs(recording):
    model: DenseModel = model_on(CPU, "classifier", {}).eval()
    plain, batch = model.predict(batch_on(CPU, "labels")), batch_on(CPU, "labels")
    model.captured = Captured(model)
    for _ in range(3):
        found = model.predict(batch)
    assert len(recording) == 1
    torch.testing.assert_close(found.probabilities, plain.probabilities)


def test_a_graph_holds_no_weights_that_mixed_precision_cast_and_forgets(recording):
    model, batch, kept = model_on(CPU, "classifier", {}).eval(), batch_on(CPU, "labels"), []
    plain = model.predict_part

    def watched(batch, heads):
        kept.append(torch.is_autocast_cache_enabled())
        assert torch.is_autocast_enabled("cpu")
        return plain(batch, heads)

    model.predict_part = watched
    captured = Captured(model)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            captured(batch, ["head"])
    assert kept == [True, *[False] * (WARM_UP + 1)]


def test_a_model_elsewhere_is_refused():
    with pytest.raises(
        DensekitError, match=r"^capture records what a CUDA GPU does, and the model is on cpu; leave it"
    ):
        capture(model_on(CPU, "classifier", {}))
