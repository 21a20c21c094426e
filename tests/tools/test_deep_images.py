"""Images of more than 8 bits through the tools: the range that training found goes wherever its checkpoint goes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from densekit import build, inputs
from densekit import config as configs
from densekit.data.feature_store import FeatureStore
from densekit.engine.distributed import World
from tests.tools import runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 12-bit images, a run of one step on them, and one of the images as floats."""
    folder = tmp_path_factory.mktemp("deep")
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for number, kind in enumerate(("dim", "bright") * 2):
            place = folder / "folders" / split / kind / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            values = random.integers(0, 1200 if kind == "dim" else 4000, (32, 32)).astype(np.uint16)
            Image.fromarray(values).save(place)
    (folder / "new").mkdir()
    Image.fromarray(values).save(folder / "new" / "a.png")
    np.save(folder / "new" / "b.npy", values.astype(np.float32))
    np.save(folder / "new" / "c.npy", values.astype(np.float64))
    tree = runs.config_of("classification", folder, steps=1, accumulate=1)
    tree["data"]["train_transforms"].append({"name": "CLAHE", "p": 0.1})
    config = runs.write_config(folder / "c.yaml", tree)
    code, said = runs.call("train", config, "--out", folder / "run")
    assert code == 0, said
    (folder / "said.txt").write_text(said)
    return folder


def test_training_says_the_range_and_what_rounds(folder):
    said = (folder / "said.txt").read_text()
    assert "4 images of more than 8 bits (uint16) with values from" in said
    assert "data.range [0, 4095] becomes black to white" in said
    assert "data.train_transforms: CLAHE work in 8 bits" in said


def test_prediction_and_evaluation_take_the_checkpoints_range(folder):
    model, config = build.from_checkpoint(folder / "run" / "best.pt")
    assert config.data.range == (0, 4095)
    image = inputs.image_files(config, model, [str(folder / "new" / "a.png")])[0].sample(0, 0).image
    values = np.asarray(Image.open(folder / "new" / "a.png"))
    assert np.array_equal(image[..., 0], values.astype(np.float32) * np.float32(255 / 4095))
    assert np.array_equal(build.dataset(config, "val", training=False).sample(0, 1).image[..., 0], image[..., 0])


def test_the_same_values_in_other_files_give_the_same_predictions(folder, tmp_path):
    code, said = runs.call("predict", folder / "run" / "best.pt", folder / "new", "--out", tmp_path)
    assert code == 0, said
    assert "data:" not in said
    rows = json.loads((tmp_path / "predictions.json").read_text())
    assert len(rows) == 3
    assert rows[0]["probabilities"] == rows[1]["probabilities"] == rows[2]["probabilities"]


def test_features_are_exported_on_the_range_and_a_store_of_another_is_refused(folder, tmp_path):
    images = folder / "folders" / "train"
    network = ("export_features", "--backbone", "resnet8", "--levels", "pooled", "--dtype", "float32")
    code, said = runs.call(*network, "--images", images, "--out", tmp_path / "measured")
    assert code == 0, said
    assert "data.range [0, 4095] becomes black to white" in said
    assert runs.call(*network, "--images", images, "--range", 0, 4095, "--out", tmp_path / "given")[0] == 0
    measured, given = FeatureStore(tmp_path / "measured"), FeatureStore(tmp_path / "given")
    assert measured.manifest["recipe"] == given.manifest["recipe"]
    assert measured.value_range == (0, 4095)
    line = runs.refused(*network, "--images", images, "--range", 0, 65535, "--out", tmp_path / "given")
    assert "images.range was [0.0, 4095.0] and is now [0.0, 65535.0]" in line
    line = runs.refused(
        "export_features", "--checkpoint", folder / "run" / "best.pt", "--images", images,
        "--range", 0, 1, "--out", tmp_path / "x",
    )  # fmt: skip
    assert "takes data.range=[low,high]" in line


def test_a_head_on_stored_features_takes_their_range(folder, tmp_path):
    tree = runs.config_of("classification", folder, steps=1, accumulate=1)
    tree["model"]["backbone"] = {"name": "resnet8", "frozen_stages": 4}
    tree["model"]["heads"]["main"]["mixup"] = 0
    tree["data"]["train_transforms"] = []
    for split in ("train", "val"):
        config = runs.write_config(tmp_path / "pixels.yaml", tree)
        out = tmp_path / f"store_{split}"
        code, said = runs.call(
            "export_features", "--config", config, "--split", split, "--precision", "fp32", "--out", out
        )
        assert code == 0, said
    stored = {
        s: {"name": "features", "store": str(tmp_path / f"store_{s}"), "data": tree["data"][s]}
        for s in ("train", "val")
    }
    config = runs.write_config(tmp_path / "stored.yaml", {**tree, "data": {**tree["data"], **stored}})
    code, said = runs.call("train", config, "--out", tmp_path / "run")
    assert code == 0, said
    assert build.from_checkpoint(tmp_path / "run" / "best.pt")[1].data.range == (0, 4095)
    line = runs.refused("train", config, "--out", tmp_path / "other", "data.range=[0,65535]")
    assert "was exported with data.range [0, 4095], the config has [0, 65535]" in line


def test_a_split_is_exported_on_the_range_of_the_training_images_and_photographs_need_none(folder, tmp_path):
    tree = runs.config_of("classification", folder)
    config = runs.write_config(tmp_path / "c.yaml", tree)
    loaded = configs.load(config)
    world = World(0, 1, 1, torch.device("cpu"))
    assert build.settle_alone(loaded, world, "val")[0].data.range == (0, 4095)
    assert build.settle_alone(loaded, world, None) == (loaded, [])
    bytes_only = configs.override(loaded, [f"data.val.images={folder / 'photos'}", "data.train.images=nowhere"])
    for kind in ("dim", "bright"):
        (folder / "photos" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(folder / "photos" / kind / "a.png")
    assert build.settle_alone(bytes_only, world, "val") == (bytes_only, [])  # the training set need not be there
