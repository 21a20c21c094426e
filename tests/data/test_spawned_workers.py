"""Loader workers where no process can be forked: everything that they work with travels to them pickled."""

from __future__ import annotations

import gzip
import itertools
import pickle
import struct

import numpy as np
import pytest
import torch

from densekit.data.images.files import ImageFiles
from densekit.data.images.read import ImageReader
from densekit.data.loading.loader import eval_loader, train_loader
from densekit.data.transforms.pipeline import Pipeline
from densekit.features.export import _Decoder
from densekit.features.setup import plain_source
from densekit.registry import DATASETS
from densekit.types import Classes
from tests import systems
from tests.data.formats import folders
from tests.tools import runs

SPECS = [
    {"name": "ScaleJitter", "size": [24, 24]},
    {"name": "HorizontalFlip"},
    {"name": "ColorJitter", "p": 1.0},
    {"name": "ContrastStretch"},
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = runs.make_data(tmp_path_factory.mktemp("data") / "shapes")
    for name, values in (("images", np.arange(96).reshape(6, 4, 4)), ("labels", np.arange(6) % 3)):
        head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
        (folder / f"{name}.gz").write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes(), mtime=0))
    label(folder / "labelled")
    return folder


def options(name, shapes):
    boxes = {"images": f"{shapes}/images", "annotations": f"{shapes}/annotations/train.json"}
    masks = {"images": f"{shapes}/images/train", "masks": f"{shapes}/masks/train", "classes": f"{shapes}/classes.txt"}
    return {
        "coco": boxes,
        "coco_masks": boxes,
        "masks": masks,
        "joint": {"labels": [{"name": "coco", **boxes}, {"name": "masks", **masks}]},
        "image_folder": {"images": f"{shapes}/folders/train"},
        "idx": {"images": f"{shapes}/images.gz", "labels": f"{shapes}/labels.gz"},
        "yolo": {"folder": f"{shapes}/labelled"},
        "voc": {"folder": f"{shapes}/labelled"},
        "labelme": {"folder": f"{shapes}/labelled"},
        "csv": {"boxes": f"{shapes}/labelled/boxes.csv"},
    }[name]


def label(folder):
    """Six images with one box each, in every format."""
    for n in range(6):
        folders.image(folder / f"images/{n}.jpg")
        folders.text(folder / f"labels/{n}.txt", "0 .5 .5 .5 .5\n")
        folders.xml(folder / f"Annotations/{n}.xml", f"{n}.jpg", [folders.xml_object("cell", (1, 1, 9, 9))])
        shape = ("cell", "polygon", [[1, 1], [9, 1], [5, 9]])
        folders.labelme(folder / f"json/{n}.json", f"../images/{n}.jpg", [shape])
    folders.text(folder / "boxes.csv", "".join(f"{n}.jpg,1,1,9,9,cell\n" for n in range(6)))


def same(a, b):
    fields = ("image", "id", "original_size", "seed", "boxes", "labels", "crowd", "mask", "truth", "target")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in fields)


@pytest.mark.parametrize("name", sorted(set(DATASETS.names()) - {"features"}))  # whose test stands with its store
def test_a_data_set_gives_the_same_samples_in_another_process(name, shapes):
    specs = SPECS if name != "idx" else []
    data = DATASETS.build(name, options(name, shapes), transforms=Pipeline(specs), training=True, seed=3)
    other = pickle.loads(pickle.dumps(data))
    assert len(other) == len(data)
    assert all(same(data.sample(1, index), other.sample(1, index)) for index in (4, 0, 4))


def test_plain_images_travel_too(shapes):
    paths = sorted((shapes / "images/val").glob("*.jpg"))
    given = {"task": "detection", "classes": Classes(("a",), (1,)), "transforms": Pipeline(SPECS[3:])}
    files = ImageFiles(paths, read_image=ImageReader(3), **given)
    source = plain_source(shapes / "images/val", None, None, specs=[{"name": "Resize", "short": 20}], channels=3)
    for data in (files, source):
        assert same(pickle.loads(pickle.dumps(data)).sample(0, 2), data.sample(0, 2))
    assert same(pickle.loads(pickle.dumps(_Decoder(source)))[1].sample, _Decoder(source)[1].sample)


def test_batches_are_the_same_from_a_worker_that_starts_anew(shapes, monkeypatch):
    systems.without_fork(monkeypatch)
    data = DATASETS.build("coco", options("coco", shapes), transforms=Pipeline(SPECS[:2]), training=True, seed=3)
    here, there = (train_loader(data, batch_size=4, seed=1, workers=workers, start=2) for workers in (0, 1))
    for ours, theirs in itertools.islice(zip(here, there), 3):
        assert ours.ids == theirs.ids
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.targets.boxes.boxes, theirs.targets.boxes.boxes)
    evaluated = eval_loader(data, batch_size=4)
    source = pickle.loads(pickle.dumps(evaluated._make.args[0]))
    assert [source[step].ids for step in range(len(evaluated))] == [batch.ids for batch in evaluated]
