"""The ``idx`` data set: MNIST's file format, plain or gzip, for classification.

The format (LeCun, Cortes, Burges, "The MNIST database", section "File formats"): two zero bytes, a byte for the type,
a byte for the number of dimensions, each dimension as a big-endian 32-bit number, then the values.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densekit.data.images.read import MAX_PIXELS
from densekit.data.loading.sampling import draw_seed, sample_random
from densekit.data.sampling.occurrences import Occurrences
from densekit.data.transforms.pipeline import Pipeline
from densekit.errors import DensekitError
from densekit.registry import DATASETS
from densekit.types import Classes, Sample, Task

_UNSIGNED_BYTE = 0x08
_MOST_BYTES = 2**33


class IdxDataset:
    """Images and labels of a pair of idx files.

    An image's id is its position in the file; a class's id is the number that stands for it in the label file.

    Args:
        images: [N, H, W] or [N, H, W, C] uint8.
        labels: [N] uint8.
        names: of the classes, for the numbers 0, 1, ...; None: the numbers themselves.
        part: first position and the one after the last; None: all.
        transforms: applied to every sample; None: images at their own size.
        seed: of the run; every draw comes from (seed, epoch, index).
        channels: image channels to give; grey images are repeated.

    Raises:
        DensekitError: counts, channels, labels or the part do not fit.
    """

    task: Task = "classification"

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.uint8],
        *,
        names: tuple[str, ...] | None = None,
        part: tuple[int, int] | None = None,
        transforms: Pipeline | None = None,
        seed: int = 0,
        channels: int = 1,
    ) -> None:
        images = images[..., None] if images.ndim == 3 else images
        if len(images) != len(labels):
            raise DensekitError(f"there are {len(images)} images but {len(labels)} labels; give files that go together")
        if images.shape[3] not in (1, channels):
            raise DensekitError(
                f"the images have {images.shape[3]} channels, the model takes {channels}; set "
                f"model.channels={images.shape[3]}"
            )
        self.classes = _classes(labels, names)
        self.first, end = part or (0, len(images))
        if not 0 <= self.first < end <= len(images):
            raise DensekitError(
                f"part: [{self.first}, {end}] is not within 0 and {len(images)}; give [first, one after the last]"
            )
        self.images, self.labels = images[self.first : end], labels[self.first : end]
        self.transforms = transforms or Pipeline(())
        self.seed = seed
        self.channels = channels

    def __len__(self) -> int:
        return len(self.labels)

    def image_id(self, index: int) -> int:
        """The position in the file."""
        return self.first + index

    def sample(self, epoch: int, index: int) -> Sample:
        """Transform one image; the same (epoch, index) always gives the same sample."""
        random = sample_random(self.seed, epoch, index)
        image = self.images[index]
        if image.shape[2] != self.channels:
            image = np.repeat(image, self.channels, axis=2)
        sample = Sample(
            image,
            id=self.first + index,
            original_size=(int(image.shape[0]), int(image.shape[1])),
            seed=draw_seed(random),
            target=int(self.labels[index]),
        )
        return self.transforms(sample, random)

    def occurrences(self) -> Occurrences:
        """The class of each image."""
        return Occurrences(len(self), np.arange(len(self)), self.labels)

    def aspect_ratios(self) -> npt.NDArray[np.float32]:
        """[len] width / height: the same for all."""
        return np.full(len(self), self.images.shape[2] / self.images.shape[1], np.float32)


def read_idx(path: Path, dimensions: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, plain or gzip.

    Args:
        path: the file.
        dimensions: how many dimensions it may have.

    Raises:
        DensekitError: missing, damaged, of another type, or with other dimensions.
    """
    data = _content(path)
    if len(data) < 4 or data[:2] != b"\0\0":
        raise DensekitError(f"{path}: not an idx file (it does not begin with two zero bytes); give MNIST's files")
    kind, count = data[2], data[3]
    if kind != _UNSIGNED_BYTE:
        raise DensekitError(f"{path}: values of type {kind:#04x}; only unsigned bytes (0x08) are read")
    if count not in dimensions:
        wanted = " or ".join(map(str, dimensions))
        raise DensekitError(f"{path}: {count} dimensions, {wanted} are needed; are images and labels exchanged?")
    start = 4 + 4 * count
    shape = tuple(int(n) for n in np.frombuffer(data[4:start], ">u4")) if len(data) >= start else ()
    if len(shape) != count or len(data) - start != math.prod(shape):
        raise DensekitError(
            f"{path}: the header says {' x '.join(map(str, shape)) or 'nothing'} values, but {len(data) - start} are "
            f"there; the file is damaged, copy it again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            data = file.read(_MOST_BYTES)
    except FileNotFoundError:
        raise DensekitError(
            f"{path}: there is no such file; give an idx file such as train-images-idx3-ubyte.gz"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DensekitError(f"{path}: cannot be read ({error}); copy it again") from None
    return data


def _classes(labels: npt.NDArray[np.uint8], names: tuple[str, ...] | None) -> Classes:
    highest = int(labels.max(initial=0))
    names = names or tuple(str(number) for number in range(highest + 1))
    if highest >= len(names):
        raise DensekitError(f"classes: {len(names)} names, but the labels go up to {highest}; name them all from 0")
    return Classes.named_in("classes", names, range(len(names)))


@DATASETS.register
def idx(
    *,
    images: Path,
    labels: Path,
    classes: tuple[str, ...] | None = None,
    part: tuple[int, int] | None = None,
    transforms: Pipeline | None = None,
    seed: int = 0,
    training: bool = False,
    channels: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> IdxDataset:
    """Images and labels in MNIST's format.

    Args:
        images: file of images, plain or gzip.
        labels: file of labels, plain or gzip.
        classes: names for the labels 0, 1, ...; None: the numbers themselves.
        part: first position and the one after the last, to split one file; null: all.
        transforms: see ``IdxDataset``.
        seed: see ``IdxDataset``.
        training: classification looks at the same data either way.
        channels: see ``IdxDataset``.
        max_pixels: larger images are refused.
    """
    pixels = read_idx(images, (3, 4))
    if pixels.shape[1] * pixels.shape[2] > max_pixels:
        raise DensekitError(f"{images}: {pixels.shape[2]} x {pixels.shape[1]} pixels is over {max_pixels}; raise it")
    return IdxDataset(
        pixels,
        read_idx(labels, (1,)),
        names=classes,
        part=part,
        transforms=transforms,
        seed=seed,
        channels=channels,
    )
