"""Names that other programs choke on: files that are no images, and names that no text can hold."""

from __future__ import annotations

import json
import os
import sys

import cv2
import numpy as np
import pytest

from densekit.doctor.examine import examine
from densekit.doctor.telling.page import write_page
from densekit.doctor.telling.report import print_report, write_json
from tests.doctor.conftest import bad, found


def test_files_that_are_no_images_by_their_ending_are_counted_and_hidden_ones_are_not(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8))
    for name in ("b.heic", "c.HEIC", "labels.txt", "._a.png"):
        (tmp_path / name).write_bytes(b"no image")
    report = examine(tmp_path, processes=1, shown=False)
    assert bad(report) == {}
    assert [d.message.split(";")[0] for d in found(report, "files_left_out")] == ["left out: 2 .heic"]
    assert report.exit_code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_names_that_are_no_utf_8_are_told_escaped(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / os.fsdecode(b"caf\xe9\n.png")).write_bytes(b"no image")
    report = examine(tmp_path / "images", processes=1, shown=False)
    print_report(report)
    assert rf"{tmp_path}/images/caf\xe9\x0a.png: " in capsys.readouterr().out
    write_json(report, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["defects"][0]["file"].endswith(r"caf\xe9\x0a.png")
    write_page(report, tmp_path / "report.html")
    assert r"caf\xe9\x0a.png" in (tmp_path / "report.html").read_text("utf-8")
