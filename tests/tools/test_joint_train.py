"""Two heads from two data sets that never met, in one run, through the tools."""

from __future__ import annotations

import json

import pytest
import torch

from densekit import build, learning_sets
from densekit.config import parse
from densekit.errors import DensekitError
from densekit.types import Classes
from tests.tools import joint, runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shapes):
    """A run of two steps, chosen by the mean gain over baselines."""
    folder = tmp_path_factory.mktemp("joint")
    tree = runs.config_of("joint", shapes, steps=2, loss_weights={"masks": 0.5})
    tree["evaluation"] |= {"baselines": {"masks.mIoU": 0.5, "masks.dice": 0.25}, "pictures": 1}
    config = runs.write_config(folder / "run.yaml", tree)
    code, printed = runs.call("train", config, "--out", folder / "run")
    assert code == 0, printed
    return folder / "run", printed


def test_each_head_has_its_losses_its_numbers_and_its_classes(trained):
    out, printed = trained
    train, *_, val = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"boxes.class", "masks.dice"} <= train.keys()
    assert train["loss"] == pytest.approx(sum(v for k, v in train.items() if k.startswith(("boxes.", "masks."))))
    assert {"boxes.AP", "masks.mIoU", "masks.per_class"} <= val.keys()
    gain = ((val["masks.mIoU"] / 0.5 - 1) + (val["masks.dice"] / 0.25 - 1)) / 2
    assert torch.load(out / "best.pt", weights_only=True)["numbers"]["masks.mIoU"] == val["masks.mIoU"]
    assert f"gain {gain:.4f} (the best so far)" in printed
    model, _ = build.from_checkpoint(out / "best.pt")
    assert model.classes_of("boxes").ids == (2, 5, 7, 11)
    assert model.classes_of("masks").names[0] == "background"
    for name in ("train_batch_of_boxes_0.jpg", "train_batch_of_masks_0.jpg", "masks.confusion.png"):
        assert (out / name).is_file(), name
    assert {path.name for path in (out / "samples").iterdir()} == {"boxes", "masks"}


def test_evaluation_gives_the_numbers_of_the_run_for_every_head(trained, tmp_path):
    out, _ = trained
    code, printed = runs.call("evaluate", out / "best.pt", "--json", tmp_path / "n.json", "--bootstrap", 0)
    assert code == 0, printed
    found = json.loads((tmp_path / "n.json").read_text())
    held = torch.load(out / "best.pt", weights_only=True)["numbers"]
    for name in ("boxes.AP50", "masks.mIoU", "masks.pixel_accuracy", "loss"):
        assert found[name] == pytest.approx(held[name], nan_ok=True), name
    assert "boxes: all classes" in printed
    assert "masks: per class" in printed


def test_a_bad_step_of_two_heads_is_replayed_and_frozen_statistics_stay(trained, tmp_path):
    out, _ = trained
    given = ["model.weights=" + str(out / "best.pt"), "train.norm_statistics=frozen", "train.loss_weights=uncertainty"]
    given += ["train.optimizer={name: sgd, lr: 1e25}", "train.schedule={name: constant}", "train.clip=null"]
    line = runs.refused("train", out / "config.yaml", "--out", tmp_path / "run", *given)
    assert "step 1: the loss or its gradient is not finite (boxes." in line
    (bundle,) = (tmp_path / "run").glob("bundle_*.pt")
    code, printed = runs.call("replay", bundle)
    assert code == 0, printed
    assert "first not finite: forward backbone." in printed
    assert "masks.dice" in printed
    before, after = (torch.load(path, weights_only=True)["model"] for path in (out / "best.pt", bundle))
    means = [name for name in before if name.startswith("backbone.") and name.endswith("running_mean")]
    assert means
    assert all(torch.equal(before[name], after[name]) for name in means)
    assert not torch.equal(before["backbone.bn1.weight"], after["backbone.bn1.weight"])
    train = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert train["weights"] == {"boxes": 1.0, "masks": 1.0}


def change(tree, key, value):
    *parents, last = key.split("/")
    for part in parents:
        tree = tree[part]
    tree[last] = value


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("data/of_boxes/heads", ["boxs"], "data.of_boxes.heads: there is no head 'boxs'; did you mean 'boxes'"),
        ("data/of_masks/heads", ["boxes"], "model.heads.masks: no data set trains it; add 'masks' to the heads of one"),
        (
            "data/of_masks/heads",
            ["boxes", "masks"],
            "data.of_masks.train: it has labels for segmentation, and the head",
        ),
        ("train/loss_weights", {"mask": 1.0}, "train.loss_weights: there is no head 'mask'; did you mean 'masks'"),
        ("train/batch_size", 2, "= 1 images can't be taken from 2 data sets; make it at least 2, or set train.mixing"),
        ("evaluation/metric", "AP", "evaluation.metric: detection and segmentation has no number 'AP'; "),
        ("evaluation/baselines", {"masks.miou": 1}, "evaluation.baselines: .* no number 'masks.miou'; did you mean"),
        ("data/of_boxes/trian", {}, "data.of_boxes.trian: there is no such key; did you mean 'train'"),
    ],
)
def test_what_does_not_fit_together_is_told_in_one_line(tmp_path, shapes, key, value, words):
    tree = runs.config_of("joint", shapes)
    change(tree, key, value)
    line = runs.refused("train", runs.write_config(tmp_path / "run.yaml", tree), "--out", tmp_path / "run")
    assert all(part in line for part in words.split(" .* "))
    assert not (tmp_path / "run").exists()


GRADNORM = "train.loss_weights={name: gradnorm, alpha: 0.5}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([GRADNORM, "train.mixing=turn"], "with train.mixing=turn those of data.of_boxes learn alone; set mixing"),
        ([GRADNORM, "train.optimizer.backbone_lr=0"], "what the heads do to the backbone, and nothing of it learns"),
        ([GRADNORM, "train.compile=true"], "train.compile=true: train.loss_weights gradnorm takes gradients out of"),
        (["train.norm_statistics=frozen"], "keeps the statistics of given weights, and the backbone starts at random"),
        (["train.norm_statistics=frozen", "model.backbone.norm=group"], "resnet8 has no batch norm whose statistics"),
        (["train.norm_statistics=each", "model.backbone.norm=group"], "resnet8 has no batch norm whose statistics"),
    ],
)
def test_what_can_not_be_learned_is_refused_before_the_run(tmp_path, shapes, overrides, words):
    config = runs.write_config(tmp_path / "run.yaml", runs.config_of("joint", shapes))
    assert words in runs.refused("train", config, "--out", tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("uncertainity", "train.loss_weights.name: input should be 'uncertainty' or 'gradnorm', not 'uncertainity'"),
        (
            {"name": "gradnorm", "alpha": -1},
            "train.loss_weights.alpha: input should be greater than or equal to 0, not",
        ),
        ({"name": "gradnorm", "alfa": 1}, "train.loss_weights.alfa: there is no such key; did you mean 'alpha'"),
        ({"name": "uncertainty", "alpha": 1}, "train.loss_weights: uncertainty has no alpha (1); leave it out"),
        ({"masks": -1}, "train.loss_weights.masks: input should be greater than or equal to 0, not -1"),
        (3, "train.loss_weights: input should be keys and values, not 3"),
    ],
)
def test_weights_that_can_not_be_are_refused_by_value_and_rule(shapes, given, words):
    with pytest.raises(DensekitError) as error:
        parse(runs.config_of("joint", shapes, loss_weights=given), "test")
    assert words in str(error.value)


def test_learned_weights_are_told_and_survive_the_file(shapes):
    for given in ("uncertainty", {"name": "gradnorm"}, {"name": "gradnorm", "alpha": 0.5, "lr": 0.1}):
        config = parse(runs.config_of("joint", shapes, loss_weights=given), "test")
        assert parse(config.model_dump(mode="json"), "test") == config
    assert config.train.loss_weights.alpha == 0.5
    assert parse(runs.config_of("joint", shapes), "test").train.loss_weights == {}


def test_two_sets_of_one_head_need_the_same_classes_and_one_measure(tmp_path, shapes):
    tree = runs.config_of("detection", shapes)
    one = tree["data"]
    fewer = {**one, "train": {**one["train"], "classes": ["circle"]}, "val": None}
    tree["data"] = json.loads(json.dumps({"first": fewer, "second": {**one, "val": None}}))
    line = runs.refused("train", runs.write_config(tmp_path / "a.yaml", tree), "--out", tmp_path / "run")
    assert "data.second.train: its classes are not those that the model learned: not known 'square', 'triangle'" in line
    tree["data"] = {"first": one, "second": json.loads(json.dumps(one))}
    line = runs.refused("train", runs.write_config(tmp_path / "b.yaml", tree), "--out", tmp_path / "run")
    assert "model.heads.main: first and second both have a val that measures it" in line


def test_names_are_matched_for_the_heads_whose_data_set_says_so(tmp_path, shapes):
    tree = runs.config_of("joint", shapes)
    del tree["model"]["heads"]["masks"], tree["data"]["of_masks"]
    few = json.loads(json.dumps(tree["data"]["of_boxes"])) | {"heads": ["few"], "val": None}
    few["train"]["classes"] = ["circle", "square"]
    held = joint.classes_in(tree)
    tree["model"]["heads"]["few"] = tree["model"]["heads"]["boxes"]
    tree["data"]["of_few"] = few
    joint.write_joint(tmp_path / "a.pt", tree, {**held, "few": Classes(("square", "circle"), (20, 30))})
    tree["model"]["weights"] = str(tmp_path / "a.pt")
    few["match_names"] = True
    config = parse(tree, "test")
    classes = learning_sets.classes_of(learning_sets.open_sets(config))
    assert classes["few"] == Classes(("square", "circle"), (5, 2))  # as the head has them, with the data set's own ids
    assert classes["boxes"] == held["boxes"]
    assert build.model(config, classes)[0].classes_of("few") == classes["few"]
    few["match_names"] = False
    config = parse(tree, "test")
    with pytest.raises(DensekitError, match="set match_names=true in their data where the names are the same"):
        build.model(config, learning_sets.classes_of(learning_sets.open_sets(config)))


def test_a_config_of_several_sets_is_written_as_it_was_read(shapes):
    config = parse(runs.config_of("joint", shapes), "test")
    tree = config.model_dump(mode="json")
    assert list(tree["data"]) == ["of_boxes", "of_masks"]
    assert parse(tree, "test") == config
    assert config.of_set("of_masks").data.train.name == "masks"
    assert config.of_set("of_masks").learning == ("masks",)
