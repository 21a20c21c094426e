"""A head on a model that has learned: what rests stays to the bit, what is new becomes what it becomes alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

from densekit import Predictor
from densekit.console import INTERRUPTED
from densekit.engine.guard import Stop
from tests.tools import runs


@pytest.fixture(scope="module")
def added(checkpoints, shapes, tmp_path_factory):
    """Folder of: masks.yaml, both.yaml that the tool wrote of it, and the run ``both``."""
    folder = tmp_path_factory.mktemp("added")
    tree = runs.config_of("segmentation", shapes, steps=3)
    tree["model"]["heads"] = {"masks": tree["model"]["heads"]["main"]}
    tree["data"]["val"] = None
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


def test_the_new_head_is_that_of_a_run_of_its_own_on_the_frozen_backbone(added, checkpoints):
    tree = yaml.safe_load((added / "masks.yaml").read_text())
    tree["model"]["backbone"] |= {"weights": str(checkpoints["detection"]), "frozen_stages": 4}
    runs.write_config(added / "alone.yaml", tree)
    code, printed = runs.call("train", added / "alone.yaml", "--out", added / "alone")
    assert code == 0, printed
    alone, both = state_of(added / "alone" / "best.pt"), state_of(added / "both" / "best.pt")
    own = [key for key in alone if key.startswith("heads.masks.")]
    assert own
    for key in own:
        assert torch.equal(alone[key], both[key]), key
    first = Predictor(added / "both" / "best.pt", heads="masks").model.classes
    assert first == Predictor(added / "alone" / "best.pt").model.classes


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


def test_two_heads_of_one_name_are_refused(checkpoints, shapes, tmp_path):
    config = runs.write_config(tmp_path / "same.yaml", runs.config_of("segmentation", shapes))
    line = runs.refused("add_head", checkpoints["detection"], config, "--out", tmp_path / "both.yaml")
    assert "has a head 'main' already; name the new one otherwise" in line
    assert not (tmp_path / "both.yaml").exists()
