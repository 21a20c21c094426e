"""Video files, frame by frame."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from densekit.errors import DensekitError

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".mts", ".ts"})
"""File name endings, lower case, that count as videos."""


@dataclasses.dataclass(frozen=True, slots=True)
class Video:
    """A video file that can be read.

    Attributes:
        path: the file.
        size: (height, width) of its frames.
        rate: frames a second.
        count: frames that it says it has; 0 where it does not say.
    """

    path: Path
    size: tuple[int, int]
    rate: float
    count: int

    def frames(self) -> Iterator[npt.NDArray[Any]]:
        """[H, W, 3] uint8 RGB each, until the video ends or can't be read any further."""
        with _opened(self.path) as capture:
            while True:
                there, frame = capture.read()
                if not there:
                    return
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


def videos_among(inputs: Sequence[str]) -> list[Video]:
    """The inputs as videos; empty where they are images.

    Raises:
        DensekitError: some are videos and others not, or one can't be read.
    """
    paths = [Path(text) for text in inputs]
    are = [path.suffix.lower() in VIDEO_SUFFIXES for path in paths]
    if any(are) and not all(are):
        raise DensekitError(f"{paths[are.index(True)]} is a video, {paths[are.index(False)]} is none; give each alone")
    return [open_video(path) for path in paths] if all(are) else []


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    capture = cv2.VideoCapture(str(path))
    try:
        yield capture
    finally:
        capture.release()
