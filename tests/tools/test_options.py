"""No option does nothing in silence: each has an effect, is refused, or is said to have none."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from densekit import config as configs
from densekit import export_options
from densekit.config_unused import without_effect
from densekit.console import at_least, share
from densekit.errors import DensekitError
from tests.tools import runs


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("segmentation", ["--score", 0.3], "--score is for detectors"),
        ("classification", ["--score", 0.3], "--score is for detectors"),
        ("detection", ["--probabilities"], "--probabilities is for segmenters"),
        ("classification", ["--probabilities"], "--probabilities is for segmenters"),
        ("segmentation", ["--overlap", 0.5], "--overlap is for --window and --tiles"),
        ("segmentation", ["--batch", 2, "--window", 64], "--batch is for images as a whole"),
        ("detection", ["--window", 64], "for segmenters"),
        ("segmentation", ["--tiles", 64], "--tiles is for detectors"),
        ("classification", ["--flips"], "for detectors and segmenters"),
    ],
)
def test_options_of_predict_that_the_task_has_no_use_for_are_refused(
    checkpoints, shapes, tmp_path, task, options, words
):
    line = runs.refused("predict", checkpoints[task], shapes / "images/val", "--out", tmp_path / "out", *options)
    assert words in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [["--score", "nan"], ["--score", "2"], ["--batch", "0"], ["--batch", "-3"]])
def test_numbers_out_of_range_are_refused_by_name(checkpoints, shapes, options):
    code, printed = runs.call("predict", checkpoints["detection"], shapes / "images/val", *options)
    assert code == 2
    assert f"argument {options[0]}: must be a" in printed.splitlines()[-1]
    assert repr(options[1]) in printed.splitlines()[-1]


def test_the_types_of_numbers_take_their_limits():
    assert at_least(0)("0") == 0
    assert at_least(1)("12") == 12
    assert (share("0"), share("1"), share("2.5e-1")) == (0, 1, 0.25)
    for kind, text in (
        (at_least(1), "0"),
        (at_least(0, 8), "9"),
        (at_least(0), "-1"),
        (at_least(0), "1.5"),
        (share, "x"),
        (share, "-0.1"),
    ):
        with pytest.raises(Exception, match="must be"):
            kind(text)


EXPORT = ["--images", "x", "--out", "y"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--checkpoint", "c", *EXPORT, "--channels", "1"], "--channels is for --backbone"),
        (["--checkpoint", "c", *EXPORT, "--weights", "w"], "--weights is for --backbone"),
        (["--config", "c", *EXPORT, "--seed", "1"], "--seed is for --backbone"),
        (["--backbone", "resnet8", *EXPORT, "train.steps=1"], "key.path=value is for a config"),
        (["--config", "c", *EXPORT, "--split", "val"], "--images is for images without --split"),
        (["--config", "c", "--out", "y", "--split", "val", "--reduced"], "--reduced is for a folder or a list"),
        (["--backbone", "resnet8", *EXPORT, "--boxes", "b.json"], "--boxes is for the level roi"),
        (["--backbone", "resnet8", *EXPORT, "--std", "1", "0", "1"], "--std 1.0 0.0 1.0: must be above 0"),
    ],
)
def test_options_of_the_export_that_nothing_would_look_at_are_refused(options, words):
    args = runs.load_tool("export_features").arguments().parse_intermixed_args(options)
    with pytest.raises(DensekitError) as caught:
        export_options.settle(args)
    assert words in str(caught.value)


def test_options_of_the_export_that_belong_together_pass():
    parse = runs.load_tool("export_features").arguments().parse_intermixed_args
    args = export_options.settle(parse(["--backbone", "resnet8", *EXPORT, "--levels", "c4,roi", "--boxes", "b"]))
    assert args.levels == ["c4", "roi"]
    assert (args.channels, args.seed, args.mean) == (3, 0, [0.485, 0.456, 0.406])
    assert export_options.settle(parse(["--checkpoint", "c", "--split", "val", "--out", "y"])).levels is None


def test_cut_out_boxes_of_images_without_boxes_are_refused(shapes, tmp_path):
    options = ["--backbone", "resnet8", "--images", shapes / "images/val", "--levels", "roi", "--out", tmp_path / "s"]
    assert "plain images have none; give --boxes" in runs.refused("export_features", *options)


def test_an_image_folder_beside_a_config_is_refused_by_the_doctor(shapes, tmp_path):
    config = runs.write_config(tmp_path / "run.yaml", runs.config_of("detection", shapes))
    assert "names its image folders itself" in runs.refused("doctor", config, "--images", shapes / "images")


@pytest.mark.parametrize("task", ["detection", "segmentation", "classification"])
def test_pictures_of_an_evaluation_show_every_task(checkpoints, tmp_path, task):
    out = tmp_path / "pictures"
    code, printed = runs.call("evaluate", checkpoints[task], "--pictures", out, "evaluation.pictures=2")
    assert code == 0, printed
    pictures = sorted((out / "pictures").iterdir())
    assert [entry["output"] for entry in json.loads((out / "images.json").read_text())] == [p.stem for p in pictures]
    assert len(pictures) == 2
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.width > picture.height or task == "classification"
    assert (out / "confusion.png").exists()


UNUSED = {
    "train.optimizer.momentum=0.5": "train.optimizer.momentum: 0.5 has no effect, for adamw has no such option",
    "train.optimizer.nesterov=true": "train.optimizer.nesterov: True has no effect, for adamw has no such option",
    "train.schedule.milestones=[0.5]": "train.schedule.milestones: (0.5,) has no effect, for cosine",
    "train.schedule.power=2.0": "train.schedule.power: 2.0 has no effect, for cosine has no such option",
    "evaluation.boundary=true": "evaluation.boundary: True has no effect, for no head finds masks of objects",
    "evaluation.max_detections=300": "evaluation.max_detections: 300 has no effect, for the task is segmentation",
}


def test_settings_of_a_config_without_effect_are_said_at_the_start(shapes, tmp_path):
    path = runs.write_config(tmp_path / "run.yaml", runs.config_of("segmentation", shapes))
    assert without_effect(configs.load(path), "segmentation") == []
    for override, line in UNUSED.items():
        (found,) = without_effect(configs.load(path, [override]), "segmentation")
        assert found.startswith(line)
    assert without_effect(configs.load(path, ["evaluation.max_detections=300"]), "detection") == []
    alone = configs.load(path, ["data.val=null", "evaluation.patience=3"])
    assert without_effect(alone, "segmentation") == [
        "evaluation.patience: 3 has no effect, for there is no data.val to evaluate on"
    ]
    code, printed = runs.call("train", path, "--out", tmp_path / "run", "train.steps=1", *UNUSED)
    assert code == 0
    assert all(line in printed for line in UNUSED.values())


@pytest.mark.parametrize("path", sorted(runs.TOOLS.parent.glob("configs/*/*.yaml")), ids=lambda path: path.stem)
def test_every_setting_of_a_shipped_config_has_an_effect(path, monkeypatch):
    monkeypatch.setenv("DENSEKIT_DATA", "data")
    task = path.parent.name.replace("instance", "detection")  # the masks of a detector
    assert without_effect(configs.load(path), task) == []
