"""A checkpoint with several heads on images: each head's own numbers, files and names, from one pass."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from densekit import DensekitError, Predictor
from densekit.infer.results import BoxResult, MaskResult
from densekit.show.drawing import colours
from tests.tools import joint, runs

CALIBRATION = {
    "temperatures": [2.0],
    "cuts": [0.1, 0.1],
    "rule": "best F1",
    "split": "val",
    "before": 0.2,
    "after": 0.1,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, shapes):
    """Of both heads, and of each alone."""
    folder = tmp_path_factory.mktemp("joint")
    tree = joint.two_heads(shapes)
    model = joint.write_joint(folder / "both.pt", tree)
    alone = {head: joint.write_alone(folder / f"{head}.pt", model, tree, head) for head in model.heads}
    return {"both": folder / "both.pt", **alone}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    place = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name, size in (("a", (32, 40)), ("b", (40, 32)), ("c", (32, 40))):
        Image.fromarray(random.integers(0, 256, (*size, 3)).astype(np.uint8)).save(place / f"{name}.png")
    return place


def assert_same_boxes(one, other):
    assert len(one) > 0
    for name in ("boxes", "scores", "ids"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("options", [{}, {"flips": True, "scales": (1.0, 1.5)}], ids=["plain", "averaged"])
def test_the_heads_together_find_what_each_alone_finds_from_one_pass_a_view(checkpoints, photos, options):
    files = sorted(photos.iterdir())[: 1 if options else 2]
    predict = Predictor(checkpoints["both"], **options)
    passes = []
    predict.model.backbone.register_forward_hook(lambda *_: passes.append(1))
    found = list(predict(files, probabilities=True))
    assert len(passes) == len(files) * (8 if options else 1)
    for head in ("boxes", "masks"):
        expected = list(Predictor(checkpoints[head], **options)(files, probabilities=True))
        chosen = list(Predictor(checkpoints["both"], heads=head, **options)(files, probabilities=True))
        for joined, one, other in zip(found, chosen, expected, strict=True):
            for result in (joined[head], one):
                assert result.names == other.names
                if head == "boxes":
                    assert isinstance(result, BoxResult)
                    assert_same_boxes(result, other)
                else:
                    assert isinstance(result, MaskResult)
                    assert np.array_equal(result.masks, other.masks)
                    assert np.array_equal(result.probabilities, other.probabilities)


def test_each_head_comes_in_the_names_and_ids_of_its_own_data_set(checkpoints, photos):
    result = Predictor(checkpoints["both"])(photos / "a.png")
    assert list(result) == ["boxes", "masks"]
    assert set(zip(result["boxes"].names, result["boxes"].ids.tolist())) <= {("cell", 17), ("platelet", 90)}
    assert set(np.unique(result["masks"].masks)) <= {3, 5, 200}
    assert {entry["head"] for entry in result.to_coco()} == {"boxes", "masks"}
    with pytest.raises(DensekitError, match="there is no head 'mask'; did you mean 'masks'"):
        result["mask"]


def test_one_picture_has_boxes_over_masks_and_a_colour_a_class(checkpoints, photos):
    result = Predictor(checkpoints["both"])(photos / "a.png")
    masks, boxes = result["masks"].frame(), result.frame(score=0.0)
    height, width = boxes.shape[:2]
    assert (boxes == masks).all(-1).any()  # masks show where no box is
    edges = (boxes == np.array(colours(2))[:, None, None]).all(-1).any(0)
    assert edges.any()
    drawn = {tuple(c) for c in masks.reshape(-1, 3).tolist()}
    nothing = np.abs(result.frame(score=1.0).astype(int) - masks).max()
    assert nothing > 0  # the masks' colours follow those of the boxes' two classes
    assert drawn & set(colours(3))
    assert result.draw(0.0).size[0] == width
    assert result.draw(0.0).size[1] > height


def test_the_tool_writes_a_folder_a_head_and_one_picture_an_image(checkpoints, photos, tmp_path):
    def predict(name, out, *arguments):
        code, printed = runs.call("predict", checkpoints[name], photos, "--out", tmp_path / out, *arguments)
        assert code == 0, printed
        return tmp_path / out, printed

    both, printed = predict("both", "both", "--formats", "coco", "csv", "yolo")
    boxes, _ = predict("boxes", "boxes", "--formats", "coco", "csv", "yolo")
    masks, _ = predict("masks", "masks", "--no-pictures")
    for alone, head in ((boxes, "boxes"), (masks, "masks")):
        files = [f for f in alone.rglob("*") if f.is_file() and f.parent.name != "pictures"]
        assert len(files) > 3
        for file in files:
            assert (both / head / file.relative_to(alone)).read_bytes() == file.read_bytes(), file
    assert sorted(f.name for f in (both / "pictures").iterdir()) == ["a.jpg", "b.jpg", "c.jpg"]
    assert [e["output"] for e in json.loads((both / "images.json").read_text())] == ["a", "b", "c"]
    assert "boxes: " in printed
    assert "masks: masks of 3 images written to" in printed
    chosen, _ = predict("both", "chosen", "--heads", "masks", "--no-pictures")
    assert (chosen / "masks" / "b.png").read_bytes() == (masks / "masks" / "b.png").read_bytes()


def test_what_one_of_the_heads_cannot_do_is_said_with_the_heads_that_can(checkpoints, photos, shapes):
    def refused(*arguments):
        return runs.refused("predict", checkpoints["both"], photos, *arguments)

    assert "this checkpoint's head 'masks' does segmentation: choose others by --heads boxes" in refused("--tiles", 64)
    assert "this checkpoint's head 'boxes' does detection: choose others by --heads masks" in refused("--window", 64)
    assert "there is no head 'mask'; did you mean 'masks'" in refused("--heads", "mask")
    annotations = shapes / "annotations" / "val.json"
    assert "has the heads boxes, masks: choose one by --heads" in refused("--annotations", annotations)


def test_heads_that_see_images_in_another_way_do_not_share_a_pass_unasked(tmp_path, shapes, photos):
    tree = joint.two_heads(shapes)
    resized = {**tree["data"], "eval_transforms": [{"name": "Resize", "long": 64}]}
    tree["data"] = {"cells": {**tree["data"], "heads": ["boxes"]}, "tissue": {**resized, "heads": ["masks"]}}
    model = joint.write_joint(tmp_path / "both.pt", tree)
    line = runs.refused("predict", tmp_path / "both.pt", photos)
    assert "boxes and masks see images in another way: data.cells.eval_transforms is not data.tissue." in line
    alone = joint.write_alone(tmp_path / "masks.pt", model, {**tree, "data": resized}, "masks")
    expected = Predictor(alone)(photos / "a.png").masks
    assert np.array_equal(Predictor(tmp_path / "both.pt", heads="masks")(photos / "a.png").masks, expected)
    both = Predictor(
        tmp_path / "both.pt", [f"data.cells.eval_transforms={resized['eval_transforms']}".replace("'", "")]
    )
    assert np.array_equal(both(photos / "a.png")["masks"].masks, expected)


def test_an_image_that_one_head_fails_on_is_skipped_in_all(checkpoints, photos, tmp_path):
    content = torch.load(checkpoints["both"], weights_only=True)
    for key, value in content["model"].items():
        if key.startswith("heads.masks.") and value.is_floating_point():
            value.fill_(torch.nan)
    torch.save(content, tmp_path / "nan.pt")
    line = runs.refused("predict", tmp_path / "nan.pt", photos, "--out", tmp_path / "out")
    assert "not one image could be predicted" in line
    assert "not finite" in line


def test_each_head_is_read_by_its_own_calibration(tmp_path, shapes, photos, checkpoints):
    held = {"calibration_by_head": {"masks": {**CALIBRATION, "cuts": []}}, "calibration": CALIBRATION}
    joint.write_joint(tmp_path / "both.pt", joint.two_heads(shapes), **held)
    read, plain = (
        Predictor(path)(photos / "a.png", probabilities=True) for path in (tmp_path / "both.pt", checkpoints["both"])
    )
    logits = np.log(plain["boxes"].scores / (1 - plain["boxes"].scores))
    np.testing.assert_allclose(np.sort(read["boxes"].scores), np.sort(1 / (1 + np.exp(-logits / 2))), atol=1e-5)
    roots = np.sqrt(plain["masks"].probabilities)
    np.testing.assert_allclose(read["masks"].probabilities, roots / roots.sum(0), atol=1e-5)
