"""The export: decode in worker processes, run the network, write in a thread, all three at once.

What is written follows from the recipe alone. A shard is a fixed slice of the images; its batches are made of the
images of one padded size in their order and never reach over its end. So neither the number of processes nor where an
earlier run was killed can be seen in the files.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.utils.data

from densekit.errors import DensekitError
from densekit.features.extract import Boxes, Extractor, View
from densekit.features.shards import Row, ShardFolder
from densekit.features.sources import ImageSource
from densekit.types import Sample

SHARD_BYTES = 2**26
"""About how large a shard becomes where the user does not say how many images it has."""


@dataclasses.dataclass(slots=True)
class Times:
    """What an export spent its time with, in seconds.

    Attributes:
        decode: reading, decoding and resizing, summed over the workers. workers: their number, at least 1.
        network: batches to the device, the network, tensors back. disk: writing and checksums.
        total: by the clock. images: how many were read.
    """

    decode: float = 0.0
    network: float = 0.0
    disk: float = 0.0
    total: float = 0.0
    images: int = 0
    workers: int = 1

    def stages(self) -> dict[str, float]:
        """Seconds that each stage alone would take."""
        return {"decode": self.decode / self.workers, "network": self.network, "disk": self.disk}

    def summary(self) -> str:
        """One line: each stage's time, and which one holds the export back."""
        if not self.images:
            return "nothing was left to do"
        stages = self.stages()
        slowest = max(stages, key=stages.__getitem__)
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.items())
        rate = self.images / max(self.total, 1e-9)
        return (
            f"{self.images} images in {self.total:.1f} s ({rate:.1f} a second): {parts} "
            f"({self.workers} decoding at once); {slowest} holds it back"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Decoded:
    """A worker's answer: a sample or why there is none, and the seconds it took."""

    index: int
    sample: Sample | None
    reason: str
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Decoder:
    """Image by index, for the loader's workers."""

    source: ImageSource

    def __getitem__(self, index: int) -> _Decoded:
        began = time.perf_counter()
        try:
            sample = self.source.sample(0, index)
            # Masks and the like stay where they are: only what is exported travels between processes.
            sample = dataclasses.replace(sample, mask=None, truth=None, labels=None, crowd=None)
            return _Decoded(index, sample, "", time.perf_counter() - began)
        except DensekitError as error:
            return _Decoded(index, None, str(error), time.perf_counter() - began)


def _decoded(source: ImageSource, indices: Sequence[int], workers: int) -> Iterator[_Decoded]:
    """Images in the order of ``indices``, from processes that share what the source holds in memory."""
    context = multiprocessing.get_context("fork") if workers and sys.platform == "linux" else None
    loader: Iterable[_Decoded] = torch.utils.data.DataLoader(
        _Decoder(source),  # type: ignore[arg-type]  # anything with __getitem__ does where a sampler gives the indices
        sampler=indices,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=8 if workers else None,
        multiprocessing_context=context,
        worker_init_fn=_start_worker if workers else None,
    )
    return iter(loader)


def _start_worker(worker: int) -> None:
    """Ctrl-C reaches the whole process group: the main process alone decides what becomes of the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Exporter:
    """Exports the shards that are missing.

    Args:
        source: the images.
        extractor: gives the tensors of a batch.
        folder: takes the shards.
        boxes: by image id, in the pixels of the files, for ``roi``; None: the source's own.
        workers: processes that decode; 0 decodes here.
    """

    def __init__(
        self,
        source: ImageSource,
        extractor: Extractor,
        folder: ShardFolder,
        *,
        boxes: Mapping[int | str, Boxes] | None = None,
        workers: int = 0,
    ) -> None:
        self.source, self.extractor, self.folder = source, extractor, folder
        self.boxes, self.workers = boxes, workers
        self.times = Times(workers=max(1, workers))

    def run(self, shards: Sequence[int], progress: Callable[[], None] = lambda: None) -> Times:
        """Make and write shards; each is on disk as a whole before the next but one is begun.

        Args:
            shards: their numbers.
            progress: called after each image.

        Raises:
            DensekitError: a full disk, or values that do not fit; the shards written so far stay.
        """
        began = time.perf_counter()
        indices = [index for shard in shards for index in self.folder.recipe.shard(shard)]
        decoded = _decoded(self.source, indices, self.workers if indices else 0)
        with ThreadPoolExecutor(1) as writer:
            writing: Future[None] | None = None
            for shard in shards:
                rows, unreadable = self._make(decoded, len(self.folder.recipe.shard(shard)), progress)
                if writing is not None:
                    writing.result()  # at most one shard waits in memory; an error of the writer comes out here
                writing = writer.submit(self._write, shard, rows, unreadable)
            if writing is not None:
                writing.result()
        self.times.total += time.perf_counter() - began
        return self.times

    def _make(
        self, decoded: Iterator[_Decoded], count: int, progress: Callable[[], None]
    ) -> tuple[list[Row], list[dict[str, object]]]:
        """The rows of the next ``count`` images, and those that could not be read."""
        unreadable: list[dict[str, object]] = []
        rows: list[Row] = []
        waiting: dict[tuple[int, int], list[tuple[Row, View]]] = {}
        for _ in range(count):
            item = next(decoded)
            self.times.decode, self.times.images = self.times.decode + item.seconds, self.times.images + 1
            progress()
            if item.sample is None:
                image = self.source.image_id(item.index)
                unreadable.append({"index": item.index, "image": image, "reason": item.reason})
                continue
            for entry in self._views(item.index, item.sample):
                rows.append(entry[0])
                group = waiting.setdefault(self.extractor.canvas(entry[1]), [])
                group.append(entry)
                if len(group) == self.folder.recipe.batch_size:
                    self._extract(group)
        for group in waiting.values():
            self._extract(group)
        return rows, unreadable

    def _extract(self, group: list[tuple[Row, View]]) -> None:
        """Fill in the tensors of a group of one padded size, and empty it."""
        if not group:
            return
        began = time.perf_counter()
        for (row, _), tensors in zip(group, self.extractor([view for _, view in group])):
            row.tensors = tensors
        self.times.network += time.perf_counter() - began
        group.clear()

    def _views(self, index: int, sample: Sample) -> Iterator[tuple[Row, View]]:
        boxes = self._boxes(sample)
        size = (int(sample.image.shape[0]), int(sample.image.shape[1]))
        for name in self.folder.recipe.views:
            image, moved = mirrored(sample.image, boxes, name)
            yield Row(index, sample.id, name, size, sample.original_size, {}), View(image, moved)

    def _boxes(self, sample: Sample) -> Boxes | None:
        if self.boxes is None:
            return sample.boxes
        height, width = sample.image.shape[0] / sample.original_size[0], sample.image.shape[1] / sample.original_size[1]
        given = self.boxes.get(sample.id, np.zeros((0, 4), np.float32))
        return given * np.array([width, height, width, height], np.float32)

    def _write(self, shard: int, rows: list[Row], unreadable: list[dict[str, object]]) -> None:
        began = time.perf_counter()
        self.folder.write(shard, rows, unreadable)
        self.times.disk += time.perf_counter() - began


def images_per_shard(source: ImageSource, extractor: Extractor, views: int) -> int:
    """Images for a shard of about ``SHARD_BYTES``, a power of 2 from 16 to 4096, from the first readable image.

    Raises:
        DensekitError: the first images can't be read, not one of them.
    """
    reasons = []
    for index in range(min(len(source), 64)):
        try:
            sample = source.sample(0, index)
        except DensekitError as error:
            reasons.append(str(error))
            continue
        tensors = extractor([View(sample.image, sample.boxes)])[0]
        size = views * sum(t.numel() * t.element_size() for t in tensors.values())
        return int(min(4096, max(16, 2 ** int(np.log2(SHARD_BYTES / max(1, size))))))
    raise DensekitError(f"not one of the first {len(reasons)} images can be read; the first: {reasons[0]}")


def mirrored(image: npt.NDArray[Any], boxes: Boxes | None, view: str) -> tuple[npt.NDArray[Any], Boxes | None]:
    """An image and its boxes in a view: ``none``, ``horizontal``, ``vertical`` or ``both``."""
    for name, axis, low in (("horizontal", 1, 0), ("vertical", 0, 1)):
        if view not in (name, "both"):
            continue
        if boxes is not None:
            boxes = boxes.copy()
            boxes[:, [low, low + 2]] = image.shape[axis] - boxes[:, [low + 2, low]]
        image = np.flip(image, axis)
    return image, boxes
