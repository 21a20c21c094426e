"""What a run on several data sets will take, and its batch in parts that fit."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest
import torch

from densekit import build, learning_sets
from densekit import config as configs
from densekit.engine.distributed import World
from densekit.engine.plan import Plan
from densekit.errors import DensekitError
from densekit.forecast import fit, forecast
from densekit.forecast.loading import Look
from densekit.forecast.memory import Study, study
from densekit.forecast.remedies import least_accumulate
from densekit.forecast.replay import Timed
from densekit.forecast.steps import Seen
from densekit.forecast.trace import Trace
from densekit.model import DenseModel
from densekit.registry import HEADS
from densekit.training import train_step
from densekit.types import Classes, Sample
from tests.engine.parts import Stages
from tests.tools import runs

CPU = torch.device("cpu")
WORLD = World(0, 1, 1, CPU)
GIB = 2**30
OF_KINDS = Look([Sample(np.zeros((64, 64, 3), np.uint8), 0, (64, 64), seed=1, target=1)], 0.01)
OF_SCANS = Look(
    [Sample(np.zeros((*size, 3), np.uint8), 0, size, seed=1, target=1) for size in ((64, 128), (64, 64))], 0.03
)


def config_of(**train):
    part = {"train": {"name": "image_folder"}, "workers": 0}
    tree = {
        "model": {
            "backbone": {"name": "resnet8"},
            "heads": {"kind": {"name": "classifier"}, "organ": {"name": "classifier"}},
        },
        "data": {
            "kinds": {**part, "heads": ["kind"], "share": 3, "aspect_grouping": False},
            "scans": {**part, "heads": ["organ"]},
        },
        "train": {"steps": 9, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1}, **train},
    }
    return configs.parse(tree, "it")


def model_of():
    trunk = Stages()
    heads = {name: HEADS.build("classifier", {}, trunk.levels, num_classes=3) for name in ("kind", "organ")}
    return DenseModel(trunk, heads, mean=(0.5,), std=(0.25,), classes=Classes(("a", "b", "c"), (0, 1, 2)))


def study_of(config, *names):
    looks = {"kinds": OF_KINDS, "scans": OF_SCANS}
    sets = {name: learning_sets.LearningSet(name, config.of_set(name), None, None) for name in looks}
    seen = [Seen(sets[name], looks[name]) for name in names or looks]
    return study(config, model_of(), seen, WORLD, "fp32")


def test_a_step_takes_its_part_of_each_set_or_all_of_one_in_turn():
    config = config_of()
    ((kinds, scans),) = study_of(config).steps(config)
    assert [len(part.batch.ids) for part in (kinds, scans)] == [6, 2]
    assert (scans.batch.heads, scans.batch.data_set) == (("organ",), "scans")
    assert scans.batch.images.shape == (2, 3, 64, 128)
    config = config_of(mixing="turn", accumulate=2)
    steps = study_of(config).steps(config)
    assert [[(part.images, part.often) for part in parts] for parts in steps] == [[(4, 0.75)], [(4, 0.25)]]


def test_the_peak_of_a_step_over_both_sets_is_near_that_of_a_real_one():
    config = config_of()
    known = study_of(config)
    traced = known.trace(config_of(norm_statistics="frozen"))  # weights to start from are not looked for
    batches = [part.batch for (parts,) in [known.steps(config)] for part in parts]
    step = train_step(config, model_of(), Plan(9, 3, 9, "loss"), WORLD, "fp32")
    step(batches, 0)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as watched:
        step(batches, 1)
    events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    most = max(np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]))
    assert 0.9 * most <= traced.peak - traced.kept < 1.35 * most


def test_in_turn_the_largest_of_the_sets_is_what_counts():
    config = config_of(mixing="turn")
    alone, both = study_of(config, "scans").trace(config), study_of(config).trace(config)
    of_kinds, of_scans, of_alone = (
        {one: count for one, count in operations.items() if one.function._opname == "convolution"}
        for operations in (*both.operations, *alone.operations)
    )
    assert of_scans == of_alone != of_kinds
    assert alone.peak <= both.peak <= alone.peak + 8 * 3 * 64 * 64 + 10_000  # the other batch is held beside it


def test_time_is_that_of_an_average_step_and_of_all_images_that_are_read(monkeypatch):
    monkeypatch.setattr(forecast, "seconds_of", lambda calls, device: Timed(sum(calls.values()), 0, 1))
    for mixing, wanted in (("turn", 0.75 * 4 + 0.25 * 8 * 0.75), ("share", 12 * (6 + 4 * 0.75) / 10)):
        config = config_of(mixing=mixing)
        known = study_of(config)
        counts = [Counter(a=4), Counter(b=8)] if mixing == "turn" else [Counter(a=4, b=8)]
        of_average = {"kinds": 1.0, "scans": 0.75}
        steps = [
            [dataclasses.replace(part, area=of_average[part.seen.data.name]) for part in parts]
            for parts in known.steps(config)
        ]
        assert forecast._compute(known, config, steps, Trace(0, 0, 0, counts)) == pytest.approx(wanted)
        assert forecast._with_images(config, 1.0, steps, WORLD) == pytest.approx(1 + 6 * 0.01 + 2 * 0.03)


def test_parts_are_only_so_small_that_each_set_has_an_image_in_them(monkeypatch):
    monkeypatch.setattr(Study, "memory", lambda self, config: 8 * GIB // config.train.accumulate)
    monkeypatch.setattr(Study, "fixed", lambda self, config: 0)
    for mixing, least in (("share", 4), ("turn", 8)):
        config = config_of(mixing=mixing)
        assert least_accumulate(study_of(config), config, 8 * GIB // least) == (least, 8 * GIB // least)
        assert least_accumulate(study_of(config), config, 8 * GIB // least - 1) is None


def test_a_run_on_two_sets_takes_the_fewest_parts_that_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "memory", lambda self, config: 8 * GIB // config.train.accumulate)
    monkeypatch.setattr(Study, "fixed", lambda self, config: 0)
    tree = runs.config_of("joint", runs.make_data(tmp_path / "shapes"), accumulate=1, fit_memory=True)
    sets = learning_sets.open_sets(config := configs.parse(tree, "it"))
    model, _ = build.model(config, learning_sets.classes_of(sets))

    def fitted(config):
        return fit.fitted_plan(config, model, sets, WORLD, "fp32", tmp_path / "run")

    monkeypatch.setattr(fit, "room_on", lambda device: 5 * GIB)
    config, plan, (line,) = fitted(config)
    assert (config.train.accumulate, plan.steps) == (2, 9)
    assert line == "train.batch_size: 4 images a step, in 2 parts of 2 each"
    monkeypatch.setattr(fit, "room_on", lambda device: GIB)
    with pytest.raises(DensekitError, match=r"not even one image of each data set fits into 0.9 GiB"):
        fitted(config)
    with pytest.raises(DensekitError, match="1 images can't be taken from 2 data sets"):
        fitted(configs.override(config, ["train.batch_size=1", "train.accumulate=1"]))


def test_the_tool_tells_what_a_step_takes_of_each_set(tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "trace", lambda self, config: Trace(0, 0, 0, [Counter()]))
    tree = runs.config_of("joint", runs.make_data(tmp_path / "shapes"), batch_size=8)
    tree["data"]["of_boxes"]["share"] = 3
    code, said = runs.call("plan", runs.write_config(tmp_path / "run.yaml", tree), "--gpu", "24GB")
    assert code == 0, said
    wanted = r"batch    3 images of of_boxes of up to \d+ x \d+ and 1 images of of_masks of up to \d+ x \d+ pixels"
    assert re.search(wanted, said), said
