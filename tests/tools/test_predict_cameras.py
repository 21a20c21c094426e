"""A camera, with a stand-in for it: drawn as it ran, and whole where Ctrl-C ended it."""

from __future__ import annotations

import json
import os
import signal

import cv2
import numpy as np
import pytest

from densekit.data.images import video
from tests.tools import runs

real = cv2.VideoCapture


class Camera:
    """Frames as fast as they are asked for; at the end somebody presses Ctrl-C, and frames go on."""

    count, given, opened, clock = 5, 0, 0, 0.0

    def __new__(cls, source, *_):
        return super().__new__(cls) if source == 0 else real(source)

    def __init__(self, source, *_):
        type(self).opened += 1

    def read(self):
        type(self).given += 1
        type(self).clock += 0.25
        if self.given == self.count:
            os.kill(os.getpid(), signal.SIGINT)
        return True, np.full((48, 64, 3), 10 * self.given % 250, np.uint8)

    def get(self, key):
        return 8.0 if key == cv2.CAP_PROP_FPS else -1.0

    def release(self):
        type(self).opened -= 1


@pytest.fixture
def camera(monkeypatch):
    Camera.given = Camera.opened = 0
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(video.time, "monotonic", lambda: Camera.clock)
    return Camera


def test_a_camera_is_drawn_until_ctrl_c_and_the_video_is_whole(camera, checkpoints, tmp_path):
    out = tmp_path / "out"
    code, printed = runs.call("predict", checkpoints["detection"], "camera:0", "--out", out, "--batch", 2)
    assert code == 130, printed
    assert "camera_0: " in printed
    lines = [json.loads(line) for line in (out / "camera_0.jsonl").read_text().splitlines()]
    assert 3 <= len(lines) <= 8
    assert [line["seconds"] for line in lines] == pytest.approx([0.25 * n for n in range(len(lines))])
    drawn, capture = 0, real(str(out / "camera_0.mp4"))
    while capture.read()[0]:
        drawn += 1
    assert drawn == 2 * len(lines) - 1, "a frame each eighth of a second, where one came each quarter"
    assert camera.opened == 0
    assert {p.name for p in out.iterdir()} - {".lock"} == {"camera_0.mp4", "camera_0.jsonl"}


def test_what_is_no_camera_is_told(camera, checkpoints, monkeypatch):
    for name in ("camera:", "camera:front", "camera:-1"):
        assert "such as camera:0" in runs.refused("predict", checkpoints["detection"], name)
    assert "stand alone" in runs.refused("predict", checkpoints["detection"], "camera:0", "camera:1")
    monkeypatch.setattr(camera, "read", lambda _: (False, None))
    assert "camera:0 gives no picture" in runs.refused("predict", checkpoints["detection"], "camera:0")
