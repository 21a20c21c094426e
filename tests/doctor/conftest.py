"""A generated data set that is clean, and a copy of it to plant defects in."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from densekit.data.formats.shapes import generate_shapes
from densekit.doctor.examine import Report, examine


@pytest.fixture(scope="session")
def clean(tmp_path_factory):
    """24 + 6 + 6 images of 64 px."""
    out = tmp_path_factory.mktemp("doctor") / "shapes"
    generate_shapes(out, train=24, val=6, test=6, size=64, objects=4, seed=3)
    return out


class Planted:
    """A copy of the generated set whose files may be changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.json = root / "annotations" / "train.json"
        self.content: dict[str, Any] = json.loads(self.json.read_text())
        self.images, self.annotations = self.content["images"], self.content["annotations"]
        self.categories = self.content["categories"]

    def image_file(self, index: int) -> Path:
        return self.root / "images" / self.images[index]["file_name"]

    def own(self, index: int) -> list[dict[str, Any]]:
        """Annotations of an image that are no crowds."""
        image_id = self.images[index]["id"]
        return [a for a in self.annotations if a["image_id"] == image_id and not a["iscrowd"]]

    def plain(self, count: int) -> list[dict[str, Any]]:
        """The first annotations that are no crowds, of different images, whose box is not at the edge."""
        found: dict[int, dict[str, Any]] = {}
        for annotation in self.annotations:
            if not annotation["iscrowd"]:
                found.setdefault(annotation["image_id"], annotation)
        return list(found.values())[:count]

    def examine(self) -> Report:
        self.json.write_text(json.dumps(self.content))
        return examine(self.json, self.root / "images", processes=1, shown=False)


@pytest.fixture
def planted(clean, tmp_path):
    root = tmp_path / "shapes"
    shutil.copytree(clean, root)
    return Planted(root)


def bad(report: Report) -> Counter[str]:
    """How often each code worse than a note was found."""
    return Counter(d.code for d in report.defects if d.severity != "note")


def found(report: Report, code: str) -> list[Any]:
    return [d for d in report.defects if d.code == code]
