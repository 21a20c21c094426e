"""The export: decode, run the network and write, all at once.

What is written follows from the recipe alone. A shard is a fixed slice of the images; its batches are made of the
images of one padded size in their order and never reach over its end. So neither the number of processes and threads
nor where an earlier run was killed can be seen in the files.

On the CPU each batch has one thread, and as many batches run at once as torch has threads: they need not wait for one
another at the end of every layer, which costs most where something else uses the cores too. Images are decoded in
threads there as well, which start at once and hand over their pixels without a copy; decoding leaves Python's lock.
Beside a GPU, which wants thousands of images a second, the lock would be too narrow: processes decode.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.utils.data

from densekit import machine
from densekit.errors import DensekitError
from densekit.features.extract import Boxes, Extractor, View
from densekit.features.shards import Row, ShardFolder
from densekit.features.sources import ImageSource
from densekit.types import Sample

SHARD_BYTES = 2**26
"""About how large a shard becomes where the user does not say how many images it has."""

AHEAD = 8
"""Images that each worker decodes before they are needed."""


@dataclasses.dataclass(slots=True)
class Times:
    """What an export spent its time with, in seconds.

    Attributes:
        decode: reading, decoding and resizing, summed over the workers. workers: their number, at least 1.
        network: batches to the device, the network, tensors back, summed over the lanes. lanes: batches at once.
        disk: writing and checksums. total: by the clock. images: how many were read.
    """

    decode: float = 0.0
    network: float = 0.0
    disk: float = 0.0
    total: float = 0.0
    images: int = 0
    workers: int = 1
    lanes: int = 1

    def stages(self) -> dict[str, float]:
        """Seconds that each stage alone would take."""
        return {"decode": self.decode / self.workers, "network": self.network / self.lanes, "disk": self.disk}

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
            f"({self.workers} decoding at once, {self.lanes} in the network); {slowest} holds it back"
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
    """Image by index, for a worker."""

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


def _decoded_in_threads(source: ImageSource, indices: Sequence[int], workers: int) -> Generator[_Decoded, None, None]:
    """Images in the order of ``indices``."""
    own = threading.local()

    def start() -> None:
        own.decoder = _Decoder(copy.copy(source))
        own.decoder.source.transforms = copy.deepcopy(source.transforms)  # albumentations' keep a state while they run

    pool = ThreadPoolExecutor(workers, "decode", start)
    try:
        ahead: collections.deque[Future[_Decoded]] = collections.deque()
        for index in indices:
            if len(ahead) == AHEAD * workers:
                yield ahead.popleft().result()
            ahead.append(pool.submit(lambda index: own.decoder[index], index))
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decoded_in_processes(source: ImageSource, indices: Sequence[int], workers: int) -> Generator[_Decoded, None, None]:
    """Images in the order of ``indices``, from processes that share what the source holds in memory; 0: from here."""
    context = machine.forking() if workers else None
    loader: Iterable[_Decoded] = torch.utils.data.DataLoader(
        _Decoder(source),  # type: ignore[arg-type]  # anything with __getitem__ does where a sampler gives the indices
        sampler=indices,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        multiprocessing_context=context,
        worker_init_fn=_start_worker if workers else None,
    )
    yield from loader


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
        workers: threads that decode, beside a GPU processes; 0 decodes here.
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
        self.network = Lanes(extractor)
        self.times = Times(workers=max(1, workers), lanes=self.network.count)

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
        in_threads = self.network.shares_cores and self.workers
        decode = _decoded_in_threads if in_threads else _decoded_in_processes
        decoded = decode(self.source, indices, self.workers if indices else 0)
        with contextlib.closing(decoded), ThreadPoolExecutor(1) as writer, self.network:
            writing: Future[None] | None = None
            for shard in shards:
                made = self._make(decoded, len(self.folder.recipe.shard(shard)), progress)
                if writing is not None:
                    writing.result()  # at most one shard waits in memory; an error of the writer comes out here
                writing = writer.submit(self._write, shard, *made)
            if writing is not None:
                writing.result()
        self.times.network = self.network.seconds
        self.times.total += time.perf_counter() - began
        return self.times

    def _make(
        self, decoded: Iterator[_Decoded], count: int, progress: Callable[[], None]
    ) -> tuple[list[Row], list[dict[str, object]], list[Future[None]]]:
        """The rows of the next ``count`` images, those that could not be read, and what fills the rows in."""
        unreadable: list[dict[str, object]] = []
        rows: list[Row] = []
        running: list[Future[None]] = []
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
                canvas = self.extractor.canvas(entry[1])
                waiting.setdefault(canvas, []).append(entry)
                if len(waiting[canvas]) == self.folder.recipe.batch_size:
                    running.append(self.network.submit(waiting.pop(canvas)))
        running += [self.network.submit(group) for group in waiting.values()]
        return rows, unreadable, running

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

    def _write(
        self, shard: int, rows: list[Row], unreadable: list[dict[str, object]], running: list[Future[None]]
    ) -> None:
        for batch in running:
            batch.result()
        began = time.perf_counter()
        self.folder.write(shard, rows, unreadable)
        self.times.disk += time.perf_counter() - began


class Lanes:
    """Threads that run an extractor on batches at once; a context that starts and ends them.

    On the CPU there are as many as torch has threads, each of which has itself alone: a batch's numbers are then the
    same whatever the number of cores. On a GPU there is one, which works while the next batch is decoded.

    Args:
        extractor: gives the tensors of a batch.
    """

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.shares_cores = extractor.device.type == "cpu"
        self.threads = torch.get_num_threads()
        self.count = self.threads if self.shares_cores else 1
        self.seconds = 0.0
        self._lock = threading.Lock()
        self._room = threading.Semaphore(2 * self.count)

    def __enter__(self) -> Lanes:
        self._pool = ThreadPoolExecutor(self.count, initializer=self._start)
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self.shares_cores:
            torch.set_num_threads(self.threads)  # a thread's setting is also that of threads to come

    def submit(self, group: Sequence[tuple[Row, View]]) -> Future[None]:
        """Fill in the tensors of a group of one padded size, soon; waits while enough batches wait."""
        self._room.acquire()
        running = self._pool.submit(self._extract, group)
        running.add_done_callback(lambda _: self._room.release())
        return running

    def _start(self) -> None:
        if self.shares_cores:
            torch.set_num_threads(1)

    def _extract(self, group: Sequence[tuple[Row, View]]) -> None:
        began = time.perf_counter()
        for (row, _), tensors in zip(group, self.extractor([view for _, view in group])):
            row.tensors = tensors
        with self._lock:
            self.seconds += time.perf_counter() - began


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
