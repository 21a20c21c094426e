"""What ships is executed: every YAML in configs/ parses, names parts that exist, and the detectors take a step."""

import runpy
import shutil
from pathlib import Path

import pytest
import torch

from densekit import config as configs
from densekit.data.formats.shapes import generate_shapes
from densekit.data.transforms.pipeline import Pipeline
from densekit.model import build_model
from densekit.registry import DATASETS, HEADS
from densekit.types import Classes

ROOT = Path(__file__).resolve().parents[1]
ALL = sorted((ROOT / "configs").rglob("*.yaml"))
SMALL = (
    "channels=32",
    "mask_channels=32",
    "box_head_width=64",
    "rpn_before_nms=[100,50]",
    "rpn_after_nms=[100,50]",
    "samples=32",
)
DETECTION = sorted(p for folder in ("detection", "instance") for p in (ROOT / "configs" / folder).glob("*.yaml"))


def name(path):
    return str(path.relative_to(ROOT / "configs"))


@pytest.mark.parametrize("path", ALL, ids=name)
def test_a_shipped_config_parses_and_its_parts_and_transforms_exist(path):
    config = configs.load(path)
    for data in config.sets.values():
        Pipeline(data.train_transforms, training=True)
        Pipeline(data.eval_transforms, training=False)
        for part in filter(None, (data.train, data.val, data.test)):
            assert part.options.keys() <= DATASETS.options(part.name).keys()


@pytest.mark.parametrize("path", ALL, ids=name)
def test_a_shipped_config_builds_its_model(path):
    config = configs.load(path)
    with torch.device("meta"):
        model = build_model(config.model, Classes(("a", "b"), (0, 1)))
    assert len(model.levels) >= 3


@pytest.mark.parametrize("path", ALL, ids=name)
def test_a_shipped_config_says_how_to_launch_it(path):
    header = path.read_text().split("\nseed:")[0]
    assert f"tools/train.py configs/{name(path)}" in header


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Generated shapes in the folder layouts that the configs of detectors expect."""
    root = tmp_path_factory.mktemp("data")
    generate_shapes(root / "shapes", train=4, val=2, test=2, size=64)
    for split in ("train", "val", "test"):
        source = root / "shapes/annotations" / f"{split}.json"
        for target in (
            f"bccd/annotations/{split}.json",
            f"nuclei/annotations/{split}.json",
            f"coco/annotations/instances_{split}2017.json",
        ):
            (root / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, root / target)
        shutil.copytree(root / "shapes/images", root / f"coco/{split}2017")
    for name in ("bccd", "nuclei"):
        shutil.copytree(root / "shapes/images", root / name / "images")
    (root / "data").symlink_to(root)
    return root


def test_what_makes_a_step_small_is_an_option_of_a_head():
    taken = {option for head in HEADS.names() for option in HEADS.options(head)}
    assert {option.split("=")[0] for option in SMALL} <= taken


@pytest.mark.parametrize("path", DETECTION, ids=name)
@pytest.mark.usefixtures("narrow_resnet18")
def test_a_shipped_detection_config_takes_a_step(path, layouts, tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEKIT_DATA", str(layouts))
    monkeypatch.chdir(layouts)
    ((head, part),) = configs.load(path).model.heads.items()
    options = [option for option in SMALL if option.split("=")[0] in HEADS.options(part.name)]
    assert options, f"{part.name} takes none of {SMALL}"
    small = [
        "model.backbone.weights=null",
        "model.backbone.name=resnet18",
        *(f"model.heads.{head}.{option}" for option in options),
        "data.workers=0",
        "data.train_transforms=[{name: Resize, long: 64}]",
        "data.eval_transforms=[{name: Resize, long: 64}]",
        "data.fixed_size=null",
        "train.epochs=null",
        "train.steps=1",
        "train.batch_size=2",
        "train.precision=fp32",
        "evaluation.pictures=0",
    ]
    main = runpy.run_path(str(ROOT / "tools/train.py"))["main"]
    assert main([str(path), "--out", str(tmp_path / "run"), *small]) == 0
    assert (tmp_path / "run/best.pt").exists()
