"""Videos: drawn as videos, a line of json a frame; read back by OpenCV and json."""

from __future__ import annotations

import dataclasses
import json

import cv2
import numpy as np
import pytest

from densekit import Predictor, console
from densekit.data.images.video import open_video
from densekit.infer.video import predict_videos
from tests.tools import runs


def frames(count, size=(48, 64)):
    """Coloured squares that wander."""
    for number in range(count):
        image = np.full((*size, 3), 60, np.uint8)
        image[10:30, 4 * number : 4 * number + 20] = (255, 40, 40)
        yield image


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Seven frames, ten a second, in a format that keeps colours well."""
    path = tmp_path_factory.mktemp("videos") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for frame in frames(7):
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def read(path):
    capture = cv2.VideoCapture(str(path))
    found = []
    while (answer := capture.read())[0]:
        found.append(answer[1][..., ::-1])
    return found, capture.get(cv2.CAP_PROP_FPS)


def predicted(*arguments, code=0):
    found, printed = runs.call("predict", *arguments)
    assert found == code, printed
    return printed


def test_frames_come_in_order_in_rgb(video):
    opened = open_video(video)
    assert (opened.size, opened.rate, opened.count) == ((48, 64), 10, 7)
    seen = list(opened.frames())
    assert len(seen) == 7
    for one, other in zip(seen, frames(7)):
        assert np.abs(one.astype(int) - other).mean() < 12


@pytest.mark.parametrize("task", ["detection", "segmentation", "classification"])
def test_a_video_is_drawn_and_has_a_line_a_frame(checkpoints, video, tmp_path, task):
    out = tmp_path / "out"
    printed = predicted(checkpoints[task], video, "--out", out, "--batch", 3)
    assert f"{video}: 7 frames, written to" in printed
    drawn, rate = read(out / "clip.mp4")
    assert len(drawn) == 7
    assert rate == pytest.approx(10)
    assert drawn[0].shape == (192, 256, 3)  # four times as large: smaller pictures have no room for words
    lines = [json.loads(line) for line in (out / "clip.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(7))
    assert [line["seconds"] for line in lines] == pytest.approx([n / 10 for n in range(7)])
    for line, frame in zip(lines, open_video(video).frames()):
        want = Predictor(checkpoints[task])(frame).to_coco() if line["frame"] in (0, 6) else None
        if want is not None and task == "detection":
            assert [e["bbox"] for e in line["found"]] == [pytest.approx(e["bbox"], abs=2e-3) for e in want]
            assert [e["category_id"] for e in line["found"]] == [e["category_id"] for e in want]
    assert {p.name for p in out.iterdir()} - {".lock"} == {"clip.mp4", "clip.jsonl"}


def test_without_pictures_there_is_no_video(checkpoints, video, tmp_path):
    predicted(checkpoints["classification"], video, "--out", tmp_path / "out", "--no-pictures")
    assert {p.name for p in (tmp_path / "out").iterdir()} - {".lock"} == {"clip.jsonl"}


def test_a_video_that_is_cut_off_is_said_to_be(checkpoints, video, tmp_path):
    says_more = dataclasses.replace(open_video(video), count=20)
    predict = Predictor(checkpoints["classification"])
    (line,) = predict_videos(predict, [says_more], tmp_path / "out", pictures=False)
    assert "clip.avi: 7 frames, of 20 that it should have, written to" in line
    assert len((tmp_path / "out/clip.jsonl").read_text().splitlines()) == 7


def test_a_stop_keeps_the_frames_before_it(checkpoints, video, tmp_path, monkeypatch):
    from densekit.engine.guard import Stop

    calls = []

    def here(self):
        calls.append(self)
        return len(calls) >= 3

    monkeypatch.setattr(Stop, "here", here)
    predicted(checkpoints["classification"], video, "--out", tmp_path / "out", code=console.INTERRUPTED)
    assert len((tmp_path / "out/clip.jsonl").read_text().splitlines()) == 3
    assert len(read(tmp_path / "out/clip.mp4")[0]) == 3


def test_what_is_no_video_is_refused_in_one_line(checkpoints, video, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"<html>404</html>")
    (tmp_path / "a.png").write_bytes(b"")
    checkpoint = checkpoints["detection"]
    assert "bad.mp4: no video that can be read" in runs.refused("predict", checkpoint, tmp_path / "bad.mp4")
    assert "none.mp4: there is no such video" in runs.refused("predict", checkpoint, tmp_path / "none.mp4")
    assert "give each alone" in runs.refused("predict", checkpoint, video, tmp_path / "a.png")
    line = runs.refused("predict", checkpoint, video, "--formats", "voc")
    assert "--formats is for detectors on images; leave it out" in line
