"""Heads trained from a feature store: the same as with the frozen backbone recomputed."""

import dataclasses
import json
import pickle

import pytest
import torch

from densekit import build
from densekit.config import parse
from densekit.data.feature_store import FeatureStore
from densekit.errors import DensekitError
from tests.features.conftest import tool
from tests.tools import runs

pytestmark = pytest.mark.usefixtures("narrow_resnet18")
HEADS = {
    "detection": {
        "name": "faster_rcnn",
        "channels": 16,
        "box_head_width": 32,
        "anchor_sizes": [[8], [16], [32], [64], [96]],
        "samples": 16,
        "rpn_before_nms": [50, 50],
        "rpn_after_nms": [20, 20],
    },
    "segmentation": {"name": "deeplab_v3_plus"},
    "classification": {"name": "classifier"},
}
HEADS["instances"] = {**HEADS["detection"], "name": "mask_rcnn", "mask_convs": 1, "mask_channels": 16}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return runs.make_data(tmp_path_factory.mktemp("data") / "shapes")


def config_of(task, shapes, **changes):
    """A run with a frozen ResNet-18 and flips; images of one size, since padding is part of what a network sees."""
    tree = runs.config_of(task, shapes, steps=3, accumulate=1, batch_size=4, precision="fp32", clip=None)
    tree["model"] = {"backbone": {"name": "resnet18", "frozen_stages": 5}, "heads": {"main": HEADS[task]}}
    resize = {"name": "Resize", "height": 64, "width": 64}
    flips = [{"name": "HorizontalFlip", "p": 0.5}, {"name": "VerticalFlip", "p": 0.5}]
    tree["data"] = {k: v for k, v in tree["data"].items() if k in ("train", "val")}
    tree["data"] |= {"train_transforms": [resize, *flips], "eval_transforms": [resize], "workers": 0}
    tree["evaluation"] = {"pictures": 1, "batch_size": 4}
    for path, value in changes.items():
        node = tree
        *parents, last = path.split("__")
        for key in parents:
            node = node[key]
        node[last] = value
    return tree


def export(tree, out, *options, split="train"):
    """Export a split of a config by the tool."""
    path = out.with_suffix(f".{split}.yaml")
    path.write_text(json.dumps(tree))
    tool("export_features")(["--config", str(path), "--split", split, "--out", str(out), "--device", "cpu", *options])
    return out


def from_store(tree, store, split="train"):
    """The config with a split's images replaced by their stored features."""
    tree = json.loads(json.dumps(tree))
    tree["data"][split] = {"name": "features", "store": str(store), "data": tree["data"][split]}
    return tree


def first_losses(tree, count=4):
    """The losses of the first batches of a run, head at its random start, in evaluation mode."""
    config = parse(tree, "config")
    world = build.World(0, 1, 1, torch.device("cpu"))
    data = build.dataset(config, "train", training=True)
    model, _ = build.model(config, data.classes)
    build.check_stores(config, model, data, training=True)
    batches = build.train_batches(config, data, world, start=0)
    with torch.no_grad():
        return [model.eval()(next(batches)) for _ in range(count)]


@pytest.mark.parametrize("task", list(HEADS))
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-3)])
def test_the_losses_of_the_same_batches_are_those_of_the_recomputed_backbone(shapes, tmp_path, task, dtype, tolerance):
    tree = config_of(task, shapes)
    store = export(tree, tmp_path / "store", "--dtype", dtype)
    assert set(FeatureStore(store).views) == {"none", "horizontal", "vertical", "both"}
    expected, given = first_losses(tree), first_losses(from_store(tree, store))
    for one, other in zip(expected, given):
        assert one.keys() == other.keys()
        for name in one:
            assert abs(float(other[name] - one[name])) <= tolerance * max(1.0, abs(float(one[name]))), name


def test_a_head_trained_from_a_store_has_the_weights_of_the_recomputed_run_and_joins(shapes, tmp_path):
    """Export, train, join, evaluate and predict, by the tools."""
    tree = config_of("instances", shapes)
    options = ("--dtype", "float32", "--levels", "c2,c3,c4,c5")
    stored = from_store(tree, export(tree, tmp_path / "train_store", *options))
    stored = from_store(stored, export(tree, tmp_path / "val_store", *options, split="val"), split="val")
    for name, content in (("pixels", tree), ("stored", stored)):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(content))
        tool("train")([str(tmp_path / f"{name}.yaml"), "--out", str(tmp_path / name), "--device", "cpu"])
    one, other = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("pixels", "stored"))
    for key, value in one["model"].items():
        torch.testing.assert_close(other["model"][key], value, atol=2e-4, rtol=1e-3, msg=lambda m, k=key: f"{k}: {m}")
    assert list((tmp_path / "stored" / "samples" / "pictures").iterdir())

    tool("join_head")([str(tmp_path / "stored" / "best.pt"), "--out", str(tmp_path / "joined.pt")])
    joined = torch.load(tmp_path / "joined.pt", weights_only=True)
    assert joined["config"]["data"]["train"]["name"] == "coco"
    for store in ("train_store", "val_store"):
        (tmp_path / store / "manifest.json").unlink()
    numbers = {}
    for name in ("joined.pt", "pixels/best.pt"):
        tool("evaluate")([str(tmp_path / name), "--json", str(tmp_path / "numbers.json"), "--device", "cpu"])
        numbers[name] = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["joined.pt"]["loss"] == pytest.approx(numbers["pixels/best.pt"]["loss"], rel=1e-3)
    image = str(next((shapes / "images" / "val").glob("*.jpg")))
    assert tool("predict")([str(tmp_path / "joined.pt"), image, "--out", str(tmp_path / "found")]) == 0


def test_a_store_made_in_less_than_the_precision_that_the_config_insists_on_is_refused(shapes, tmp_path):
    tree = config_of("segmentation", shapes)
    stored = from_store(tree, export(tree, tmp_path / "store", "--precision", "fp32"))
    manifest = tmp_path / "store" / "manifest.json"
    assert manifest.read_text().count('"precision": "fp32"') == 1
    manifest.write_text(manifest.read_text().replace('"precision": "fp32"', '"precision": "bf16"'))
    with pytest.raises(DensekitError, match=r"computed in bf16, but train.precision is fp32; export again with --prec"):
        first_losses(stored, 1)
    stored["train"]["precision"] = "auto"
    first_losses(stored, 1)


@pytest.fixture(scope="module")
def exported(shapes, tmp_path_factory, narrow_resnet18):
    """A segmentation run's config on stored c4 and c5 only, without the vertical flip."""
    tree = config_of("segmentation", shapes)
    del tree["data"]["train_transforms"][2]
    store = export(tree, tmp_path_factory.mktemp("stores") / "store", "--levels", "c4,c5")
    return from_store(tree, store)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 7}, r"random weights \(fingerprint \w+\), but the model has resnet18 with random weights \(fing"),
        ({"model__normalize": {"mean": [0.5], "std": [0.2]}}, "fingerprint .*fingerprint"),
        ({"model__backbone": {"name": "resnet34", "frozen_stages": 5}}, "features of resnet18 .* model has resnet34"),
        (
            {"model__backbone": {"name": "resnet18"}},
            r"0.2 M parameters of the backbone would learn.*frozen_stages to 5",
        ),
        ({"data__train_transforms": [{"name": "Resize", "long": 64}]}, "'height': 64.*the config has .*'long': 64"),
        ({"data__train_transforms": []}, "'height': 64.*the config has none"),
        ({}, r"levels that the store lacks: it holds c4, c5, not c1, c2, c3"),
    ],
)
def test_a_store_that_does_not_belong_to_the_config_is_refused_with_both_named(exported, changes, message):
    tree = json.loads(json.dumps(exported))
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = tree[parents[0]] if parents else tree
        node[last] = value
    with pytest.raises(DensekitError, match=message) as caught:
        first_losses(tree, 1)
    assert "\n" not in str(caught.value)


def test_levels_that_no_head_looks_at_need_not_be_stored(shapes, tmp_path):
    tree = config_of("classification", shapes)
    store = export(tree, tmp_path / "store", "--levels", "c5", "--dtype", "float32")
    expected, given = first_losses(tree, 1)[0], first_losses(from_store(tree, store), 1)[0]
    assert float(given["cross_entropy"]) == pytest.approx(float(expected["cross_entropy"]), abs=1e-5)


def test_another_image_of_the_same_name_is_noticed(exported, shapes):
    tree = json.loads(json.dumps(exported))
    tree["data"]["train"]["data"] = runs.config_of("segmentation", shapes)["data"]["val"]
    with pytest.raises(DensekitError, match=r"c4 of image '.*' differs by \d+ % from what the model gives"):
        first_losses(tree, 1)


def test_an_image_that_was_not_exported_is_named(shapes, tmp_path):
    tree = config_of("classification", shapes)
    stored = from_store(tree, export(tree, tmp_path / "store", "--levels", "c5"))
    stored["data"]["train"]["data"]["images"] = str(shapes / "images")
    data = build.dataset(parse(stored, "config"), "train", training=True)
    with pytest.raises(DensekitError, match=r"there is no image '.*' in the store"):
        data.sample(0, 0)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"name": "VerticalFlip"}, r"draw the view 'vertical', but .* holds none, horizontal; export with --flips"),
        ({"name": "RandomBrightnessContrast"}, r"train_transforms\[2\]: stored features can't follow RandomBrightness"),
        ({"name": "Resize", "long": 32}, r"\[2\]: stored features can't follow Resize"),
    ],
)
def test_transforms_that_stored_features_cannot_follow_are_refused(exported, added, message):
    tree = json.loads(json.dumps(exported))
    tree["data"]["train_transforms"].append(added)
    with pytest.raises(DensekitError, match=message):
        first_losses(tree, 1)


def test_mixup_is_refused(shapes, tmp_path):
    tree = config_of("classification", shapes, model__heads__main={"name": "classifier", "mixup": 0.2})
    store = export(config_of("classification", shapes), tmp_path / "store", "--levels", "c5")
    with pytest.raises(DensekitError, match="mixup blends images before the backbone"):
        first_losses(from_store(tree, store), 1)


def test_a_batch_norm_whose_statistics_would_move_is_refused(exported):
    tree = json.loads(json.dumps(exported))
    tree["model"]["backbone"] = {"name": "resnet18"}
    config = parse(tree, "config")
    data = build.dataset(config, "train", training=True)
    model, _ = build.model(config, data.classes)
    model.backbone.requires_grad_(False)
    with pytest.raises(DensekitError, match="statistics of 20 batch norms would move"):
        build.check_stores(config, model, data, training=True)


def test_no_pixel_is_decoded(shapes, tmp_path, monkeypatch):
    tree = config_of("detection", shapes)
    stored = from_store(tree, export(tree, tmp_path / "store"))

    def refuse(*args, **options):
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr("densekit.data.images.read.cv2.imdecode", refuse)
    sample = build.dataset(parse(stored, "config"), "train", training=True).sample(0, 0)
    assert sample.image.strides == (0, 0, 0)
    assert sample.image.shape == (64, 64, 3)
    assert {level.name for level in sample.maps} == {"c1", "c2", "c3", "c4", "c5"}


def test_maps_of_different_sizes_are_padded_into_one_batch(shapes, tmp_path):
    """Images of a batch that differ in size keep their own maps; the rest of the batch is zero."""
    tree = config_of("detection", shapes, data__train_transforms=[{"name": "HorizontalFlip", "p": 0.5}])
    config = parse(from_store(tree, export(tree, tmp_path / "store")), "config")
    data = build.dataset(config, "train", training=True)
    world = build.World(0, 1, 1, torch.device("cpu"))
    batch = next(build.train_batches(config, data, world, start=0))
    height, width = batch.images.shape[-2:]
    assert batch.maps["c4"].shape[-2:] == (height // 16, width // 16)
    sample = pickle.loads(pickle.dumps(data)).sample(0, 0)  # as in a worker that is not forked
    own = {level.name: m for level, m in sample.maps.items()}["c4"]
    if sample.id in batch.ids:
        row = batch.maps["c4"][batch.ids.index(sample.id)]
        assert torch.equal(row[:, : own.shape[1], : own.shape[2]], own)
        assert not row[:, own.shape[1] :].any()


def test_a_batch_with_maps_moves_to_another_precision_on_the_way_to_the_head(exported):
    tree = dict(exported)
    config = parse(tree, "config")
    data = build.dataset(config, "train", training=True)
    model, _ = build.model(config, data.classes)
    world = build.World(0, 1, 1, torch.device("cpu"))
    batch = next(build.train_batches(config, data, world, start=0)).to(torch.device("cpu"))
    assert batch.maps["c4"].dtype == torch.float16
    maps = model.features(batch)
    assert [m.dtype for m in maps] == [torch.float32] * 5
    assert maps[0].isnan().all()
    assert maps[0].shape == (4, 8, 32, 32)
    assert dataclasses.replace(batch, maps=None).maps is None
