"""What a run decides on its image files before it reads the first: settled by the training set, kept in the config."""

from __future__ import annotations

import dataclasses
from typing import Any

from densekit.config import DataConfig
from densekit.data.formats.feature_set import store_of
from densekit.data.images.pixel_values import Range
from densekit.data.images.read import ImageReader, Orientation
from densekit.data.images.survey import Survey, survey
from densekit.data.images.value_range import Values, as_option, measure
from densekit.data.transforms.pipeline import Pipeline
from densekit.errors import DensekitError

_FEW = 8
"""Images that are decoded to see whether a range suits them."""


def settle(data: DataConfig, train_set: Any) -> tuple[DataConfig, list[str]]:
    """Fill in ``data.range`` and ``data.orientation`` where the config leaves them to the training set.

    Args:
        data: of the run.
        train_set: the data set to learn from; stored features bring what they were made with.

    Returns:
        The config to go on with, to be stored with the run, and lines that say what was found.
    """
    if (store := store_of(train_set)) is not None:
        found = {"range": store.value_range, "orientation": "stored" if store.orientation == "stored" else None}
        return data.model_copy(update={k: v for k, v in found.items() if getattr(data, k) is None}), []
    seen = survey(train_set)
    value_range, lines = (data.range, _of_declared(data.range, seen)) if data.range else _measured(train_set, seen)
    if data.orientation is None:
        data = data.model_copy(update={"orientation": "stored" if seen.stored > seen.turned else None})
        lines += _of_orientation(seen)
    return data.model_copy(update={"range": value_range}), lines


def leaves_open(data: DataConfig, dataset: Any) -> bool:
    """Whether a data set has images whose reading the config leaves to the training set."""
    seen = survey(dataset)
    return (data.range is None and bool(seen.deep)) or (data.orientation is None and seen.open > 0)


def read_as(data: DataConfig, dataset: Any) -> None:
    """Let a data set read its images as the config says; data sets without image files are left alone."""
    _read(dataset, value_range=data.range, orientation=data.orientation or "exif")


def read_on(value_range: Range | None, dataset: Any) -> None:
    """Let a data set read its deep images on a range."""
    _read(dataset, value_range=value_range, orientation="exif")


def _read(dataset: Any, *, value_range: Range | None, orientation: Orientation) -> None:
    inner = getattr(dataset, "inner", dataset)  # matched by name: the data set behind it reads the files
    reader = getattr(inner, "read_image", None)
    if isinstance(reader, ImageReader):
        inner.read_image = dataclasses.replace(reader, value_range=value_range, orientation=orientation)


def check_store_reading(data: DataConfig, dataset: Any) -> None:
    """Refuse stored features of images that were read in another way; data sets of pixels pass.

    Raises:
        DensekitError: the range or the orientation differs.
    """
    store = store_of(dataset)
    if store is None:
        return
    own, theirs = (None if r is None else as_option(r) for r in (data.range, store.value_range))
    ours = {"range": own, "orientation": data.orientation or "exif"}
    for key, value in {"range": theirs, "orientation": store.orientation}.items():
        if value != ours[key]:
            raise DensekitError(
                f"{store.path} was exported with data.{key} {value}, the config has {ours[key]}; export again, or set "
                f"data.{key} to what the store has"
            )


def find_range(dataset: Any) -> tuple[Range | None, list[str]]:
    """The range of a data set's deep images, and lines on it; None where there are none."""
    return _measured(dataset, survey(dataset))


def _measured(dataset: Any, seen: Survey) -> tuple[Range | None, list[str]]:
    reader = getattr(dataset, "read_image", ImageReader())
    values = measure(seen.deep, reader) if seen.deep else None
    if values is None:
        return None, []
    return values.range(), [describe(values), *_too_wide(values, values.range())]


def unfit_range(data: DataConfig, dataset: Any) -> list[str]:
    """A line where the config's range, or that it has none, does not suit the deep images of a data set.

    Args:
        data: of a run.
        dataset: other images than the run's training set.
    """
    found = survey(dataset) if store_of(dataset) is None else Survey()
    if not found.deep:
        return []
    if data.range is None:
        return [
            f"data: {len(found.deep)} of {found.looked_at} images hold more than 8 bits, such as {found.deep[0]}, but "
            f"none was learned from: 0..65535 is taken for black to white, floats for 0..255; set data.range where "
            f"that is wrong"
        ]
    values = measure(found.deep[:: -(-len(found.deep) // _FEW)], getattr(dataset, "read_image", ImageReader()))
    if values is None or not (values.dark(data.range) or values.white(data.range)):
        return []
    look = "black" if values.dark(data.range) else "white"
    return [
        f"data: images such as {found.deep[0]} have values from {values.low:g} to {values.high:g}, most of which are "
        f"{look} on data.range {as_option(data.range)}; where their scale is another one than that of the training "
        f"images, set data.range to theirs"
    ]


def rounding(data: DataConfig, dataset: Any, where: str) -> list[str]:
    """A line where the transforms of a data set of deep images leave 256 values of them."""
    if data.range is None:
        return []
    pipeline, reader = getattr(dataset, "transforms", None), getattr(dataset, "read_image", ImageReader())
    names = pipeline.in_eight_bits(reader.channels) if isinstance(pipeline, Pipeline) else []
    if not names or not survey(dataset).deep:
        return []
    return [f"{where}: {', '.join(names)} work in 8 bits; the images that they change keep 256 values at most"]


def describe(values: Values) -> str:
    """What was found, and what it leads to."""
    return (
        f"data: {values.images} images of more than 8 bits ({values.kind}) with values from {values.low:g} to "
        f"{values.high:g}: data.range {as_option(values.range())} becomes black to white, wherever the model is used"
    )


def _too_wide(values: Values, value_range: Range) -> list[str]:
    if not values.faint(value_range):
        return []
    usual = values.usual_option()
    return [
        f"data: most of their values lie in {usual}, a small part of that range, so that all look alike; set "
        f"data.range={usual.replace(' ', '')}, or what black and white are"
    ]


def _of_declared(value_range: Range, seen: Survey) -> list[str]:
    if seen.deep or not seen.looked_at:
        return []
    return [
        f"data: data.range {as_option(value_range)} is for images of more than 8 bits, and the training set has none"
    ]


def _of_orientation(seen: Survey) -> list[str]:
    """A line where sizes do not show that all annotations follow the EXIF orientation."""
    if seen.stored > seen.turned:
        others = f" ({seen.turned} were annotated turned, and are turned)" if seen.turned else ""
        return [
            f"data: {seen.stored} images were annotated as stored, by their size, against their EXIF orientation"
            f"{others}: so all are taken where the size fits both, and in prediction; data.orientation=exif turns them"
        ]
    if seen.stored:
        return [
            f"data: by their size {seen.turned} images were annotated as their EXIF orientation turns them, and "
            f"{seen.stored} as stored; each is taken as annotated, predictions turn all"
        ]
    if seen.open and not seen.turned:
        return [
            f"data: {seen.open} of {seen.looked_at} images have an EXIF orientation, and a size that fits it and the "
            f"pixels as stored: they are turned, as viewers do, in training and prediction; set "
            f"data.orientation=stored if the annotations were drawn on the pixels as stored"
        ]
    return []
