"""One file of several heads: checked by each head's own number, and used in the place of its checkpoint."""

from __future__ import annotations

import functools
import json

import pytest
import torch

from densekit import Predictor, build
from densekit import config as configs
from densekit.checked_sets import checked_on
from densekit.engine import distributed
from densekit.export.check import compare, together
from densekit.infer.results import MaskResult
from densekit.learning_sets import open_measured
from densekit.types import Batch
from tests.tools import joint, runs


@pytest.fixture(scope="module")
def tree(shapes):
    """Of boxes and masks, each from a data set of its own."""
    tree = runs.config_of("joint", shapes)
    tree["model"]["heads"]["boxes"]["score_threshold"] = 0.0
    return tree


@pytest.fixture(scope="module")
def checkpoint(tree, tmp_path_factory):
    """Random weights in the classes of the shapes."""
    config = configs.parse(tree, "test")
    classes = {}
    for own in map(config.of_set, config.sets):
        classes |= build.classes_of(own, build.dataset(own, "val", training=False))
    path = tmp_path_factory.mktemp("joint") / "both.pt"
    joint.write_joint(path, tree, classes)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint):
    """The file of both heads, and what the tool said."""
    code, said = runs.call("export_model", checkpoint, "--format", "torch")
    assert code == 0, said
    return checkpoint.with_suffix(".pt2"), said


def test_a_file_has_all_heads_to_the_bit_from_one_run_and_knows_their_classes(checkpoint, exported, monkeypatch):
    file, _ = build.from_checkpoint(exported[0])
    model, _ = build.from_checkpoint(checkpoint)
    sizes = torch.tensor([[40, 33], [40, 33]])
    images = torch.randint(0, 256, (2, 3, 40, 33), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, sizes, 2 * sizes, [1, 2], torch.zeros(2, dtype=torch.int64), pad_to=32)
    runs_of_file = []
    plain = type(file.file.runner).__call__
    monkeypatch.setattr(type(file.file.runner), "__call__", lambda *a: (runs_of_file.append(1), plain(*a))[1])
    with torch.no_grad():
        found, wanted = file.predict_all(batch), model.predict_all(batch)
    assert len(runs_of_file) == 1
    assert found["boxes"].valid.any()
    for name in ("boxes", "scores", "labels", "valid"):
        assert torch.equal(getattr(found["boxes"], name), getattr(wanted["boxes"], name)), name
    for mine, theirs in zip(found["masks"].probabilities, wanted["masks"].probabilities, strict=True):
        assert torch.equal(mine, theirs)
    assert file.classes_by_head == model.classes_by_head
    assert list(file.notes["heads"]) == ["boxes", "masks"]
    assert file.notes["check"]["numbers"].keys() == {"boxes.AP", "masks.mIoU"}
    assert "masks.mIoU " in exported[1]


def test_a_file_is_measured_and_predicts_as_its_checkpoint(checkpoint, exported, shapes, tmp_path):
    numbers = []
    for path in (checkpoint, exported[0]):
        code, said = runs.call("evaluate", path, "--bootstrap", 0, "--json", tmp_path / "numbers.json")
        assert code == 0, said
        numbers.append(json.loads((tmp_path / "numbers.json").read_text()))
    for name in ("boxes.AP", "boxes.AR100", "masks.mIoU"):
        assert numbers[1][name] == pytest.approx(numbers[0][name], abs=1e-6)
    assert "loss" not in numbers[1]
    photos = shapes / "images" / "val"
    code, said = runs.call("predict", exported[0], photos, "--out", tmp_path / "out", "--no-pictures")
    assert code == 0, said
    assert {entry.name for entry in (tmp_path / "out").iterdir()} >= {"boxes", "masks", "images.json"}
    alone = Predictor(exported[0], heads="masks")(sorted(photos.iterdir())[0])
    assert isinstance(alone, MaskResult)


def test_a_head_that_differs_is_told_by_its_own_number_and_one_without_labels_by_its_agreement(checkpoint):
    model, config = build.from_checkpoint(checkpoint)
    other, _ = build.from_checkpoint(checkpoint)
    for parameter in other.heads["masks"].parameters():
        parameter.data.neg_()
    world = distributed.join("cpu")
    sets = functools.partial(open_measured, match_names=False)
    places, _ = checked_on(sets(config, model, "val"), model, world)
    checked = together([compare(model, other, place) for place in places])
    assert checked.numbers["boxes.AP"][0] == checked.numbers["boxes.AP"][1]
    assert checked.apart == abs(checked.numbers["masks.mIoU"][0] - checked.numbers["masks.mIoU"][1]) > 0
    assert checked.images == 10
    places, _ = checked_on(sets(config.of_heads(["boxes"]), model, "val"), model, world)
    numbers = compare(model, other, *places).numbers
    assert numbers["boxes.AP"][0] == numbers["boxes.AP"][1]
    assert numbers["masks.agreement"][1] < 1


def test_one_head_of_several_has_a_config_of_its_own(tree, tmp_path, checkpoint):
    own = configs.parse({**tree, "train": {**tree["train"], "loss_weights": {"boxes": 2.0}}}, "test").of_heads(
        ["masks"]
    )
    read = configs.parse(own.model_dump(mode="json"), "the config of a file")
    assert list(read.sets) == ["of_masks"]
    assert read.learning == ("masks",)
    line = runs.refused("export_model", checkpoint, "data.of_masks.pad_to=64", "--out", tmp_path / "a.pt2")
    assert "data.of_boxes.pad_to is not data.of_masks.pad_to" in line
    assert "choose by --head masks" in line
