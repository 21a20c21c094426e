"""Real data in every format: the boxes are those of the COCO json, to 1e-3 pixels."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from pycocotools.coco import COCO

from densekit.registry import DATASETS
from tests.data.formats import folders


@pytest.fixture(scope="module")
def bccd(tmp_path_factory):
    """The test split's images in a folder, and pycocotools over its json."""
    import os
    from pathlib import Path

    source = Path(os.environ.get("DENSEKIT_DATA", "data")) / "bccd"
    if not source.is_dir():
        pytest.skip(f"BCCD is not at {source}; set DENSEKIT_DATA to run this test")
    coco = COCO(source / "annotations/test.json")
    folder = tmp_path_factory.mktemp("bccd")
    (folder / "images").mkdir()
    for image in coco.imgs.values():
        shutil.copy(source / "images" / image["file_name"], folder / "images")
    return folder, coco


def rows(coco, image):
    """(class, x, y, width, height) of the objects of an image."""
    return [(coco.cats[a["category_id"]]["name"], *a["bbox"]) for a in coco.imgToAnns[image["id"]]]


def as_yolo(folder, coco):
    names = sorted(c["name"] for c in coco.cats.values())
    for image in coco.imgs.values():
        width, height = image["width"], image["height"]
        lines = [
            f"{names.index(name)} {(x + w / 2) / width:.7f} {(y + h / 2) / height:.7f} {w / width:.7f} {h / height:.7f}"
            for name, x, y, w, h in rows(coco, image)
        ]
        folders.text(folder / "labels" / image["file_name"].replace(".jpg", ".txt"), "\n".join(lines) + "\n")
    return {"folder": str(folders.text(folder / "data.yaml", f"test: images\nnames: {json.dumps(names)}\n"))}


def as_voc(folder, coco):
    for image in coco.imgs.values():
        objects = [folders.xml_object(n, (x + 1, y + 1, x + w, y + h), 0) for n, x, y, w, h in rows(coco, image)]
        path = folder / "Annotations" / image["file_name"].replace(".jpg", ".xml")
        folders.xml(path, image["file_name"], objects, (image["width"], image["height"]))
    return {"folder": str(folder)}


def as_labelme(folder, coco):
    for image in coco.imgs.values():
        shapes = [(n, "rectangle", [[x + w, y + h], [x, y]]) for n, x, y, w, h in rows(coco, image)]
        path = folder / "json" / image["file_name"].replace(".jpg", ".json")
        folders.labelme(path, f"../images/{image['file_name']}", shapes, (image["width"], image["height"]))
    return {"folder": str(folder)}


def as_csv(folder, coco):
    lines = [
        f"{image['file_name']},{x},{y},{x + w},{y + h},{name}"
        for image in coco.imgs.values()
        for name, x, y, w, h in rows(coco, image)
    ]
    table = "filename,xmin,ymin,xmax,ymax,class\n" + "\n".join(lines)
    return {"boxes": str(folders.text(folder / "boxes.csv", table)), "images": str(folder / "images")}


@pytest.mark.parametrize("name", ["yolo", "voc", "labelme", "csv"])
def test_the_boxes_are_those_of_the_coco_json(bccd, name):
    folder, coco = bccd
    options = {"yolo": as_yolo, "voc": as_voc, "labelme": as_labelme, "csv": as_csv}[name](folder, coco)
    data = DATASETS.build(name, options)
    assert len(data) == len(coco.imgs) == 72
    found = {}
    for image, *row, _ in folders.objects(data):
        found.setdefault(image.removeprefix("images/"), []).append(row)
    for image in coco.imgs.values():
        wanted = sorted(rows(coco, image))
        own = sorted(found[image["file_name"]])
        assert [row[0] for row in own] == [row[0] for row in wanted]
        order = [np.lexsort(np.round([row[1:] for row in several]).T) for several in (own, wanted)]
        boxes = [np.array([row[1:] for row in several])[o] for several, o in zip((own, wanted), order)]
        assert np.abs(boxes[0] - boxes[1]).max() < 1e-3
    assert sum(map(len, found.values())) == len(coco.anns) == 945
