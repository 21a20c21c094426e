"""One file of several heads: checked by each head's own number, and used in the place of its checkpoint."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch

from densekit import Predictor, build
from densekit import config as configs
from densekit.checked_sets import checked_on
from densekit.engine import distributed
from densekit.export.check import compare, together
from densekit.export.model import ExportedModel
from densekit.infer.results import MaskResult
from densekit.learning_sets import open_measured
from densekit.types import Batch
from tests.tools import joint, runs

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def tree(shapes):
    """Of masks and of kinds of images, each from a data set of its own."""
    tree, kinds = (runs.config_of(task, shapes) for task in ("segmentation", "classification"))
    tree["model"]["heads"] = {"masks": tree["model"]["heads"]["main"], "kind": kinds["model"]["heads"]["main"]}
    tree["data"] = {
        "of_masks": {**tree["data"], "heads": ["masks"]},
        "of_kind": {**kinds["data"], "heads": ["kind"]},
    }
    return tree


@pytest.fixture(scope="module")
def checkpoint(tree, tmp_path_factory):
    """Random weights in the classes of the shapes."""
    path = tmp_path_factory.mktemp("joint") / "both.pt"
    joint.write_joint(path, tree, joint.classes_in(tree))
    return path


@pytest.fixture(scope="module")
def exported(checkpoint):
    """The file of both heads, and what the tool said."""
    code, said = runs.call("export_model", checkpoint)
    assert code == 0, said
    return checkpoint.with_suffix(".onnx"), said


def batch_of(height, width):
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[height, width]] * 2)
    return Batch(images, sizes, 2 * sizes, [1, 2], torch.zeros(2, dtype=torch.int64), pad_to=32)


def test_a_file_gives_what_all_heads_give_from_one_run_and_knows_their_classes(checkpoint, exported, monkeypatch):
    file, _ = build.from_checkpoint(exported[0])
    model, _ = build.from_checkpoint(checkpoint)
    batch, runs_of_file = batch_of(40, 33), []
    plain = type(file.file.runner).__call__
    monkeypatch.setattr(type(file.file.runner), "__call__", lambda *a: (runs_of_file.append(1), plain(*a))[1])
    with torch.no_grad():
        found, wanted = file.predict_all(batch), model.predict_all(batch)
    assert len(runs_of_file) == 1
    torch.testing.assert_close(found["kind"].probabilities, wanted["kind"].probabilities, atol=1e-5, rtol=1e-5)
    assert torch.equal(found["kind"].labels, wanted["kind"].labels)
    for mine, theirs in zip(found["masks"].probabilities, wanted["masks"].probabilities, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert file.classes_by_head == model.classes_by_head
    assert list(file.notes["heads"]) == ["masks", "kind"]
    assert file.notes["check"]["numbers"].keys() == {"masks.mIoU", "kind.top1"}
    assert "masks.mIoU " in exported[1]


def test_a_file_is_measured_and_predicts_as_its_checkpoint(checkpoint, exported, shapes, tmp_path):
    code, said = runs.call("evaluate", exported[0], "--bootstrap", 0, "--json", tmp_path / "numbers.json")
    assert code == 0, said
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    of_model = {name: pair[0] for name, pair in build.from_checkpoint(exported[0])[0].notes["check"]["numbers"].items()}
    assert {name: pytest.approx(numbers[name], abs=1e-6) for name in of_model} == of_model
    assert "loss" not in numbers
    photo = min((shapes / "images" / "val").iterdir())
    code, said = runs.call("predict", exported[0], photo, "--out", tmp_path / "out", "--no-pictures")
    assert code == 0, said
    assert {entry.name for entry in (tmp_path / "out").iterdir()} >= {"kind", "masks", "images.json"}
    alone, wanted = (Predictor(path, heads="masks")(photo) for path in (exported[0], checkpoint))
    assert isinstance(alone, MaskResult)
    assert np.array_equal(alone.masks, wanted.masks)


def test_a_detector_among_several_heads_is_read_under_its_name_and_by_its_calibration():
    held = {"temperatures": [2.0], "cuts": [0.3, 0.4], "rule": "F1", "split": "val", "before": 0.2, "after": 0.1}
    notes = {
        "format": 2,
        "heads": {
            "kind": {"task": "classification", "classes": {"names": ["a", "b"], "ids": [1, 2]}},
            "cells": {
                "task": "detection", "classes": {"names": ["c", "d"], "ids": [17, 90]}, "calibration": held
            },
        },
        "channels": 3,
        "normalize": {"mean": [0.4], "std": [0.2]},
        "input": "uint8",
    }  # fmt: skip
    outputs = {
        "kind.probabilities": torch.tensor([[0.2, 0.8], [0.9, 0.1]]),
        "cells.boxes": torch.tensor([[[1.0, 2, 3, 4]]] * 2),
        "cells.scores": torch.tensor([[0.5], [0.6]]),
        "cells.class_ids": torch.tensor([[90], [17]]),
        "cells.valid": torch.tensor([[True], [True]]),
    }
    model = ExportedModel(lambda images: outputs, notes)
    found = model.predict_all(batch_of(8, 8))
    assert found["kind"].labels.tolist() == [2, 1]
    assert found["cells"].labels.tolist() == [[90], [17]]
    assert found["cells"].boxes[0, 0].tolist() == [2, 4, 6, 8]  # in the pixels of images that were halved
    assert model.calibrations.keys() == {"cells"}


def test_a_head_that_differs_is_told_by_its_own_number_and_one_without_labels_by_its_agreement(checkpoint):
    model, config = build.from_checkpoint(checkpoint)
    other, _ = build.from_checkpoint(checkpoint)
    for parameter in other.heads["masks"].parameters():
        parameter.data.neg_()
    world = distributed.join("cpu")
    sets = functools.partial(open_measured, match_names=False)
    places, _ = checked_on(sets(config, model, "val"), model, world)
    checked = together([compare(model, other, place) for place in places])
    assert checked.numbers["kind.top1"][0] == checked.numbers["kind.top1"][1]
    assert checked.apart == abs(checked.numbers["masks.mIoU"][0] - checked.numbers["masks.mIoU"][1]) > 0
    assert checked.images == 10
    places, _ = checked_on(sets(config.of_heads(["kind"]), model, "val"), model, world)
    numbers = compare(model, other, *places).numbers
    assert numbers["kind.top1"][0] == numbers["kind.top1"][1]
    assert numbers["masks.agreement"][1] < 1


@pytest.mark.parametrize("weights", [{"kind": 2.0}, "uncertainty"])
def test_one_head_of_several_has_a_config_of_its_own(tree, weights):
    own = configs.parse({**tree, "train": {**tree["train"], "loss_weights": weights}}, "test").of_heads(["masks"])
    read = configs.parse(own.model_dump(mode="json"), "the config of a file")
    assert list(read.sets) == ["of_masks"]
    assert read.learning == ("masks",)


def test_heads_that_see_images_in_another_way_are_not_exported_together(tmp_path, checkpoint):
    line = runs.refused("export_model", checkpoint, "data.of_kind.pad_to=64", "--out", tmp_path / "a.pt2")
    assert "data.of_masks.pad_to is not data.of_kind.pad_to" in line
    assert "choose by --head kind" in line
