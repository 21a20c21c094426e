"""A head on a model that has learned: what rests stays to the bit, what is new becomes what it becomes alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

from densekit import Predictor, build
from densekit.config import parse
from densekit.config_data import named_sets
from densekit.console import INTERRUPTED
from densekit.engine.guard import Stop
from tests.tools import runs


@pytest.fixture(scope="module")
def added(checkpoints, shapes, tmp_path_factory):
    """Folder of: masks.yaml, both.yaml that the tool wrote of it, and the run ``both``."""
    folder = tmp_path_factory.mktemp("added")
    tree = runs.config_of("segmentation", shapes, steps=3)
    tree["model"]["heads"] = {"masks": tree["model"]["heads"]["main"]}
    tree["evaluation"]["metric"] = "mIoU"
    runs.write_config(folder / "masks.yaml", tree)
    code, printed = runs.call(
        "add_head", checkpoints["detection"], folder / "masks.yaml", "--out", folder / "both.yaml"
    )
    assert code == 0, printed
    code, printed = runs.call("train", folder / "both.yaml", "--out", folder / "both")
    assert code == 0, printed
    assert f"backbone, main from {checkpoints['detection']}; new: masks" in printed
    return folder


def state_of(path):
    return torch.load(path, weights_only=True)["model"]


def test_what_rests_and_its_predictions_stay_to_the_bit(added, checkpoints, shapes):
    before, after = state_of(checkpoints["detection"]), state_of(added / "both" / "best.pt")
    assert any("running_var" in key for key in before)
    for key, value in before.items():
        assert torch.equal(value, after[key]), key
    image = next((shapes / "images" / "val").glob("*.jpg"))
    old = Predictor(checkpoints["detection"])(image)
    for result in (
        Predictor(added / "both" / "best.pt")(image)["main"],
        Predictor(added / "both" / "best.pt", heads="main")(image),
    ):
        assert len(result) > 0
        assert result.names == old.names
        assert np.array_equal(result.boxes, old.boxes)
        assert np.array_equal(result.scores, old.scores)


@pytest.fixture(scope="module")
def alone(added, checkpoints):
    """The run of the new head alone on the frozen backbone."""
    tree = yaml.safe_load((added / "masks.yaml").read_text())
    tree["model"]["backbone"] |= {"weights": str(checkpoints["detection"]), "frozen_stages": 4}
    runs.write_config(added / "alone.yaml", tree)
    code, printed = runs.call("train", added / "alone.yaml", "--out", added / "alone")
    assert code == 0, printed
    return added / "alone" / "best.pt"


def test_the_new_head_is_that_of_a_run_of_its_own_on_the_frozen_backbone(added, alone):
    alone, both = state_of(alone), state_of(added / "both" / "best.pt")
    own = [key for key in alone if key.startswith("heads.masks.")]
    assert own
    for key in own:
        assert torch.equal(alone[key], both[key]), key


def test_a_head_is_joined_to_a_checkpoint_whose_own_head_stays(added, alone, checkpoints, shapes, tmp_path):
    old, out = checkpoints["detection"], tmp_path / "both.pt"
    code, printed = runs.call("join_head", alone, "--to", old, "--name", "tissue", "--out", out)
    assert code == 0, printed
    assert f"{old} with the heads main, tissue" in printed
    image = next((shapes / "images" / "val").glob("*.jpg"))
    found, boxes, masks = Predictor(out)(image), Predictor(old)(image), Predictor(alone)(image)
    assert len(boxes) > 0
    assert np.array_equal(found["main"].boxes, boxes.boxes)
    assert np.array_equal(found["tissue"].masks, masks.masks)
    assert [found[head].classes for head in ("main", "tissue")] == [boxes.classes, masks.classes]
    code, printed = runs.call("evaluate", out, "--json", tmp_path / "both.json", "--bootstrap", 0)
    assert code == 0, printed
    numbers = json.loads((tmp_path / "both.json").read_text())
    for checkpoint, name, head in ((old, "AP", "main"), (alone, "mIoU", "tissue")):
        assert runs.call("evaluate", checkpoint, "--json", tmp_path / "one.json", "--bootstrap", 0)[0] == 0
        assert numbers[f"{head}.{name}"] == json.loads((tmp_path / "one.json").read_text())[name]


def test_a_head_of_another_backbone_or_of_a_taken_name_is_not_joined(added, checkpoints, tmp_path):
    def refused(*arguments):
        return runs.refused("join_head", *arguments, "--out", tmp_path / "both.pt")

    segmenter, detector = checkpoints["segmentation"], checkpoints["detection"]
    line = refused(segmenter, "--to", detector, "--name", "masks")
    assert "stand on other backbones (backbone." in line
    assert "has a head 'main' already; give the one that is joined another by --name" in refused(
        segmenter, "--to", detector
    )
    assert "--name" in refused(segmenter, "--name", "masks")
    assert not (tmp_path / "both.pt").exists()


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(added, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "asked", lambda self: True)
        assert runs.call("train", added / "both.yaml", "--out", added / "resumed")[0] == INTERRUPTED
    code, printed = runs.call("train", added / "both.yaml", "--out", added / "resumed", "--resume")
    assert code == 0, printed
    assert "going on from step 1 of 3" in printed
    runs.assert_same_run(added / "both", added / "resumed")


def test_a_backbone_that_learns_along_is_told_to_change_the_heads_that_rest(added, checkpoints):
    code, printed = runs.call(
        "train", added / "both.yaml", "--out", added / "moved", "train.steps=1", "model.backbone.frozen_stages=0"
    )
    assert code == 0, printed
    assert "model.frozen_heads: the backbone learns, so the predictions of main will change" in printed
    before, after = state_of(checkpoints["detection"]), state_of(added / "moved" / "best.pt")
    assert not torch.equal(before["backbone.conv1.weight"], after["backbone.conv1.weight"])
    assert all(torch.equal(v, after[k]) for k, v in before.items() if k.startswith("heads.main."))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.frozen_heads=[mian]"], "model.frozen_heads: there is no head 'mian'; did you mean 'main'"),
        (["model.frozen_heads=[main,masks]"], "model.frozen_heads: all heads are frozen"),
        (["model.weights=null"], "model.frozen_heads: 'main' would stay random; set model.weights"),
    ],
)
def test_what_cannot_rest_is_said_in_one_line(added, overrides, message, tmp_path):
    assert message in runs.refused("train", added / "both.yaml", "--out", tmp_path / "run", *overrides)


def test_names_are_matched_with_the_heads_that_the_checkpoint_has(added):
    tree = yaml.safe_load((added / "both.yaml").read_text())
    for data in named_sets(tree["data"]).values():
        data["match_names"] = True
    config = parse(tree, "test")
    names = [build.dataset(config.of_set(name), "train", training=True).classes.names for name in config.taught]
    assert [own[0] for own in names] == ["background"]


def test_a_checkpoint_without_any_of_the_models_heads_is_told_with_its_own(added, checkpoints, tmp_path):
    given = f"model.weights={checkpoints['detection']}"
    line = runs.refused("train", added / "masks.yaml", "--out", tmp_path / "run", given, "data.match_names=true")
    assert f"model.weights: {checkpoints['detection']} has the head main, and the model masks; name a head as " in line


def test_two_heads_of_one_name_are_refused(checkpoints, shapes, tmp_path):
    config = runs.write_config(tmp_path / "same.yaml", runs.config_of("segmentation", shapes))
    line = runs.refused("add_head", checkpoints["detection"], config, "--out", tmp_path / "both.yaml")
    assert "has a head 'main' already; name the new one otherwise" in line
    assert not (tmp_path / "both.yaml").exists()
