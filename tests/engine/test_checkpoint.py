"""Checkpoints: written whole or not at all, damage found, no code run."""

from __future__ import annotations

import errno
import io
import os
import pickle
import random
import zipfile

import pytest
import torch

from densekit.engine import checkpoint
from densekit.engine.checkpoint import (
    classes_by_head,
    classes_of,
    load,
    load_last,
    load_weights,
    previous,
    save,
    with_classes,
)
from densekit.types import Classes, DensekitError


def make(number: float = 1.0):
    return {
        "config": {"seed": 0},
        "classes": {"names": ["a"], "ids": [1]},
        "model": {"w": torch.full((3, 4), number), "b": torch.zeros(2, dtype=torch.int64)},
        "made": {"step": int(number)},
    }


@pytest.fixture
def path(tmp_path):
    save(tmp_path / "last.pt", make())
    return tmp_path / "last.pt"


def test_what_is_saved_loads_and_the_one_before_is_kept(path):
    save(path, make(2), keep_previous=True)
    save(path, make(3), keep_previous=True)
    assert load(path)["model"]["w"].eq(3).all()
    assert load(previous(path))["model"]["w"].eq(2).all()
    save(path, make(4))
    assert load(previous(path))["model"]["w"].eq(2).all()
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.previous.pt", "last.pt"]


def test_the_one_before_is_kept_where_the_file_system_has_no_links(path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    save(path, make(2), keep_previous=True)
    assert load(path)["made"]["step"] == 2
    assert load(previous(path))["made"]["step"] == 1


def _equal(one, other):
    return one["config"] == other["config"] and all(torch.equal(one["model"][k], other["model"][k]) for k in ("w", "b"))


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(path):
    whole, expected = path.read_bytes(), load(path)
    found = 0
    for at in random.Random(0).sample(range(len(whole)), 400):
        content = bytearray(whole)
        content[at] ^= 1 << (at % 8)
        path.write_bytes(content)
        message = _refusal(path, expected)
        found += message is not None
        assert message is None or (str(path) in message and "\n" not in message)
    assert found > 100


def _refusal(path, expected):
    """Why a file is refused; None where it loads, and then it must hold what it held."""
    try:
        assert _equal(load(path), expected)
    except DensekitError as error:
        return str(error)


@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_file_is_found_and_the_one_before_used(path, part):
    save(path, make(2), keep_previous=True)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DensekitError, match=r"last\.pt is damaged or not a checkpoint"):
        load(path)
    content, note = load_last(path)
    assert content["made"]["step"] == 1
    assert note is not None
    assert note.endswith("going on from last.previous.pt (step 1) instead")


def test_both_damaged_are_both_named(path):
    save(path, make(2), keep_previous=True)
    path.write_bytes(b"")
    previous(path).write_bytes(b"x")
    with pytest.raises(DensekitError, match=r"last\.pt is damaged.*last\.previous\.pt is damaged"):
        load_last(path)


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path):
    marker, file = tmp_path / "ran", tmp_path / "evil.pt"
    torch.save({**make(), "format": 1, "extra": Hostile(marker)}, file)
    with pytest.raises(DensekitError, match="without running code"):
        load(file)
    file.write_bytes(pickle.dumps(Hostile(marker)))
    with pytest.raises(DensekitError, match="not a checkpoint"):
        load(file)
    assert not marker.exists()


def test_a_small_file_that_unpacks_into_a_large_one_is_refused(path, tmp_path):
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(DensekitError, match="damaged"):
        load(bomb)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("classes"), "not a densekit checkpoint"),
        (lambda c: c.update(format=99), "format 99, this densekit reads up to 1; update densekit"),
        (lambda c: c.update(format="x"), "format 'x'"),
    ],
)
def test_other_content_is_refused(tmp_path, change, words):
    content = {**make(), "format": 1}
    change(content)
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(DensekitError, match=words):
        load(tmp_path / "c.pt")


@pytest.mark.parametrize(
    "held", [None, {}, {"names": ["a"]}, {"names": ["a", "a"], "ids": [1, 2]}, {"names": ["a"], "ids": [float("inf")]}]
)
def test_a_class_list_that_is_none_is_refused(held):
    with pytest.raises(DensekitError):
        classes_of({"classes": held}, "c.pt")
    with pytest.raises(DensekitError):
        classes_by_head({"classes": make()["classes"], "classes_by_head": {"boxes": held}}, ["boxes"], "c.pt")
    assert classes_of(make(), "c.pt") == Classes(("a",), (1,))


def test_classes_are_kept_by_head_and_an_older_checkpoint_has_one_list_for_all():
    own = {"boxes": Classes(("a",), (1,)), "masks": Classes(("b", "c"), (2, 9))}
    assert classes_by_head(with_classes(own), ["boxes", "masks"], "c.pt") == own
    assert classes_of(with_classes(own), "c.pt") == own["boxes"]
    assert classes_by_head(make(), ["boxes", "masks"], "c.pt") == dict.fromkeys(own, own["boxes"])
    with pytest.raises(DensekitError, match="the classes of each head"):
        classes_by_head(with_classes(own), ["boxes", "points"], "c.pt")


def test_weights_of_another_model_are_refused_with_the_first_differences():
    model = torch.nn.Linear(2, 3)
    for state, words in (
        ({"weight": torch.zeros(3, 2)}, "1 missing such as bias"),
        ({**model.state_dict(), "x": torch.zeros(1)}, "1 unexpected such as x"),
        ({"weight": torch.zeros(4, 2), "bias": torch.zeros(3)}, r"weight is \(4, 2\), the model has \(3, 2\)"),
        ({"weight": 3}, "no state dict of tensors"),
    ):
        with pytest.raises(DensekitError, match=words):
            load_weights(model, state, "c.pt")


@pytest.mark.parametrize("function", ["fsync", "replace", "link", "chmod"])
@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "choose a folder that you may write to")]
)
def test_a_failing_write_leaves_the_old_checkpoint_and_no_leftovers(path, monkeypatch, function, number, words):
    def failing(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, function, failing)
    if function == "link":
        monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(DensekitError, match=words):
        save(path, make(2), keep_previous=True)
    monkeypatch.undo()
    assert load(path)["made"]["step"] == 1
    assert not list(path.parent.glob(".*"))


def fail_to_save(monkeypatch, message):
    def failing(*_):
        raise RuntimeError(message)

    monkeypatch.setattr(checkpoint.torch, "save", failing)


def test_torch_s_own_error_of_a_full_disk_is_explained(path, monkeypatch):
    fail_to_save(monkeypatch, "PytorchStreamWriter failed writing file data/3: file write failed")
    with pytest.raises(DensekitError, match="is the disk full"):
        save(path, make(2), keep_previous=True)
    assert load(path)["made"]["step"] == 1


class Interrupted(io.FileIO):
    """A file in whose writing the handler of a signal raises, in torch's writer or in Python's code around it."""

    def __init__(self, handle, mode, at):
        super().__init__(handle, mode)
        self.calls = iter(range(1000))
        self.at = at

    def write(self, content):
        if next(self.calls) == self.at:
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")
        return super().write(content)


@pytest.mark.parametrize("at", [0, 1, 5])
def test_a_worker_s_death_in_the_middle_of_a_save_is_not_taken_for_a_full_disk(path, monkeypatch, at):
    monkeypatch.setattr(os, "fdopen", lambda handle, mode: Interrupted(handle, mode, at))
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        save(path, make(2), keep_previous=True)
    monkeypatch.undo()
    assert load(path)["made"]["step"] == 1
