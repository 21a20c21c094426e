"""What is predicted on: images without annotations, as a data set and its batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from densekit.build import transforms, workers
from densekit.config import Config
from densekit.data.formats.coco.file import open_coco
from densekit.data.formats.coco.images import CocoImages
from densekit.data.images import settings as image_settings
from densekit.data.images.files import ImageFiles, list_images
from densekit.data.images.read import ImageReader
from densekit.data.loading import loader
from densekit.data.relabelled import matched
from densekit.engine.distributed import World
from densekit.errors import DensekitError
from densekit.model import DenseModel
from densekit.types import Classes


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
    note = listing.note()
    return images, [*([] if note is None else [note]), *_settled(config, images)]


def annotated_files(
    config: Config, built: DenseModel, inputs: Sequence[str], annotations: Path
) -> tuple[ImageFiles, list[str]]:
    """The images of a COCO json under its own ids, read as an evaluation reads them; else as ``image_files``.

    Args:
        config: of the model.
        built: the model; segmenters' and classifiers' classes are not compared with the json's.
        inputs: the one folder that the file names in the json are relative to.
        annotations: the json; it needs no annotations, as the lists of test servers have none.

    Raises:
        DensekitError: the inputs are not one folder, the json breaks a rule, or a detector's classes have other ids.
    """
    if len(built.heads) > 1:
        raise DensekitError(
            f"--annotations {annotations} gives the ids of one data set, and this checkpoint has the heads "
            f"{', '.join(built.heads)}: choose one by --heads"
        )
    if len(inputs) != 1 or not Path(inputs[0]).is_dir():
        raise DensekitError(
            f"--annotations {annotations}: IMAGES must then be one folder, the one that its file names are relative "
            f"to, not {' '.join(inputs)[:200]}; give that folder"
        )
    folder, file = Path(inputs[0]), open_coco(annotations, on_bad_box="drop", labelled=False)
    if not len(file):
        raise DensekitError(f"{annotations}: it names no image; give the json of the images in {folder}")
    files = CocoImages(folder, file)
    images = ImageFiles(
        [files.path(index) for index in range(len(file))],
        task=built.task,
        classes=_classes(built, file.classes, annotations, match_names=config.data.match_names),
        transforms=transforms(config.data, training=False),
        read_image=ImageReader(config.model.channels, config.data.max_pixels),
        ids=[file.image_id(index) for index in range(len(file))],
        sizes=file.sizes,
    )
    lines = [line for line in files.notes if line not in file.dropped]  # boxes are of no concern here
    return images, [*lines, *_not_in(annotations, folder, images), *_settled(config, images)]


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


def _settled(config: Config, images: ImageFiles) -> list[str]:
    image_settings.read_as(config.data, images)
    return image_settings.unfit_range(config.data, images)


def _classes(built: DenseModel, own: Classes, annotations: Path, *, match_names: bool) -> Classes:
    """The classes that detections come in: the model's, with the json's ids where names are matched."""
    if built.task != "detection" or own.are_among(built.classes):
        return built.classes
    if match_names:
        return matched(own, built.classes, str(annotations))
    raise DensekitError(
        f"{annotations}: its classes are not those that the model learned: {built.classes.difference(own)}; give the "
        f"json of a data set with these classes, or add data.match_names=true where names are the same and ids differ"
    )


def _not_in(annotations: Path, folder: Path, images: ImageFiles) -> list[str]:
    """A line on images of the folder that the json does not have."""
    known = {os.path.normpath(path) for path in images.paths}
    others = [p for p in list_images([folder]).paths if os.path.normpath(p) not in known]
    if not others:
        return []
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    named = ", ".join(str(path.relative_to(folder)) for path in others[:3])
    return [f"left out: {len(others)} images of {folder} that {annotations} does not have: {named}{more}"]
