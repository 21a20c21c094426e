"""How often an epoch shows each image: the papers' formulas by hand, and epochs that keep to them."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densekit import build
from densekit.config import parse
from densekit.data.formats.shapes import generate_shapes
from densekit.data.loading.sampling import BatchPlan
from densekit.data.relabelled import Relabelled
from densekit.data.sampling.occurrences import Occurrences
from densekit.engine.distributed import join
from densekit.registry import SAMPLINGS
from densekit.types import Classes, DensekitError


def images_of(*classes: list[int]) -> Occurrences:
    """Images with objects of the given classes."""
    images = np.repeat(np.arange(len(classes)), [len(c) for c in classes])
    return Occurrences(len(classes), images, np.array([k for c in classes for k in c], np.int64))


def test_repeat_factors_are_those_of_the_paper():
    classes = [[0, 0, 1], [0], [0], [0, 2], [], [0, 0], [0, 1, 1, 2], [0]]
    repeats = SAMPLINGS.build("repeat_factor", {"threshold": 0.9}, images_of(*classes))
    parts = {k: sum(k in c for c in classes) / len(classes) for k in (0, 1, 2)}
    of_class = {k: max(1, math.sqrt(0.9 / f)) for k, f in parts.items()}
    assert parts == {0: 7 / 8, 1: 2 / 8, 2: 2 / 8}
    assert repeats.tolist() == pytest.approx([max((of_class[k] for k in c), default=1.0) for c in classes])


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_class_balanced_images_are_drawn_as_if_a_class_was_drawn_first(power):
    classes = [[0, 0, 1], [0], [0], [0, 3], [0], [], []]
    repeats = SAMPLINGS.build("class_balanced", {"power": power}, images_of(*classes))
    counts = {0: 5, 1: 1, 3: 1}
    total = sum(n**power for n in counts.values())
    chances = [sum(counts[k] ** power / total / counts[k] for k in set(c)) for c in classes[:5]]
    assert sum(chances) == pytest.approx(1)
    assert repeats.tolist() == pytest.approx([5 * p for p in chances] + [1, 1])


def test_an_epoch_shows_each_image_as_often_as_its_number_says():
    repeats = np.array([1.0, 1.0, 2.6, 0.25, 4.0, 1.5, 0.65, 3.0])
    plan = BatchPlan(8, 7, 5, None, repeats)
    assert (plan.length, plan.batches_per_epoch) == (14, 2)
    shown = np.zeros((500, 8))
    for epoch in range(500):
        addresses = plan.batch(2 * epoch) + plan.batch(2 * epoch + 1)
        assert len(set(addresses)) == 14, "an image that is shown twice is drawn anew"
        assert {e // plan.copies for e, _ in addresses} == {epoch}
        for _, index in addresses:
            shown[epoch, index] += 1
    assert ((shown == np.floor(repeats)) | (shown == np.ceil(repeats))).all()
    np.testing.assert_allclose(shown.mean(0), repeats, atol=4 * 0.5 / math.sqrt(500))


def test_whole_numbers_of_repeats_are_kept_exactly_with_and_without_like_shapes():
    repeats = np.array([1, 3, 1, 2, 1, 1, 5, 2], np.float64)
    for ratios in (None, np.array([2, 0.5] * 4, np.float32)):
        plan = BatchPlan(8, 4, 1, ratios, repeats)
        for epoch in range(5):
            counts = Counter(i for step in range(4) for _, i in plan.batch(4 * epoch + step))
            assert [counts[i] for i in range(8)] == repeats.tolist()


def test_ranks_share_a_batch_and_a_batch_may_be_larger_than_an_epoch():
    plan = BatchPlan(3, 8, 0, None, np.array([1.0, 0.5, 1.6]))
    assert plan.length == 3
    batch = plan.batch(4)
    assert plan.slice(4, 0, 2) + plan.slice(4, 1, 2) == batch
    assert len(set(batch)) == 8
    again = BatchPlan(3, 8, 0, None, np.array([1.0, 0.5, 1.6]))
    assert again.batch(4) == batch, "a function of seed and step alone"


def test_ones_are_each_image_once():
    assert Counter(i for _, i in BatchPlan(23, 23, 0, None, np.ones(23)).batch(3)) == Counter(range(23))


def test_a_long_tail_of_1203_classes_comes_forward():
    random = np.random.default_rng(0)
    shares = 1 / np.arange(1, 1204) ** 1.5
    labels = random.choice(1203, 60000, p=shares / shares.sum())
    found = Occurrences(20000, random.integers(0, 20000, 60000), labels)
    repeats = SAMPLINGS.build("repeat_factor", {}, found)
    once = found.once()
    before = np.bincount(once.labels, minlength=1203)
    after = np.bincount(once.labels, repeats[once.images], minlength=1203)
    rare = (before > 0) & (before <= 5)
    assert rare.sum() > 100
    assert after[rare].sum() > 2 * before[rare].sum()
    plan = BatchPlan(20000, 16, 0, None, repeats)
    assert plan.length == int(repeats.sum()) > 20000


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "set"
    generate_shapes(out, train=10, val=2, test=2, size=40)
    return out


def config(train: dict, head: str, **data) -> object:
    model = {"backbone": {"name": "resnet18"}, "heads": {"head": {"name": head}}}
    run = {"epochs": 3, "batch_size": 4, "optimizer": {"lr": 0.1}}
    return parse({"model": model, "data": {"train": train, **data}, "train": run}, "c.yaml")


SAMPLING = {"name": "repeat_factor", "threshold": 1.0}


def test_a_run_takes_its_length_and_its_batches_from_the_repeats(shapes):
    train = {"name": "coco", "images": shapes / "images", "annotations": shapes / "annotations/train.json"}
    settings = config(train, "faster_rcnn", sampling=SAMPLING, workers=0)
    data = build.dataset(settings, "train", training=True)
    present = [set(np.asarray(data.file.labels)[data.file.owners == i].tolist()) for i in range(10)]
    crowds = {i for i in range(10) if np.asarray(data.file.crowd)[data.file.owners == i].any()}
    repeats = build.repeats(settings, data)
    for i in set(range(10)) - crowds:
        factors = [math.sqrt(10 / sum(k in p for p in present)) for k in present[i]]
        assert repeats[i] == pytest.approx(max(factors, default=1), rel=0.2)  # a crowd may be a class's only one
    steps = int(repeats.sum()) // 4
    world = join("cpu")
    model, _ = build.model(settings, data.classes)
    assert build.plan(settings, [data], model).steps == 3 * steps
    batches = build.train_batches(settings, data, world, start=0)
    seen = Counter(i for _ in range(steps) for i in next(batches).ids)
    assert max(seen.values()) > 1
    assert data.transforms.epochs == 3 * (int(repeats.max()) + 1)


def test_classes_of_masks_folders_and_relabelled_sets_are_known(shapes):
    train = {"name": "masks", "images": shapes / "images/train", "masks": shapes / "masks/train"}
    classes = ["background", "circle", "square", "triangle", "star"]
    data = build.dataset(config(train | {"classes": classes}, "unet"), "train", training=True)
    found = data.occurrences()
    files = sorted((shapes / "masks/train").iterdir())
    pairs = {(i, int(v)) for i, file in enumerate(files) for v in np.unique(np.array(Image.open(file)))}
    assert set(zip(found.images.tolist(), found.labels.tolist())) == pairs
    assert data.occurrences() is found, "masks are read once"
    moved = Relabelled(data, Classes((*classes[::-1],), (0, 1, 2, 3, 4)))
    assert (moved.occurrences().labels == 4 - found.labels).all()


def test_options_and_data_sets_that_do_not_fit_are_named(shapes):
    train = {"name": "image_folder", "images": shapes / "images"}
    settings = config(train, "classifier", sampling={"name": "repeat_faktor"})
    data = build.dataset(settings, "train", training=True)
    with pytest.raises(DensekitError, match=r"data.sampling.name: .*'repeat_faktor'; .*'repeat_factor'"):
        build.repeats(settings, data)
    wrong = config(train, "classifier", sampling={"name": "repeat_factor", "threshold": 2})
    with pytest.raises(DensekitError, match=r"data.sampling.threshold: .* not 2"):
        build.repeats(wrong, data)
    assert build.repeats(config(train, "classifier", sampling=SAMPLING), data).shape == (14,)

    class Silent:
        def __len__(self) -> int:
            return 3

    with pytest.raises(DensekitError, match=r"data.sampling: repeat_factor looks at .* image_folder does not tell"):
        build.repeats(config(train, "classifier", sampling=SAMPLING), Silent())
