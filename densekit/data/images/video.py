"""Video files and cameras, frame by frame."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from densekit.data.images.web import is_web
from densekit.errors import DensekitError

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".mts", ".ts"})
"""File name endings, lower case, that count as videos."""

_CAMERA = "camera:"


@dataclasses.dataclass(frozen=True, slots=True)
class Video:
    """A video file that can be read, or a camera.

    Attributes:
        path: the file; of a camera what results are named after.
        size: (height, width) of its frames.
        rate: frames a second.
        count: frames that it says it has; 0 where it does not say.
        camera: its number; None: a file.
        seconds: since the first frame, when each was taken; filled while ``frames`` runs.
    """

    path: Path
    size: tuple[int, int]
    rate: float
    count: int
    camera: int | None = None
    seconds: list[float] = dataclasses.field(default_factory=list, compare=False)

    def frames(self) -> Iterator[npt.NDArray[Any]]:
        """[H, W, 3] uint8 RGB each, until the video ends or can't be read any further; a camera's come as they are."""
        self.seconds.clear()
        with _opened(self.path if self.camera is None else self.camera) as capture:
            began = None
            while True:
                there, frame = capture.read()
                if not there:
                    return
                now = time.monotonic()
                began = now if began is None else began
                self.seconds.append(len(self.seconds) / self.rate if self.camera is None else now - began)
                yield np.ascontiguousarray(frame[..., ::-1])


def open_video(path: Path) -> Video:
    """Look at a video file.

    Raises:
        DensekitError: it is missing, or no video that OpenCV can read.
    """
    if not path.is_file():
        raise DensekitError(f"{path}: there is no such video; correct the path")
    with _opened(path) as capture:
        there, frame = capture.read()
        if not there:
            raise DensekitError(f"{path}: no video that can be read; convert it, such as by ffmpeg -i FILE out.mp4")
        rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return Video(path, frame.shape[:2], rate if 0 < rate < 1000 else 25.0, max(0, int(count)))


def open_camera(number: int) -> Video:
    """Look through a camera.

    Raises:
        DensekitError: there is none of that number, or it gives no picture.
    """
    with _opened(number) as capture:
        there, frame = capture.read()
        rate = capture.get(cv2.CAP_PROP_FPS)
    if not there:
        raise DensekitError(f"camera:{number} gives no picture; connect it, close what else uses it, or try camera:0")
    return Video(Path(f"camera_{number}"), frame.shape[:2], rate if 0 < rate < 1000 else 25.0, 0, number)


def videos_among(inputs: Sequence[str]) -> list[Video]:
    """The inputs as videos; empty where they are images.

    Args:
        inputs: names of files, or one camera such as ``camera:0``.

    Raises:
        DensekitError: some are videos and others not, or one can't be read.
    """
    if (camera := next((text for text in inputs if text.startswith(_CAMERA)), None)) is not None:
        if len(inputs) > 1 or not re.fullmatch(r"\d{1,4}", number := camera.removeprefix(_CAMERA)):
            raise DensekitError(f"{camera} must be a camera's number, such as camera:0, and stand alone")
        return [open_camera(int(number))]
    if (far := next((t for t in inputs if is_web(t) and Path(t).suffix.lower() in VIDEO_SUFFIXES), None)) is not None:
        raise DensekitError(f"{far}: videos are read from files; download it, and give the file")
    paths = [Path(text) for text in inputs]
    are = [path.suffix.lower() in VIDEO_SUFFIXES for path in paths]
    if any(are) and not all(are):
        raise DensekitError(f"{paths[are.index(True)]} is a video, {paths[are.index(False)]} is none; give each alone")
    return [open_video(path) for path in paths] if all(are) else []


@contextlib.contextmanager
def _opened(source: Path | int) -> Iterator[cv2.VideoCapture]:
    capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    try:
        yield capture
    finally:
        capture.release()
