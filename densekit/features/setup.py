"""From the options of an export to its parts: a bare backbone, transforms, the config of a split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch

from densekit.backbones.weights import load_backbone_weights, sha256_of
from densekit.config import Config, Part
from densekit.data.feature_store import VIEWS
from densekit.data.formats.coco.coco import CocoDataset
from densekit.data.formats.coco.file import open_coco
from densekit.data.formats.feature_set import stored_transform
from densekit.data.images.pixel_values import Range
from densekit.data.images.read import ImageReader
from densekit.data.images.settings import find_range, read_as, read_on, unfit_range
from densekit.data.transforms.pipeline import Pipeline
from densekit.errors import DensekitError
from densekit.features.export import images_per_shard
from densekit.features.extract import Extractor
from densekit.features.heads import joined_config
from densekit.features.recipe import (
    Dtype,
    FileFormat,
    Recipe,
    check_levels,
    describe_backbone,
    hash_of_names,
)
from densekit.features.shards import import_parquet
from densekit.features.sources import Boxes, ImageSource, NamedImages, names_in_folder, names_in_list
from densekit.model import DenseModel
from densekit.precision import Asked, Precision, choose_precision, settle_precision
from densekit.registry import BACKBONES
from densekit.types import Classes

Split = Literal["train", "val", "test"]
Specs = list[dict[str, Any]]


def bare_model(
    name: str,
    options: Mapping[str, Any],
    *,
    weights: str | None,
    bgr: bool | None = None,
    channels: int = 3,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
) -> tuple[DenseModel, list[str]]:
    """A backbone without heads, in evaluation mode, and lines that say where its weights came from.

    Args:
        name: registered name.
        options: of the backbone.
        weights: file or name; None starts from random numbers, and so does what the file lacks.
        bgr: whether the weights learned on images of blue, green, red.
        channels: of the images.
        mean: per channel on the 0..1 scale, or one for all.
        std: likewise.
        seed: of the random numbers.

    Raises:
        DensekitError: unknown backbone, weights that do not fit, or normalisation for other channels.
    """
    torch.manual_seed(seed)
    backbone = BACKBONES.build(name, options, path="model.backbone" if options else "", in_channels=channels)
    lines = [load_backbone_weights(backbone, weights, bgr=bgr).summary()] if weights is not None else []
    model = DenseModel(backbone, {}, mean=mean, std=std, classes=Classes((), ()), channels=channels)
    return model.eval(), lines or [f"backbone {name} with random weights (seed {seed}); give --weights"]


def model_of(config: Config) -> tuple[DenseModel, list[str]]:
    """The backbone of a run's config as training starts with it, and lines that say where its weights came from.

    Raises:
        DensekitError: the config starts from a whole model.
    """
    part, normalize = config.model.backbone, config.model.normalize
    if config.model.weights is not None:
        raise DensekitError(f"model.weights starts from {config.model.weights}; give that one as --checkpoint")
    return bare_model(
        part.name,
        part.options,
        weights=part.weights,
        bgr=part.bgr,
        channels=config.model.channels,
        mean=normalize.mean,
        std=normalize.std,
        seed=config.seed,
    )


def precision_of(
    option: Asked | None, config: Config | None, device: torch.device, *, asked: bool
) -> tuple[Precision, list[str]]:
    """The network's arithmetic: ``--precision``, else the config's, else what suits the device.

    Args:
        option: the value of ``--precision``.
        config: of the run or checkpoint; None for a bare backbone.
        device: of the network.
        asked: see ``settle_precision``, whose lines are given too.

    Raises:
        DensekitError: the user asks for what the device does not run.
    """
    if option is not None or config is None:
        return choose_precision(option or "auto", device), []
    return settle_precision(config.train.precision, device, asked=asked)


def resize_specs(size: Sequence[int] | None, short: int | None, long: int | None) -> Specs:
    """The transform that ``--size``, ``--short`` and ``--long`` stand for; none of them: images as they are."""
    if size is not None:
        if short is not None or long is not None:
            raise DensekitError("--size fixes both sides; leave --short and --long out, or use them alone")
        return [{"name": "Resize", "height": size[0], "width": size[1]}]
    sides = {name: side for name, side in (("short", short), ("long", long)) if side is not None}
    return [{"name": "Resize", **sides}] if sides else []


def split_to_export(config: Config | None, split: Split, specs: Specs) -> tuple[Config, list[str]]:
    """A config whose split gives the images to export, and the views that training on them will draw.

    A ``features`` data set is replaced by the one whose images it stands for, and the split's flips are taken off.

    Raises:
        DensekitError: no config, a size beside the config's, or transforms that stored features can't follow.
    """
    if config is None:
        raise DensekitError("--split needs the config that names the data; give --config or --checkpoint")
    if specs:
        raise DensekitError(f"--split {split} takes the config's transforms; leave --size, --short and --long out")
    name = "train_transforms" if split == "train" else "eval_transforms"
    pipeline = Pipeline(getattr(config.data, name), training=split == "train", path=f"data.{name}")
    resize, views = stored_transform(pipeline, f"data.{name}")
    whole = joined_config(config.model_dump(mode="json"))
    part = whole["data"][split]
    data = config.data.model_copy(update={name: tuple(resize), split: None if part is None else Part(**part)})
    return config.with_data(data), views


def views_of(flips: Sequence[str]) -> list[str]:
    """The views to export: the image itself, and the flips that were asked for, in one order."""
    return [view for view in VIEWS if view == "none" or view in flips]


def made_from(weights: str | Path | None) -> dict[str, Any]:
    """Where the weights came from, for the manifest."""
    path = Path(weights) if weights is not None else None
    return {
        "weights": None if path is None else str(path),
        "sha256": sha256_of(path) if path is not None and path.is_file() else None,
    }


def plain_source(
    images: Path | None,
    annotations: Path | None,
    listing: Path | None,
    *,
    specs: Specs,
    channels: int,
    reduced: bool = False,
) -> ImageSource:
    """Images that no config names: of a COCO json, of a list, or of a folder with its subfolders.

    Args:
        images: the folder; may be left out beside a list, whose names are then relative to its own folder.
        annotations: COCO json, or None.
        listing: text file with an image a line, or None.
        specs: ``Resize`` or nothing.
        channels: of the images.
        reduced: see ``NamedImages``.

    Raises:
        DensekitError: a combination that says nothing, or files that can't be read.
    """
    transforms = Pipeline(specs, training=False, path="--size, --short, --long")
    if annotations is not None:
        if images is None or listing is not None:
            raise DensekitError("--annotations takes the folder of its images as --images, and no --list")
        file = open_coco(annotations, labelled=False)
        return CocoDataset(images, file=file, transforms=transforms, channels=channels)
    note = None
    if listing is not None:
        names, root = names_in_list(listing), images if images is not None else listing.parent
    elif images is not None:
        (names, note), root = names_in_folder(images), images
    else:
        raise DensekitError("say what to export: --images, --annotations, --list, or --split of a config or checkpoint")
    notes, read_image = [note] if note else [], ImageReader(channels)
    return NamedImages(root, names, transforms=transforms, read_image=read_image, reduced=reduced, notes=notes)


def settle(source: ImageSource, config: Config | None, given: Range | None) -> list[str]:
    """Let a source read images of more than 8 bits on the config's range, the given one, or the one measured over it.

    Returns:
        Lines that say what was found, what is read in another spelling, and which files were left out.

    Raises:
        DensekitError: a range is given beside a config, or its ends are exchanged.
    """
    notes = [f"data: {line}" for line in getattr(source, "notes", ())]
    if config is not None and given is not None:
        raise DensekitError("--range is for --backbone; a config or checkpoint takes data.range=[low,high]")
    if config is not None:
        read_as(config.data, source)
        return [*notes, *unfit_range(config.data, source)]
    if given is not None and not given[0] < given[1]:
        raise DensekitError(f"--range: black lies below white, not {given[0]:g} and {given[1]:g}; exchange them")
    value_range, lines = (given, []) if given is not None else find_range(source)
    read_on(value_range, source)
    return [*notes, *lines]


@dataclasses.dataclass(slots=True)
class Export:
    """A whole export: what it makes, from what, and where to.

    Attributes:
        model: in evaluation mode, on its device.
        source: the images.
        levels: what to store; None: every level of the backbone.
        views: of ``VIEWS``.
        transform: what is done to the images, for the manifest.
        pad_to: images are padded to a multiple of this.
        dtype: of what is stored. precision: of the network. file_format: of the shards.
        boxes: given boxes by image id; None: the source's own.
        batch_size: images in one pass. shard_images: images a shard; None: about 64 MB of them.
    """

    model: DenseModel
    source: ImageSource
    levels: Sequence[str] | None
    views: list[str]
    transform: Specs
    pad_to: int = 32
    dtype: Dtype = "float16"
    precision: Precision = "fp32"
    file_format: FileFormat = "safetensors"
    boxes: dict[int | str, Boxes] | None = None
    batch_size: int = 8
    shard_images: int | None = None
    _extractor: Extractor | None = dataclasses.field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.levels = list(self.levels) if self.levels is not None else [level.name for level in self.model.levels]
        check_levels(self.model, self.levels, self.file_format)
        if self.file_format == "parquet":
            import_parquet()
        if not len(self.source):
            raise DensekitError("there are no images to export; check the paths")
        if self.boxes is None and isinstance(self.source, NamedImages) and any(n[:3] == "roi" for n in self.levels):
            raise DensekitError(
                "--levels roi cuts boxes out, and plain images have none; give --boxes or --annotations"
            )

    def extractor(self) -> Extractor:
        """The network's part, made once: it may hold a packed copy of the model."""
        assert self.levels is not None
        if self._extractor is None:
            options: dict[str, Any] = {"dtype": self.dtype, "precision": self.precision, "pad_to": self.pad_to}
            self._extractor = Extractor(self.model, self.levels, **options)
        return self._extractor

    def recipe(self) -> Recipe:
        """All that the store's bytes follow from.

        Raises:
            DensekitError: the first images can't be read, from which the size of a shard follows.
        """
        with ThreadPoolExecutor(1) as pool:  # hashing the weights leaves Python's lock, the extractor is made meanwhile
            described = pool.submit(describe_backbone, self.model)
            shard_images = self.shard_images or images_per_shard(self.source, self.extractor(), len(self.views))
            backbone = described.result()
        ids = (repr(self.source.image_id(index)) for index in range(len(self.source)))
        given = self.boxes
        images: dict[str, Any] = {"count": len(self.source), "sha256": hash_of_names(ids)}
        if getattr(self.source, "reduced", False):
            images["decode"] = "reduced"
        reader = getattr(self.source, "read_image", ImageReader())
        if reader.value_range is not None:
            images["range"] = list(reader.value_range)
        if reader.orientation != "exif":
            images["orientation"] = reader.orientation
        return Recipe(
            backbone=backbone,
            channels=self.model.channels,
            transform=self.transform,
            pad_to=self.pad_to,
            views=self.views,
            levels=list(self.levels or ()),
            dtype=self.dtype,
            precision=self.precision,
            device=self.model.mean.device.type,
            file_format=self.file_format,
            images=images,
            boxes=None if given is None else hash_of_names(f"{i!r} {rows.tolist()}" for i, rows in given.items()),
            shard_images=shard_images,
            batch_size=self.batch_size,
        )
