"""Blood cells laid out as Roboflow exports them: what init makes of them has the boxes of the original json."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path

import pytest
import yaml
from pycocotools.coco import COCO

from densekit.registry import DATASETS
from tests.tools import runs

SPLITS = {"train": "train", "valid": "val", "test": "test"}
CATEGORIES = [{"id": 0, "name": "cells", "supercategory": "none"}]  # unused: the name of the project


@pytest.fixture(scope="module")
def originals():
    """pycocotools over the json of each split."""
    source = Path(os.environ.get("DENSEKIT_DATA", "data")) / "bccd"
    if not source.is_dir():
        pytest.skip(f"BCCD is not at {source}; set DENSEKIT_DATA to run this test")
    return source, {split: COCO(source / f"annotations/{split}.json") for split in SPLITS.values()}


def exported(name):
    return f"{name.replace('.', '_')}.rf.{zlib.crc32(name.encode()):032x}.jpg"


def write(folder, source, coco):
    """A split: images renamed, ids from 0, classes from 1 by name, with the keys that Roboflow writes."""
    folder.mkdir(parents=True)
    names = sorted(category["name"] for category in coco.cats.values())
    images, rows, own = [], [], {}
    for number, image in enumerate(coco.imgs.values()):
        own[image["id"]] = number
        name = exported(image["file_name"])
        shutil.copy(source / "images" / image["file_name"], folder / name)
        size = {"height": image["height"], "width": image["width"]}
        extra = {"license": 1, "date_captured": "2020-01-01T00:00:00+00:00", "extra": {"name": image["file_name"]}}
        images.append({"id": number, "file_name": name, **size, **extra})
    for number, row in enumerate(coco.anns.values()):
        category = names.index(coco.cats[row["category_id"]]["name"]) + 1
        what = {"image_id": own[row["image_id"]], "category_id": category, "bbox": row["bbox"]}
        rows.append({"id": number, **what, "area": row["area"], "segmentation": [], "iscrowd": 0})
    classes = [{"id": i, "name": name, "supercategory": "cells"} for i, name in enumerate(names, 1)]
    content = {"info": {}, "images": images, "annotations": rows, "categories": CATEGORIES + classes}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))


def boxes_of(coco, name_of):
    return sorted(
        (name_of(coco.imgs[a["image_id"]]["file_name"]), coco.cats[a["category_id"]]["name"], *map(float, a["bbox"]))
        for a in coco.anns.values()
    )


def test_roboflows_export_has_the_boxes_of_the_original_json(originals, tmp_path):
    source, cocos = originals
    for name, split in SPLITS.items():
        write(tmp_path / "in" / name, source, cocos[split])
    code, printed = runs.call("init", tmp_path / "in", "--out", tmp_path / "a.yaml", "--weights", "none")
    assert code == 0, printed
    tree = yaml.safe_load((tmp_path / "a.yaml").read_text())["data"]
    assert "split by seed" not in printed
    assert "'cells'" in printed
    for split, coco in cocos.items():
        part = tree[split]
        data = DATASETS.build(part.pop("name"), part, path=split)
        assert data.classes.names == ("Platelets", "RBC", "WBC")
        file = data.file
        found = sorted(
            (file.file_names[owner], data.classes.names[label], *box)
            for owner, label, box in zip(file.owners.tolist(), file.labels.tolist(), file.boxes.tolist())
        )
        assert found == boxes_of(coco, exported)
        assert f"{split}: {len(coco.imgs)} images, {len(coco.anns)} objects" in printed
