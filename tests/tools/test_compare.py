"""compare.py: which of two runs is better, on the same images; what can't be compared is one line."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from densekit.comparison import Difference, compare, grouped, verdict
from densekit.errors import DensekitError
from tests.metrics.test_intervals import classifier
from tests.tools import runs


def measured(metric, seed=0, rate=0.1):
    config = SimpleNamespace(model_dump=lambda mode: {"seed": seed, "train": {"lr": rate}})
    return SimpleNamespace(resampler=metric and metric.resampler(), config=config, path=f"{rate}/{seed}")


def test_a_run_against_itself_shows_no_difference_and_a_worse_one_is_worse(checkpoints, tmp_path):
    best = checkpoints["segmentation"]
    code, printed = runs.call("compare", best.parent, best, "--bootstrap", 20, "--json", tmp_path / "d.json")
    assert code == 0, printed
    assert printed.splitlines()[-1].startswith("no difference is shown: B - A is +0.0000 mIoU")
    numbers = {tuple(row["name"]): row for row in json.loads((tmp_path / "d.json").read_text())["numbers"]}
    assert numbers["mIoU",]["between"] == [0, 0]
    assert numbers["mIoU",]["by"] == 0

    content = torch.load(best, weights_only=True)
    for name, value in content["model"].items():
        if name.startswith("heads.main") and value.is_floating_point():
            value.neg_()
    (tmp_path / "worse.pt").parent.mkdir(exist_ok=True)
    torch.save(content, tmp_path / "worse.pt")
    assert runs.call("compare", best, tmp_path / "worse.pt", "--bootstrap", 20, "--json", tmp_path / "w.json")[0] == 0
    assert json.loads((tmp_path / "w.json").read_text())["numbers"][0]["by"] != 0


def test_the_interval_of_a_difference_is_that_of_the_images_on_which_the_two_differ():
    first, labels, guesses = classifier(300, seed=1)
    second, _, others = classifier(300, seed=1)
    rows = second.state()
    for i in range(40):  # B is right in the first forty images, whatever A is
        rows[i] = (rows[i][0], rows[i][0], 0)
    gained = np.zeros(300)
    gained[:40] = labels[:40] != guesses[:40]
    (top1, *_) = compare([measured(first)], [measured(second)], count=4000, seed=0)
    assert top1.name == ("top1",)
    assert top1.by == pytest.approx(gained.mean())
    half = 1.96 * gained.std() / 300**0.5
    assert top1.between == pytest.approx([gained.mean() - half, gained.mean() + half], abs=0.004)
    assert verdict([top1], "top1").startswith("B is better by")
    assert np.array_equal(guesses, others)


def test_seeds_of_one_config_are_grouped_averaged_and_drawn():
    metrics = [classifier(60, seed=seed)[0] for seed in range(4)]
    for metric in metrics[1:]:
        for i, row in metric.state().items():
            metric.state()[i] = (metrics[0].state()[i][0], *row[1:])
    made = [measured(metrics[i], seed=i % 2, rate=0.1 if i < 2 else 0.2) for i in range(4)]
    first, second = grouped(made)
    assert [[one.path for one in group] for group in (first, second)] == [["0.1/0", "0.1/1"], ["0.2/0", "0.2/1"]]
    found = {one.name: one for one in compare(first, second, count=200, seed=0)}
    tops = [np.mean([rank == 0 for _, _, rank in m.state().values()]) for m in metrics]
    assert found["top1",].first == pytest.approx(np.mean(tops[:2]))
    alone = {one.name: one for one in compare(first[:1], first[1:], count=200, seed=0)}
    assert alone["top1",].by == pytest.approx(tops[1] - tops[0])


def test_three_runs_of_three_configs_are_no_two_models():
    made = [measured(None, rate=rate) for rate in (0.1, 0.2, 0.3)]
    with pytest.raises(DensekitError, match="3 configs among 3 runs"):
        grouped(made)


def test_words_of_the_verdict():
    def said(by, low, high):
        return verdict([Difference(("AP",), 0.5, 0.5 + by, [low, high])], "AP")

    assert said(0.012, 0.004, 0.020) == "B is better by 0.0120 AP, 95 % between 0.0040 and 0.0200"
    assert said(-0.012, -0.020, -0.004) == "B is worse by 0.0120 AP, 95 % between 0.0040 and 0.0200"
    assert said(0.01, -0.01, 0.03) == "no difference is shown: B - A is +0.0100 AP, 95 % between -0.0100 and +0.0300"
    assert "not defined" in verdict([Difference(("AP",), None, None, None)], "AP")


def test_what_cant_be_compared_is_one_line(checkpoints, shapes, tmp_path):
    detector, segmenter = checkpoints["detection"], checkpoints["segmentation"]
    assert "a comparison is of two runs" in runs.refused("compare", detector)
    assert "one does detection, the other segmentation" in runs.refused("compare", detector, segmenter)
    assert "holds no best.pt" in runs.refused("compare", detector, tmp_path)
