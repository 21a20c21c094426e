import json

import numpy as np
import pytest
import torch
from PIL import Image

from densekit import DensekitError, Predictor
from densekit.engine import checkpoint
from densekit.export.runners import open_file
from tests.tools import runs

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def exported(checkpoints, tmp_path_factory):
    """A segmenter as ONNX and a classifier as a program, with what the tool said."""
    folder = tmp_path_factory.mktemp("exported")
    files = {"segmentation": folder / "a.onnx", "classification": folder / "a.pt2"}
    said = {task: runs.call("export_model", checkpoints[task], "--out", file) for task, file in files.items()}
    return files, said


@pytest.mark.parametrize(("task", "number"), [("segmentation", "mIoU"), ("classification", "top1")])
def test_a_file_is_measured_as_its_checkpoint(checkpoints, exported, tmp_path, task, number):
    files, said = exported
    assert said[task][0] == 0, said[task][1]
    assert f"{number} " in said[task][1]
    numbers = []
    for name, model in (("file", files[task]), ("checkpoint", checkpoints[task])):
        code, printed = runs.call("evaluate", model, "--json", tmp_path / f"{name}.json")
        assert code == 0, printed
        numbers.append(json.loads((tmp_path / f"{name}.json").read_text()))
    assert numbers[0][number] == pytest.approx(numbers[1][number], abs=1e-6)
    assert "loss" not in numbers[0]


def test_a_file_predicts_as_its_checkpoint_any_number_of_images_of_any_size(checkpoints, exported):
    images = [
        np.random.default_rng(0).integers(0, 256, size, np.uint8) for size in ((41, 53, 3), (41, 53, 3), (9, 64, 3))
    ]
    for task, file in exported[0].items():
        pairs = zip(*(Predictor(model)(images, probabilities=True) for model in (file, checkpoints[task])))
        for mine, theirs in pairs:
            np.testing.assert_allclose(mine.probabilities, theirs.probabilities, atol=1e-5)
            assert mine.ids.tolist() == theirs.ids.tolist()


def test_predict_takes_a_file(exported, tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    code, printed = runs.call("predict", exported[0]["segmentation"], tmp_path / "a.png", "--out", tmp_path / "out")
    assert code == 0, printed
    assert Image.open(tmp_path / "out" / "masks" / "a.png").size == (30, 20)


def test_a_file_knows_its_classes_normalisation_and_origin_and_what_the_check_found(checkpoints, exported):
    held = {entry.key: entry.value for entry in onnx.load(exported[0]["segmentation"]).metadata_props}
    notes = json.loads(held["densekit"])
    trained = torch.load(checkpoints["segmentation"], weights_only=True)
    assert notes["classes"] == {key: list(trained["classes"][key]) for key in ("names", "ids")}
    assert notes["normalize"]["mean"] == [0.485, 0.456, 0.406]
    assert len(notes["checkpoint"]["sha256"]) == 64
    assert notes["check"]["images"] == 5
    assert notes["check"]["numbers"]["mIoU"][0] == pytest.approx(notes["check"]["numbers"]["mIoU"][1], abs=1e-6)


@pytest.fixture
def written(exported, monkeypatch):
    """What the tool would trace for seconds: the segmenter's file as it was exported, to be changed."""
    from densekit.export import files

    proto = onnx.load(exported[0]["segmentation"])
    monkeypatch.setattr(files, "made", lambda graph, form, dtype: files.WrittenOnnx(proto))
    return proto


def test_a_file_that_predicts_otherwise_is_not_left(checkpoints, shapes, tmp_path, written):
    mean = next(one for one in written.graph.initializer if one.name == "model.mean")
    mean.CopyFrom(onnx.numpy_helper.from_array(np.zeros((1, 3, 1, 1), np.float32), mean.name))
    out = tmp_path / "a.onnx"
    out.write_text("before")
    line = runs.refused("export_model", checkpoints["segmentation"], "--out", out)
    assert "first image that differs is" in line
    assert line.rstrip().split()[-1] in map(str, shapes.rglob("val/*.jpg"))
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_convolutions_in_8_bits_are_told_by_their_number(checkpoints, tmp_path, written):
    out = tmp_path / "a.onnx"
    options = ("--out", out, "--int8", 2, "--tolerance", 1)
    code, said = runs.call("export_model", checkpoints["segmentation"], *options)
    assert code == 0, said
    notes = json.loads(next(e.value for e in onnx.load(out).metadata_props if e.key == "densekit"))
    convolutions = [node for node in onnx.load(out).graph.node if node.op_type == "Conv"]
    quantised = [node for node in convolutions if "DequantizeLinear" in node.input[1]]
    assert len(quantised) == len(convolutions) - 1  # all but the last, which gives the classes
    assert notes["precision"] == "int8"
    assert 0 < notes["check"]["mean"] < 0.5
    assert f"mIoU {notes['check']['numbers']['mIoU'][1]:.4f}" in said


def test_a_backbone_alone_gives_its_maps(checkpoints, tmp_path):
    code, said = runs.call("export_model", checkpoints["classification"], "--backbone", "--out", tmp_path / "a.pt2")
    assert code == 0, said
    maps = open_file(tmp_path / "a.pt2")[0](torch.zeros(2, 3, 40, 33, dtype=torch.uint8))
    assert {name: value.shape[2:] for name, value in maps.items()} == {
        "c1": (64, 64), "c2": (64, 64), "c3": (32, 32), "c4": (16, 16)
    }  # fmt: skip
    assert "backbone alone" in runs.refused("evaluate", tmp_path / "a.pt2")


def test_what_a_file_fixes_can_not_be_overridden(exported):
    line = runs.refused("evaluate", exported[0]["classification"], "model.normalize.mean=[0]")
    assert "model.normalize.mean" in line
    with pytest.raises(DensekitError, match="is an exported model"):
        checkpoint.load(exported[0]["classification"])
    assert "exported already" in runs.refused("export_model", exported[0]["classification"])
    assert "suffix" in runs.refused("export_model", "best.pt", "--format", "torch", "--out", "a.onnx")
