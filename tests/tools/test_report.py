"""report.py: a page that needs nothing else, valid, with every number that there is, and hostile names as text."""

from __future__ import annotations

import base64
import re

import cv2
import numpy as np
import pytest

from densekit.engine import checkpoint
from densekit.run_report.pictures import PICTURE_BYTES, as_jpeg
from tests.doctor.test_page import Balance
from tests.tools import runs
from tests.tools.conftest import TASKS


class Page(Balance):
    """Balanced tags of a page, where SVG's empty ones close themselves."""

    def handle_startendtag(self, tag, _):
        self.seen[tag] += 1


@pytest.fixture(scope="module")
def pages(checkpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    for task in TASKS:
        path = folder / task / "report.html"
        code, said = runs.call("report", checkpoints[task].parent, "--out", path, "--pictures", 2)
        assert code == 0, said
    return {task: (folder / task / "report.html").read_text("utf-8") for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_a_page_is_valid_and_needs_no_other_file(pages, task):
    text = pages[task]
    seen = Page(text).seen
    assert seen["h2"] > 6
    assert seen["img"] == 4
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(""", text)
    assert all(
        target.startswith(("data:image/jpeg;base64,", "#s")) for target in re.findall(r'(?:src|href)="([^"]*)', text)
    )
    for data in re.findall(r"data:image/jpeg;base64,([^\"]+)", text):
        assert cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR) is not None


@pytest.mark.parametrize("task", TASKS)
def test_a_page_tells_the_numbers_the_making_and_the_curves(pages, checkpoints, task):
    text, content = pages[task], checkpoint.load(checkpoints[task])
    number = {"detection": "AP", "segmentation": "mIoU", "classification": "top1"}[task]
    assert re.search(rf'<p class="lead">{number} (\d\.\d{{3}}, 95 % between|is not defined)', text)
    assert "SHA-256 " in text
    assert f"torch {content['made']['torch']}" in text
    assert 'data-name="train loss"' in text
    assert "Whether scores mean what they say" in text
    if task == "detection":
        assert "TIDE" in text
        assert "precision upwards" in text


def test_hostile_names_of_classes_and_files_are_text(hostile):
    text = hostile.read_text("utf-8")
    assert "alert(" in text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(" in text
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror" in text
    Page(text)


def test_runs_side_by_side_are_compared_with_the_first(checkpoints, tmp_path):
    best = checkpoints["segmentation"]
    other = checkpoint.load(best)
    other["config"]["train"]["optimizer"]["lr"] = 0.5
    checkpoint.save(tmp_path / "other" / "best.pt", other)
    out = tmp_path / "both.html"
    code, said = runs.call("report", best.parent, tmp_path / "other", "--out", out, "--pictures", 0)
    assert code == 0, said
    text = out.read_text("utf-8")
    Page(text)
    assert "<td>train.optimizer.lr</td><td>0.001</td><td>0.5</td>" in text.replace("0.0010", "0.001")
    assert "no difference is shown: B - A is +0.0000 mIoU" in text


def test_what_cant_be_told_is_one_line(checkpoints, tmp_path):
    one = checkpoints["segmentation"].parent
    assert "say where by --out" in runs.refused("report", one, one)
    assert "holds no best.pt" in runs.refused("report", tmp_path)


def test_pictures_take_no_more_than_their_share():
    noise = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
    whole, small = as_jpeg(noise, 10**9), as_jpeg(noise, 20_000)
    assert len(small) <= 20_000 < len(whole)
    assert PICTURE_BYTES * 4 / 3 < 15e6  # as they stand in the page
