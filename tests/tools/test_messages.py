"""What other libraries say never reaches the user raw: one line of ours with file, value, rule and remedy."""

from __future__ import annotations

import errno
import os
import sys

import numpy as np
import pytest

from densekit import config as configs
from densekit import console
from densekit.config_file import read_yaml
from densekit.data.transforms.pipeline import Pipeline
from densekit.errors import DensekitError
from densekit.types import Sample
from tests.tools import runs

LEAKS = ("Errno", "codec", "NoneType", "<unicode string>", "instance of", "constrained", "tuple[", "valid tuple")


def clean(error):
    line = str(error)
    assert line.isprintable(), f"terminal codes or more than one line: {line!r}"
    assert not [word for word in LEAKS if word in line], line
    return line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a:\n\tb: 1\n", "line 2, column 1: found character '\\t' that cannot start any token; indent by blanks"),
        (b"a: [1, 2\nb: 3\n", "line 2, column 2"),
        (b"# caf\xe9\nseed: 0\n", "no text in UTF-8"),
        (b"", "holds nothing, not keys and values"),
        (b"- a\n- b\n", "holds a list, not keys and values"),
    ],
    ids=["tab", "bracket", "latin-1", "empty", "list"],
)
def test_a_config_that_is_no_yaml_mapping_is_explained(tmp_path, content, words):
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(DensekitError) as caught:
        read_yaml(tmp_path / "run.yaml")
    assert words in clean(caught.value)
    assert str(tmp_path / "run.yaml") in str(caught.value)


def test_a_folder_is_called_one(tmp_path, shapes):
    with pytest.raises(DensekitError, match="Is a directory; give a readable YAML file") as caught:
        read_yaml(tmp_path)
    clean(caught.value)
    config = runs.write_config(tmp_path / "run.yaml", runs.config_of("detection", shapes))
    for key in ("model.backbone.weights", "model.weights", "data.train.annotations"):
        line = clean(runs.refused("train", config, "--out", tmp_path / "run", f"{key}={tmp_path}").strip())
        assert f"{tmp_path}" in line
        assert "is a folder; give the " in line
    (tmp_path / "best.pt").write_bytes(b"")
    assert f"is a folder; give {tmp_path / 'best.pt'}" in runs.refused("evaluate", tmp_path)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"data": {"train": 5}}, "data.train: input should be keys and values, not 5"),
        ({"data": {"train_transforms": 5}}, "data.train_transforms: input should be a list, not 5"),
        ({"data": {"workers": 10**6}}, "data.workers: input should be less than or equal to 1024"),
    ],
)
def test_values_of_another_type_are_explained_in_words_of_yaml(shapes, tree, words):
    whole = runs.config_of("detection", shapes)
    whole["data"] |= tree["data"]
    with pytest.raises(DensekitError) as caught:
        configs.parse(whole, "run.yaml")
    assert words in clean(caught.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "Resize", "short": 0}, "t[0].short: input should be greater than or equal to 1, not 0"),
        ({"name": "Affine", "scale": "x"}, "t[0].scale: input should be a list, not 'x'"),
        ({"name": "OneOf"}, "t[0].transforms: OneOf needs a list of at least one transform"),
        ({"name": "SomeOf", "transforms": [], "n": 1}, "t[0].transforms: SomeOf needs a list of at least one"),
        ({"name": "Mosaic"}, "t[0].size must be given"),
        ({"name": "RandomCrop"}, "t[0].height must be given"),
        ({"name": "FDA", "reference_images": ["x.png"]}, "t[0]: FDA has no place in a pipeline: it needs other images"),
        ({"name": "TextImage", "font_path": "x"}, "t[0]: TextImage has no place in a pipeline: it needs other images"),
        ({"name": "CenterCrop3D", "size": [1, 1, 1]}, "t[0]: CenterCrop3D has no place in a pipeline"),
    ],
)
def test_transforms_that_can_not_be_used_are_refused_before_the_first_image(spec, words):
    with pytest.raises(DensekitError) as caught:
        Pipeline([spec], path="t")
    assert words in clean(caught.value)


def test_a_transform_that_changes_the_number_of_channels_is_refused_at_the_image():
    pipeline = Pipeline([{"name": "ToGray", "num_output_channels": 1, "p": 1}], path="t")
    sample = Sample(np.zeros((8, 9, 3), np.uint8), id="a.png", original_size=(8, 9), seed=0)
    with pytest.raises(DensekitError, match=r"t: ToGray cannot take image 'a\.png' of 8 x 9 x 3: it makes 1 channels"):
        pipeline(sample, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENAMETOOLONG, "File name too long; correct the path"),
        (errno.ENOTDIR, "Not a directory; correct the path"),
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EIO, "Input/output error; the disk or the network behind it fails"),
        (errno.EMFILE, "Too many open files; raise the limit of open files"),
    ],
)
def test_errors_of_the_system_become_one_line(monkeypatch, capsys, code, words):
    def main(argv):
        raise OSError(code, os.strerror(code), "x" * 5000)

    monkeypatch.setattr(console.os, "_exit", lambda code: None)
    with pytest.raises(SystemExit) as ended:
        console.run(main)
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert words in line
    assert len(line) < 600


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tool"])
    with pytest.raises(OSError, match="ours"):
        console.run(lambda argv: (_ for _ in ()).throw(OSError(errno.EBADF, "ours")))
