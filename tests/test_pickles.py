"""Files of other programs that hold more than tensors: what is data is left out, what could run code is refused."""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
import pytest
import torch

from densekit.backbones.weights import read_state_dict
from densekit.engine import checkpoint
from densekit.errors import DensekitError


class Meta:
    """A class of a training program."""


class Net(torch.nn.Linear):
    """A network that was pickled as a whole."""


def weights():
    return {"conv1.weight": torch.arange(8.0).view(2, 4)}


def refusal(use, path):
    with pytest.raises(DensekitError) as caught:
        use(path)
    line = str(caught.value)
    assert line.isprintable(), f"terminal codes or more than one line: {line!r}"
    assert str(path) in line
    assert len(line) < 500
    return line


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("runs"), nested=argparse.Namespace()),
        {"best": np.float64(0.3), "epochs": np.int64(3), "history": np.zeros((2, 3)), "rate": np.float32(1)},
        [pathlib.PurePosixPath("a"), torch.device("cpu"), torch.float32, {1, 2}],
    ],
    ids=["namespace", "numpy", "paths"],
)
def test_what_training_programs_keep_beside_their_weights_is_left_out(tmp_path, beside, zipped):
    path = tmp_path / "checkpoint.pth"
    content = {"model": weights(), "optimizer": {"state": {}}, "epoch": 3, "args": beside}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    read = read_state_dict(path)
    assert read.keys() == weights().keys()
    assert torch.equal(read["conv1.weight"], weights()["conv1.weight"])


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_a_class_of_a_program_is_named_with_the_line_that_saves_the_weights(tmp_path, key, monkeypatch):
    path = tmp_path / "checkpoint.pth"
    torch.save({key: weights(), "meta": Meta()}, path)
    line = refusal(read_state_dict, path)
    assert "Meta beside tensors and plain values, which could run code when read" in line
    remedy = line[line.index("torch.save(") :]
    exec(remedy)
    assert torch.equal(read_state_dict(tmp_path / "checkpoint_weights.pth")["conv1.weight"], weights()["conv1.weight"])


def test_a_pickled_network_is_named_with_what_to_save_in_its_place(tmp_path):
    torch.save(Net(2, 2), tmp_path / "net.pth")
    line = refusal(read_state_dict, tmp_path / "net.pth")
    assert "Net beside" in line
    assert line.endswith("save module.state_dict() alone in the program that wrote them")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "git lfs pull"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "git lfs pull"),
        ("w.pth", b"\n<!DOCTYPE html><html><title>404</title>", "a web page"),
        ("w.pth", b"", "empty"),
        ("w.pth", b"hello world", "no file of torch.save"),
        ("w.pth", bytes(range(256)), "no file of torch.save"),
    ],
    ids=["lfs", "lfs safetensors", "web page", "empty", "text", "bytes"],
)
def test_files_that_were_fetched_in_vain_are_called_what_they_are(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert words in refusal(read_state_dict, tmp_path / name)


def test_torchscript_is_named(tmp_path):
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "s.pt"))
    assert "a TorchScript program" in refusal(read_state_dict, tmp_path / "s.pt")
    refusal(checkpoint.load, tmp_path / "s.pt")


def test_another_programs_checkpoint_is_none_of_ours_and_the_line_says_where_it_can_go(tmp_path):
    torch.save({"model": weights(), "args": argparse.Namespace()}, tmp_path / "a.pth")
    assert "model.backbone.weights" in refusal(checkpoint.load, tmp_path / "a.pth")
    torch.save({"model": weights(), "meta": Meta()}, tmp_path / "b.pth")
    assert "model.backbone.weights" in refusal(checkpoint.load, tmp_path / "b.pth")
