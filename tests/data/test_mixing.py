"""Mixed samples are a pure function of (seed, epoch, index); they end when they should, on data that they can mix."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from densekit import build
from densekit.config import parse
from densekit.data.formats.coco.coco import CocoDataset, coco
from densekit.data.formats.image_folder import ImageFolder
from densekit.data.formats.shapes import generate_shapes
from densekit.data.loading.loader import train_loader
from densekit.data.transforms.pipeline import Pipeline
from densekit.types import Batch, DensekitError
from tests.data.mixing import discs, mixed, objects

SPECS = [
    {"name": "CopyPaste", "p": 1},
    {"name": "Mosaic", "size": [48, 64]},
    {"name": "MixUp", "p": 1},
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "set"
    generate_shapes(out, train=8, val=2, test=2, size=40)
    return out


def make(shapes: Path, spec: dict, **options) -> CocoDataset:
    files = {"images": shapes / "images", "annotations": shapes / "annotations/train.json"}
    specs = [{"name": "Resize", "height": 32, "width": 40}, {"name": "HorizontalFlip"}, spec]
    return coco(**files, transforms=Pipeline(specs), seed=3, **options)


def same(a: Batch, b: Batch) -> bool:
    ours, theirs = (
        (x.images, x.seeds, x.targets.boxes.boxes, x.targets.boxes.labels, x.targets.boxes.masks.pixels) for x in (a, b)
    )
    return a.ids == b.ids and all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s["name"])
def test_batches_do_not_depend_on_workers_ranks_or_where_a_run_goes_on(shapes, spec):
    data = make(shapes, spec, instances=True)
    fixed = {"batch_size": 4, "seed": 0, "fixed_sizes": [(64, 64)], "steps": 8}
    alone = list(itertools.islice(train_loader(data, **fixed), 4))
    shared = list(itertools.islice(train_loader(make(shapes, spec, instances=True), **fixed, workers=2, start=1), 3))
    assert all(map(same, alone[1:], shared))
    ranks = [next(train_loader(data, **fixed, rank=r, world_size=2)) for r in (0, 1)]
    assert torch.equal(torch.cat([r.images for r in ranks]), alone[0].images)
    plain = next(train_loader(make(shapes, {"name": "HorizontalFlip"}, instances=True), **fixed))
    assert plain.ids == alone[0].ids
    assert not torch.equal(plain.images, alone[0].images)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s["name"])
def test_the_last_epochs_are_not_mixed(shapes, spec):
    data = make(shapes, spec | {"until": 0.5}, instances=True)
    next(train_loader(data, batch_size=4, seed=0, steps=8))  # two batches an epoch: four epochs
    assert data.transforms.epochs == 4
    plain = make(shapes, {"name": "HorizontalFlip", "p": 0}, instances=True)
    changed = [
        not np.array_equal(data.sample(epoch, index).image, plain.sample(epoch, index).image)
        for epoch, index in itertools.product(range(4), range(8))
    ]
    assert sum(changed[:16]) > 8
    assert not any(changed[16:])


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s["name"])
def test_no_image_has_more_objects_than_the_loader_makes_room_for(spec):
    sample, others = objects(discs(9, (32, 40), 1), 1), [objects(discs(9, (32, 40), s), s) for s in (2, 3)]
    most = Pipeline([spec]).most_objects(9)
    assert 9 < max(len(mixed(spec, sample, *others, seed=s).boxes) for s in range(20)) <= most


def config(train: dict, specs: list, head: str = "faster_rcnn") -> object:
    model = {"backbone": {"name": "resnet18"}, "heads": {"main": {"name": head}}}
    tree = {"data": {"train": train, "train_transforms": specs}, "train": {"epochs": 1, "optimizer": {"lr": 0.1}}}
    return parse({"model": model, **tree}, "c.yaml")


def test_a_detector_of_boxes_pastes_by_masks_that_it_does_not_learn(shapes):
    train = {"name": "coco", "images": shapes / "images", "annotations": shapes / "annotations/train.json"}
    data = build.dataset(config(train, [SPECS[0]]), "train", training=True)
    samples = [data.sample(0, i) for i in range(8)]
    assert sum(len(s.boxes) for s in samples) > len(data.file.labels)
    assert all(s.instances is None for s in samples)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "CopyPaste", "classes": ["circel"]}, r"train_transforms\[0\].classes: .* 'circel'; .*'circle'"),
        ({"name": "CopyPaste", "classes": []}, "classes lists no class"),
        ({"name": "CopyPaste", "until": 0}, r"train_transforms\[0\].until"),
        ({"name": "Mosaic"}, r"train_transforms\[0\].size must be given"),
        ({"name": "Mosaic", "size": [9, 9], "centre": [0.7, 0.3]}, r"centre is \(smallest, largest\)"),
        ({"name": "MixUp", "alpha": 0}, r"train_transforms\[0\].alpha"),
    ],
)
def test_options_that_do_not_fit_the_data_are_named(shapes, spec, words):
    train = {"name": "coco", "images": shapes / "images", "annotations": shapes / "annotations/train.json"}
    with pytest.raises(DensekitError, match=words):
        build.dataset(config(train, [spec]), "train", training=True)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s["name"])
def test_classifiers_evaluations_and_data_sets_without_others_are_refused(shapes, spec):
    train = {"name": "image_folder", "images": shapes / "images"}
    with pytest.raises(DensekitError, match=r"\[0\]: .* labels of whole images; remove it"):
        build.dataset(config(train, [spec], "classifier"), "train", training=True)
    with pytest.raises(DensekitError, match="cannot be undone"):
        Pipeline([spec], training=False)
    with pytest.raises(DensekitError, match="mixes images of the data set, which gives none; remove it"):
        ImageFolder(shapes / "images", transforms=Pipeline([spec])).sample(0, 0)


def test_copy_paste_needs_masks_of_objects(tmp_path, shapes):
    text = (shapes / "annotations/train.json").read_text()
    (tmp_path / "boxes.json").write_text(text.replace('"segmentation"', '"nothing"'))
    with pytest.raises(DensekitError, match=r"not one of its .* pasted; .* and no CopyPaste"):
        coco(
            images=shapes / "images",
            annotations=tmp_path / "boxes.json",
            transforms=Pipeline([{"name": "CopyPaste"}]),
        )
