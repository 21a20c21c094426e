"""``train.batch_size=auto``: the recipe's batch, in parts that fit."""

from __future__ import annotations

import yaml

from densekit import config as configs
from densekit.forecast import fit
from densekit.forecast.memory import Study
from tests.forecast.test_forecast import TREE, config_of
from tests.tools import runs

GIB = 2**30


def test_auto_keeps_the_recipes_batch_and_stands_for_eight_images_without_one():
    recipe = config_of(**{**TREE, "batch_size": 6})
    chosen = configs.override(recipe, ["train.batch_size=auto"]).train
    assert (chosen.batch_size, chosen.fit_memory) == (6, True)
    alone = config_of(**{**TREE, "batch_size": "auto"}).train
    assert (alone.batch_size, alone.fit_memory) == (8, True)
    assert not recipe.train.fit_memory


def test_a_run_takes_the_fewest_parts_that_fit_and_goes_on_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "memory", lambda self, config: 8 * GIB // config.train.accumulate)
    monkeypatch.setattr(Study, "fixed", lambda self, config: 0)
    monkeypatch.setattr(fit, "room_on", lambda device: 5 * GIB)
    data = runs.make_data(tmp_path / "shapes")
    tree = runs.config_of("classification", data, steps=1, accumulate=1)
    del tree["data"]["val"]
    config, out = runs.write_config(tmp_path / "run.yaml", tree), tmp_path / "run"
    code, shown = runs.call("train", config, "--out", out, "train.batch_size=auto")
    assert code == 0
    assert "train.batch_size: 4 images a step, in 2 parts of 2 each" in shown
    saved = yaml.safe_load((out / "config.yaml").read_text())["train"]
    assert (saved["batch_size"], saved["accumulate"]) == (4, 2)
    monkeypatch.setattr(fit, "room_on", lambda device: GIB)
    assert runs.call("train", config, "--out", out, "--resume", "train.batch_size=auto")[0] == 0
    refused = runs.refused("train", config, "--out", tmp_path / "other", "train.batch_size=auto")
    assert "not even one image fits into 0.9 GiB" in refused
