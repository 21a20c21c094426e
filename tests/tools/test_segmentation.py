"""The whole story of a segmenter on generated images, and a step of every shipped config on its folder layout."""

import json
import runpy
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from densekit.data.formats.masks.masks import masks as masks_data
from densekit.data.formats.shapes import generate_shapes
from densekit.data.relabelled import Relabelled
from densekit.engine.class_weights import balanced_losses, count_pixels
from densekit.metrics.segmentation import SegmentationMetric
from densekit.types import Batch, Classes, DensekitError, Segmentation

pytestmark = pytest.mark.usefixtures("narrow_resnet18")
ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs/segmentation").glob("*.yaml"))
SMALL = [
    "model.backbone.name=resnet18",
    "model.backbone.weights=null",
    "model.backbone.norm=batch",
    "data.workers=0",
    "data.fixed_size=null",
    "train.epochs=null",
    "train.steps=2",
    "train.batch_size=2",
    "train.precision=fp32",
    "evaluation.every=100",
    "evaluation.batch_size=2",
    "evaluation.pictures=0",
    "log.every=1",
    "log.tensorboard=false",
]


def tool(name, *args):
    """Run a tool's main in this process."""
    return runpy.run_path(str(ROOT / "tools" / f"{name}.py"))["main"]([str(a) for a in args])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    generate_shapes(folder, train=6, val=3, test=3, size=64, seed=1)
    return folder


def overrides(shapes):
    paths = [f"data.{s}.{kind}={shapes}/{kind}/{s}" for s in ("train", "val", "test") for kind in ("images", "masks")]
    return [*SMALL, *paths, *(f"data.{s}.classes={shapes}/classes.txt" for s in ("train", "val", "test"))]


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory, narrow_resnet18):
    out = tmp_path_factory.mktemp("runs") / "run"
    config = ROOT / "configs/segmentation/unet_r18_shapes.yaml"
    assert tool("train", config, "--out", out, *overrides(shapes)) == 0
    return out


def test_evaluation_writes_the_numbers_and_the_confusion_matrix(trained, tmp_path, capsys):
    assert tool("evaluate", trained / "best.pt", "--data", "test", "--json", tmp_path / "n.json",
                "--pictures", tmp_path / "pictures") == 0  # fmt: skip
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert {"mIoU", "dice", "pixel_accuracy", "boundary_mIoU", "loss"} <= numbers.keys()
    assert "background" in numbers["per_class"]
    assert numbers["images"] == 3
    assert 0 <= numbers["mIoU"] <= 1
    assert any((tmp_path / "pictures").iterdir())
    assert "mIoU" in capsys.readouterr().out


def evaluate(trained, tmp_path, *options):
    assert tool("evaluate", trained / "best.pt", "--data", "test", "--json", tmp_path / "n.json", *options) == 0
    return json.loads((tmp_path / "n.json").read_text())


def measured(shapes, masks):
    """The numbers of class-index PNGs against the data set's own masks."""
    metric = SegmentationMetric(Classes(tuple((shapes / "classes.txt").read_text().split()), tuple(range(5))))
    names = sorted(path.name for path in (shapes / "masks/test").glob("*.png"))
    for name in names:
        true, found = (
            torch.from_numpy(np.array(Image.open(folder / name))) for folder in (shapes / "masks/test", masks)
        )
        size = torch.tensor([true.shape])
        batch = Batch(torch.zeros(1, 3, 1, 1), size, size, [name], torch.zeros(1), truth=[true])
        metric.update(Segmentation([], [found.long()]), batch)
    return metric


def test_evaluation_gives_the_numbers_of_each_image_once_and_names_the_worst(trained, shapes, tmp_path, capsys):
    numbers = evaluate(trained, tmp_path)
    rows = numbers["per_image"]
    assert [row["file"] for row in rows] == [str(path) for path in sorted((shapes / "images/test").glob("*"))]
    assert sum(row["mIoU"] for row in rows) / 3 == pytest.approx(numbers["mIoU_per_image"])
    assert tool("predict", trained / "best.pt", shapes / "images/test", "--out", tmp_path / "plain", "--batch", 2) == 0
    own = measured(shapes, tmp_path / "plain/masks").per_image()
    for row in rows:
        assert {k: row[k] for k in own[f"{Path(row['id']).stem}.png"]} == own[f"{Path(row['id']).stem}.png"]
    shown = capsys.readouterr().out
    worst = min(rows, key=lambda row: row["mIoU"])
    assert f"{worst['mIoU']:.4f}" in shown[shown.index("worst images") :].splitlines()[4]


def test_flips_and_scales_measure_what_prediction_gives_with_them(trained, shapes, tmp_path):
    options = ("--flips", "--scales", 0.5, 1.5)
    numbers = evaluate(trained, tmp_path, *options)
    assert (
        tool("predict", trained / "best.pt", shapes / "images/test", "--out", tmp_path / "tta", "--batch", 2, *options)
        == 0
    )
    expected = measured(shapes, tmp_path / "tta/masks").compute()
    assert {k: numbers[k] for k in expected if k != "per_class"} == {
        k: v for k, v in expected.items() if k != "per_class"
    }
    plain = evaluate(trained, tmp_path)
    assert plain["confusion"] != numbers["confusion"], "flips and scales changed nothing"
    assert "loss" in plain
    assert not {"loss", "losses"} & numbers.keys()


def test_scales_out_of_range_are_refused_in_one_line(trained):
    with pytest.raises(DensekitError, match=r"scale 0\.0 must lie between 0 and 100"):
        tool("evaluate", trained / "best.pt", "--scales", "0")


def test_prediction_writes_masks_of_the_files_size_overlays_and_probabilities(trained, shapes, tmp_path):
    images = sorted((shapes / "images/test").glob("*"))
    assert tool("predict", trained / "best.pt", shapes / "images/test", "--out", tmp_path, "--probabilities") == 0
    for path in images:
        size = cv2.imread(str(path)).shape[:2]
        mask = np.asarray(Image.open(tmp_path / "masks" / f"{path.stem}.png"))
        assert mask.shape == size
        assert set(np.unique(mask)) <= set(range(5))
        assert list((tmp_path / "pictures").glob(f"{path.stem}.*"))


def test_sliding_windows_larger_than_the_images_give_the_plain_masks(trained, shapes, tmp_path):
    source = shapes / "images/test"
    assert tool("predict", trained / "best.pt", source, "--out", tmp_path / "plain", "--batch", 1) == 0
    assert tool("predict", trained / "best.pt", source, "--out", tmp_path / "window", "--window", 512) == 0
    assert tool("predict", trained / "best.pt", source, "--out", tmp_path / "small", "--window", 32, "--flips") == 0
    plain = sorted((tmp_path / "plain/masks").glob("*.png"))
    assert len(plain) == 3
    for path in plain:
        np.testing.assert_array_equal(cv2.imread(str(path)), cv2.imread(str(tmp_path / "window/masks" / path.name)))
        assert (tmp_path / "small/masks" / path.name).exists()


def test_predictions_see_the_colours_of_the_evaluation_whole_and_by_window(trained, shapes, tmp_path):
    source, colours = shapes / "images/test", "data.eval_transforms=[{name: InvertImg, p: 1}]"
    for name, options in {"plain": (), "whole": (colours, "--batch", 1), "window": (colours, "--window", 512)}.items():
        assert tool("predict", trained / "best.pt", source, "--out", tmp_path / name, *options) == 0
    paths = sorted((tmp_path / "plain/masks").glob("*.png"))
    masks = {
        name: np.concatenate([cv2.imread(str(tmp_path / name / "masks" / path.name)).ravel() for path in paths])
        for name in ("plain", "whole", "window")
    }
    assert np.array_equal(masks["whole"], masks["window"])
    assert not np.array_equal(masks["plain"], masks["whole"]), "the colours changed nothing"


def test_balanced_class_weights_are_counted_printed_and_train(shapes, tmp_path, capsys):
    config = ROOT / "configs/segmentation/unet_r18_shapes.yaml"
    assert tool("class_weights", config, *overrides(shapes), "--power", 1, "--json", tmp_path / "counts.json") == 0
    (option,) = shlex.split(capsys.readouterr().out.splitlines()[-1])
    masks = np.concatenate([np.asarray(Image.open(path)).ravel() for path in (shapes / "masks/train").glob("*.png")])
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert list(counts["pixels"].values()) == np.bincount(masks, minlength=5).tolist()
    losses = counts["losses"]["masks"]
    shares = [n * weight for n, weight in zip(counts["pixels"].values(), losses["class_weights"]) if n]
    assert shares == pytest.approx([shares[0]] * len(shares), rel=1e-3)
    assert {**losses, "class_weights": None} == {"cross_entropy": 1.0, "dice": 1.0, "class_weights": None}
    assert tool("train", config, "--out", tmp_path / "run", *overrides(shapes), option) == 0
    saved = torch.load(tmp_path / "run/best.pt", weights_only=True)["config"]
    assert saved["model"]["heads"]["masks"]["losses"] == losses


def test_balanced_losses_of_one_logit_weigh_the_object_against_the_rest():
    assert balanced_losses(None, "binary", np.array([900, 100])) == {"bce": 1.0, "dice": 1.0, "positive_weight": 3.0}
    for counts, power, message in (([5, 0], 0.5, "no pixel"), ([5, 5], 2.0, "--power"), ([5, 5], np.nan, "--power")):
        with pytest.raises(DensekitError, match=message):
            balanced_losses({"bce": 1.0}, "binary", np.array(counts), power)


def test_counting_follows_the_order_of_classes_matched_by_name(shapes):
    data = masks_data(images=shapes / "images/train", masks=shapes / "masks/train", classes=shapes / "classes.txt")
    assert (
        count_pixels(Relabelled(data, Classes(data.classes.names[::-1], data.classes.ids[::-1]))).tolist()
        == count_pixels(data).tolist()[::-1]
    )


def test_a_coco_json_trains_the_same_head(shapes, tmp_path):
    data = [
        f"data.{s}={{name: coco_masks, images: {shapes}/images, annotations: {shapes}/annotations/{s}.json}}"
        for s in ("train", "val", "test")
    ]
    config = ROOT / "configs/segmentation/unet_r18_shapes.yaml"
    assert tool("train", config, "--out", tmp_path / "run", *SMALL, *data) == 0


def test_a_mask_of_another_size_stops_training_with_one_line(shapes, tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "images/a.png")
    Image.fromarray(np.zeros((40, 51), np.uint8)).save(tmp_path / "masks/a.png")
    config = ROOT / "configs/segmentation/unet_r18_shapes.yaml"
    data = [f"data.train.{kind}={tmp_path}/{kind}" for kind in ("images", "masks")]
    with pytest.raises(DensekitError, match=r"images/a\.png: the image is 50 x 40 and its mask .*a\.png is 51 x 40"):
        tool("train", config, "--out", tmp_path / "run", *overrides(shapes), *data)


# --- every shipped config, on the layout that its header tells of -----------------------------------------------------


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if path.name.startswith("palette") and values.ndim == 2:
        image.putpalette([7 * i % 256 for i in range(768)])
    image.save(path)


def scene(seed, classes):
    random = np.random.default_rng(seed)
    labels = np.zeros((64, 80), np.int64)
    for label in range(1, classes):
        y, x = random.integers(0, 48), random.integers(0, 60)
        labels[y : y + 14, x : x + 14] = label
    return random.integers(0, 256, (64, 80, 3), np.uint8), labels


def make_nuclei(root):
    for split in ("train", "val", "test"):
        for name in "ab":
            image, labels = scene(1, 2)
            write(root / f"nuclei/images/{split}/{name}.png", image)
            write(root / f"nuclei/masks/{split}/{name}.png", labels.astype(np.uint8))


def make_camvid(root):
    colours = {"Void": (0, 0, 0), "Sky": (128, 128, 128), "Road": (128, 64, 128), "Car": (64, 0, 128)}
    for split in ("train", "val", "test"):
        for name in "ab":
            image, labels = scene(2, 4)
            write(root / f"camvid/{split}/{name}.png", image)
            write(root / f"camvid/{split}_labels/{name}_L.png", np.array(list(colours.values()), np.uint8)[labels])
    rows = [f"{name},{r},{g},{b}" for name, (r, g, b) in colours.items()]
    (root / "camvid/class_dict.csv").write_text("\n".join(["name,r,g,b", *rows]))


def make_cityscapes(root):
    for split in ("train", "val"):
        for city in ("aachen", "bonn"):
            image, labels = scene(3, 34)
            write(root / f"cityscapes/leftImg8bit/{split}/{city}/x_leftImg8bit.png", image)
            for kind in ("labelIds", "instanceIds"):
                write(root / f"cityscapes/gtFine/{split}/{city}/x_gtFine_{kind}.png", labels.astype(np.uint8))


def make_isic2018(root):
    for split in ("Training", "Validation", "Test"):
        for name in "ab":
            image, labels = scene(6, 2)
            write(root / f"isic2018/ISIC2018_Task1-2_{split}_Input/{name}.jpg", image)
            truth = root / f"isic2018/ISIC2018_Task1_{split}_GroundTruth"
            write(truth / f"{name}_segmentation.png", (255 * labels).astype(np.uint8))


def make_voc(root):
    voc = root / "VOCdevkit/VOC2012"
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    for split in ("train", "val"):
        for name in "ab":
            image, labels = scene(4, 21)
            write(voc / f"JPEGImages/palette_{split}_{name}.jpg", image)
            write(voc / f"SegmentationClass/palette_{split}_{name}.png", labels.astype(np.uint8))
        (voc / f"ImageSets/Segmentation/{split}.txt").write_text(f"palette_{split}_a\npalette_{split}_b\n")
    write(voc / "JPEGImages/without_mask.jpg", scene(5, 2)[0])


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for make in (make_nuclei, make_camvid, make_cityscapes, make_voc, make_isic2018):
        make(root)
    generate_shapes(root / "data/shapes", train=4, val=2, test=2, size=64)
    return root


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_a_shipped_segmentation_config_takes_a_step(path, layouts, tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEKIT_DATA", str(layouts))
    monkeypatch.chdir(layouts)
    small = [
        *SMALL,
        "model.heads.masks.norm=batch",
        "data.train_transforms=[{name: ScaleJitter, size: [64, 64], scale: [0.8, 1.5]}]",
        "data.eval_transforms=[{name: Resize, long: 64}]",
    ]
    assert tool("train", path, "--out", tmp_path / "run", *small) == 0
    assert (tmp_path / "run/best.pt").exists()
