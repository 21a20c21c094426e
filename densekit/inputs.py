"""What is predicted on: images without annotations, as a data set and its batches."""

from __future__ import annotations

from collections.abc import Sequence

from densekit.build import transforms, workers
from densekit.config import Config
from densekit.data.images import settings as image_settings
from densekit.data.images.files import ImageFiles, list_images
from densekit.data.images.read import ImageReader
from densekit.data.loading import loader
from densekit.engine.distributed import World
from densekit.model import DenseModel


def image_files(config: Config, built: DenseModel, inputs: Sequence[str]) -> tuple[ImageFiles, list[str]]:
    """Files, folders and globs as a data set to predict on, and lines on what was left out of it and its values."""
    listing = list_images(inputs)
    images = ImageFiles(
        listing.paths,
        task=built.task,
        classes=built.classes,
        transforms=transforms(config.data, training=False),
        read_image=ImageReader(config.model.channels, config.data.max_pixels),
    )
    image_settings.read_as(config.data, images)
    note = listing.note()
    return images, [*([] if note is None else [note]), *image_settings.unfit_range(config.data, images)]


def image_batches(
    config: Config, images: ImageFiles, world: World, *, batch_size: int, on_bad_image: loader.OnBadImage
) -> loader.EvalLoader:
    """Batches of plain images."""
    return loader.eval_loader(
        images,
        batch_size=batch_size,
        workers=workers(config, world),
        pad_to=config.data.pad_to,
        on_bad_image=on_bad_image,
        pin_memory=world.device.type == "cuda",
    )
