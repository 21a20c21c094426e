"""Predictions on videos: each drawn as a video, and a json a frame."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
import numpy.typing as npt

from densekit.data.images.video import Video
from densekit.errors import DensekitError
from densekit.files import explain_os_error, only_process, remove_leftovers
from densekit.infer.joint_result import JointResult
from densekit.infer.result_files import GrowingFile, unique_stem
from densekit.infer.results import Result


def predict_videos(
    predict: Callable[[Iterable[npt.NDArray[Any]]], Iterable[Result | JointResult]],
    videos: Iterable[Video],
    out: Path,
    *,
    score: float | None = None,
    pictures: bool = True,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[str]:
    """Predict videos, one after the other.

    Writes ``<name>.jsonl``, a line a frame (``frame`` from 0, ``seconds``, and ``found`` as in a COCO result file), and
    ``<name>.mp4`` with what was found. Both take their place when the video ends, whole. A frame of a camera that took
    long to predict is written several times, so that the drawn video runs as fast as time did.

    Args:
        predict: from frames to their results; a ``Predictor``.
        videos: to predict.
        out: folder to write.
        score: lowest score of a box that is drawn; None: see ``BoxResult.cuts``.
        pictures: draw at all.
        stopping: asked behind each frame: whether to end; what was predicted is kept.

    Returns:
        A line on each video, when it is done.

    Raises:
        DensekitError: the folder can't be written.
    """
    claim = only_process(out)
    remove_leftovers(out)
    taken = set[str]()
    for video in videos:
        stem, count = unique_stem(video.path.stem, taken), 0
        lines = GrowingFile(out / f"{stem}.jsonl", start="")
        drawing: Any = DrawnVideo(out / f"{stem}.mp4", video.rate) if pictures else contextlib.nullcontext()
        with drawing:
            for count, result in enumerate(predict(video.frames()), 1):
                seconds = video.seconds[count - 1]
                lines.add([_line(result, count - 1, seconds)])
                if pictures:
                    drawing.add(result.frame(score), until=seconds)
                if stopping():
                    break
        lines.publish()
        short = f", of {video.count} that it should have" if count < video.count else ""
        yield f"{video.path}: {count} frames{short}, written to {out / stem}.jsonl{' and .mp4' * pictures}"
        if stopping():
            break
    del claim


class DrawnVideo:
    """An MP4 that takes its place when the block ends without an error.

    Args:
        path: of the file.
        rate: frames a second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self._rate = path, rate
        self._temporary = path.with_name(f".{path.stem[:40]}.{os.getpid()}.tmp.mp4")
        self._writer: cv2.VideoWriter | None = None
        self._size, self._count = (0, 0), 0

    def __enter__(self) -> Self:
        return self

    def add(self, picture: npt.NDArray[np.uint8], *, until: float = 0.0) -> None:
        """A frame [H, W, 3] RGB; all have the size of the first.

        Args:
            picture: the frame.
            until: second of the video that it reaches to; it is repeated until then.

        Raises:
            DensekitError: the file can't be written.
        """
        if self._writer is None:
            self._size = (picture.shape[1], picture.shape[0])
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._temporary), code, self._rate, self._size)
            if not self._writer.isOpened():
                raise DensekitError(f"{self.path}: OpenCV can't write this video; give another --out, or --no-pictures")
        frame = np.ascontiguousarray(picture[: self._size[1], : self._size[0], ::-1])
        for _ in range(max(1, round(until * self._rate) + 1 - self._count)):
            self._writer.write(frame)
            self._count += 1

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.release()
        try:
            if kind is None and self._writer is not None:
                os.replace(self._temporary, self.path)
        except OSError as error:
            raise DensekitError(explain_os_error(error, self.path)) from None
        finally:
            self._temporary.unlink(missing_ok=True)


def _line(result: Result | JointResult, frame: int, seconds: float) -> str:
    found = [{key: value for key, value in entry.items() if key != "image_id"} for entry in result.to_coco()]
    return json.dumps({"frame": frame, "seconds": round(seconds, 3), "found": found}) + "\n"
