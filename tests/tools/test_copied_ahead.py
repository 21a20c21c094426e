"""Batches that are copied to a GPU while a step runs, with streams that only write down what happens on them."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
import torch

from densekit import console
from densekit.engine import ahead
from densekit.engine.ahead import CopiedAhead
from densekit.engine.step import TrainStep
from densekit.errors import DensekitError
from densekit.types import Batch
from tests.engine.parts import batch_on
from tests.tools import runs

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


class Stream:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def log(monkeypatch):
    """What happens where batches are copied as to a GPU."""
    log = []
    current, to = [Stream("main", log)], Batch.to

    @contextlib.contextmanager
    def stream(chosen):
        current.append(chosen)
        yield
        current.pop()

    def copied(batch, device, non_blocking=True):
        log.append(f"copy on {current[-1].name}")
        return to(batch, CPU).changed(torch.clone)

    monkeypatch.setattr(ahead, "side_stream", lambda device: Stream("side", log))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: log.append((self.data_ptr(), stream.name)))
    monkeypatch.setattr(Batch, "to", copied)
    return log


def pointers(batch):
    found = []
    batch.changed(lambda tensor: found.append(tensor.data_ptr()) or tensor)
    return found


def test_the_next_batches_are_copied_beside_the_step_and_waited_for_by_the_one_that_takes_them(log):
    batches = [[batch_on(CPU, kind), batch_on(CPU, kind)] for kind in ("boxes", "masks", "labels")]
    log.clear()
    copies = CopiedAhead(iter(batches), GPU)
    for number in range(2):
        taken = next(copies)
        assert taken.host is batches[number]
        kept = {(pointer, "main") for batch in taken.device for pointer in pointers(batch)}
        assert {one for one in log if isinstance(one, tuple)} == kept
        assert len(kept) > 8
        log[:] = [one for one in log if not isinstance(one, tuple)]
        assert log == ["copy on side", "copy on side", "main waits for side"]
        log.clear()
        copies.begin_next()


def test_what_fails_ahead_is_told_when_its_turn_comes(log):
    def two():
        yield [batch_on(CPU, "labels")]
        raise DensekitError("000003.jpg: cut off")

    copies = CopiedAhead(two(), GPU)
    next(copies)
    copies.begin_next()
    with pytest.raises(DensekitError, match="cut off"):
        next(copies)


def test_elsewhere_nothing_is_taken_before_its_turn():
    batches = iter([[batch_on(CPU, "labels")], [batch_on(CPU, "labels")]])
    copies = CopiedAhead(batches, CPU)
    taken = next(copies)
    assert taken.device[0].images is taken.host[0].images
    copies.begin_next()
    assert len(list(batches)) == 1


def test_a_run_that_stopped_with_a_batch_ahead_goes_on_to_the_same_bits(tmp_path, shapes, alone, monkeypatch, log):
    config, out, steps = runs.config_of("classification", shapes), tmp_path / "run", []
    real = TrainStep.__call__

    def stopping(step, batches, number):
        steps.append(number)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(step, batches, number)

    undisturbed = alone("classification")
    log.clear()
    monkeypatch.setattr(TrainStep, "__call__", stopping)
    command = ["train", runs.write_config(tmp_path / "run.yaml", config), "--out", out]
    assert runs.call(*command)[0] == console.INTERRUPTED
    assert steps == [0, 1]
    assert log.count("copy on side") == 3 * config["train"].get("accumulate", 1)
    assert runs.call(*command, "--resume")[0] == 0
    runs.assert_same_run(undisturbed, out)
