"""The page of a healthy set: what there is, counted by hand, drawn, and valid as HTML."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from densekit.data.formats.shapes import generate_shapes
from densekit.doctor.examine import examine
from densekit.doctor.telling.histogram import histograms
from densekit.doctor.telling.page import page, write_page

VOID = {"meta", "img", "br", "line", "rect"}


class Balance(HTMLParser):
    """Every tag that opens closes, in order; and what was seen."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], Counter()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, _):
        self.seen[tag] += 1
        if tag not in VOID or tag == "rect":
            self.open.append(tag)

    def handle_startendtag(self, tag, _):
        self.seen[tag] += 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def examined(path):
    return examine(path, processes=1, shown=False)


def drawn(text):
    """Samples, without the pictures of defects further down."""
    return text[text.index("<h3>Samples") :].split("<h2 id=")[0].count('class="zoom"')


def rows(text):
    """Cells of each table row, by its first cell."""
    found = {}
    for row in re.findall(r"<tr>(.*?)</tr>", text):
        first, *cells = re.findall(r"<t[hd]>(.*?)</t[hd]>", row)
        found[first] = [re.sub("<.*", "", cell) for cell in cells]
    return found


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("page") / "shapes")


def generate(folder):
    generate_shapes(folder, train=8, val=4, test=3, size=48)
    return folder


def test_a_healthy_set_shows_what_is_in_each_split(shapes, tmp_path):
    contents = {
        name: json.loads((shapes / f"annotations/{name}.json").read_text()) for name in ("train", "val", "test")
    }
    text = page(examined(shapes / "annotations"))
    seen = Balance(text).seen
    assert drawn(text) == 9
    assert seen["svg"] == 6
    found = rows(text)
    assert found[""] == ["train", "val", "test"]
    assert found["images"] == ["8", "4", "3"]
    assert found["objects"] == [str(len(c["annotations"])) for c in contents.values()]
    for category in contents["train"]["categories"]:
        counts = [sum(a["category_id"] == category["id"] for a in c["annotations"]) for c in contents.values()]
        assert [cell.split(" ")[0] for cell in found[category["name"]]] == [str(count) for count in counts]
    samples = re.findall(r'base64,([^"]*)"', text)
    for sample in samples:
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(sample), np.uint8), cv2.IMREAD_COLOR)
        assert 240 <= max(picture.shape) <= 640


def test_masks_are_counted_in_pixels_and_drawn_with_their_classes(shapes):
    from PIL import Image

    (shapes / "masks").is_dir() or pytest.fail("the generated set has no masks")
    names = (shapes / "classes.txt").read_text().split()
    text = page(examined(shapes))
    found = rows(text)
    counts = Counter()
    for path in (shapes / "masks/val").iterdir():
        counts.update(np.asarray(Image.open(path)).ravel().tolist())
    column = found[""].index("val")
    assert {n: found[n][column].split(" ")[0].replace(",", "") for n in names} == {
        name: str(counts[label]) for label, name in enumerate(names)
    }
    Balance(text)
    assert drawn(text) == 9


def test_folders_of_classes_are_counted_in_images(tmp_path):
    random = np.random.default_rng(0)
    for number in range(5):
        place = tmp_path / "set" / ("<b>cat" if number < 3 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{number}.png"), random.integers(0, 255, (20 + number, 30, 3), np.uint8))
    text = page(examined(tmp_path / "set"))
    assert "<b>cat" not in text
    found = rows(text)
    assert found["&lt;b&gt;cat"] == ["3 (60.0%)"]
    assert found["sizes of images"] == ["30 to 30 x 20 to 24, half of them up to 30 x 22"]
    Balance(text)
    assert drawn(text) == 5
    assert re.findall(r"<figcaption>(dog/[34].png)</figcaption>", text) == ["dog/3.png", "dog/4.png"]


def test_names_of_classes_and_files_are_escaped_and_files_named_from_the_set(tmp_path, monkeypatch):
    folder = generate(tmp_path / "shapes")
    path = folder / "annotations" / "train.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = '<img src="x">&"'
    content["annotations"][0]["bbox"] = [0, 0, 0, 9]
    path.write_text(json.dumps(content))
    report = examined(path)
    text = page(report)
    Balance(text)
    assert 'src="x"' not in text
    assert "&lt;img src=&quot;x&quot;&gt;&amp;&quot;" in text
    assert "box_without_area" in text
    assert str(tmp_path) not in text[text.index("What is there") :]
    assert "<li>images/train/000000.jpg: annotation" in text
    write_page(report, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text("utf-8") == text


def test_steps_of_a_histogram_double_and_hold_every_value():
    text = histograms("sides", {"a": [1.0, 2.0, 4.0, 1000.0], "b": [5.0]})
    steps = re.findall(r"<title>(\d+) to (\d+): (\d+)</title>", text)
    assert sum(int(count) for _, _, count in steps) == 5
    by_start = {int(low): int(count) for low, _, count in steps[: len(steps) // 2]}
    assert {low: count for low, count in by_start.items() if count} == {1: 1, 2: 1, 4: 1, 512: 1}
    assert "half of 4 up to 2<" in text
    one = histograms("sides", {"a": [480.0] * 3})
    assert [int(c) for c in re.findall(r": (\d+)</title>", one)].count(3) == 1
