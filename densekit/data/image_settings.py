"""What a run decides on its image files before it reads the first: settled by the training set, kept in the config."""

from __future__ import annotations

import dataclasses
from typing import Any

from densekit.config import DataConfig
from densekit.data.feature_set import store_of
from densekit.data.image_survey import survey
from densekit.data.images import ImageReader
from densekit.data.pixel_values import Range
from densekit.data.transforms import Pipeline
from densekit.data.value_range import Values, as_option, measure
from densekit.errors import DensekitError


def settle(data: DataConfig, train_set: Any) -> tuple[DataConfig, list[str]]:
    """Fill in ``data.range`` where the config leaves it open and the training set has deep images.

    Args:
        data: of the run.
        train_set: the data set to learn from; stored features bring the range that they were made with.

    Returns:
        The config to go on with, to be stored with the run, and lines that say what was found.
    """
    store = store_of(train_set)
    if data.range is not None:
        return data, [] if store is not None else _of_declared(data.range, train_set)
    found, lines = find_range(train_set) if store is None else (store.value_range, [])
    return data.model_copy(update={"range": found}), lines


def read_as(data: DataConfig, dataset: Any) -> None:
    """Let a data set read its images as the config says."""
    read_on(data.range, dataset)


def read_on(value_range: Range | None, dataset: Any) -> None:
    """Let a data set read its deep images on a range; data sets without image files are left alone."""
    inner = getattr(dataset, "inner", dataset)  # matched by name: the data set behind it reads the files
    reader = getattr(inner, "read_image", None)
    if isinstance(reader, ImageReader):
        inner.read_image = dataclasses.replace(reader, value_range=value_range)


def check_store_range(data: DataConfig, dataset: Any) -> None:
    """Refuse stored features of images that were read on another range; data sets of pixels pass.

    Raises:
        DensekitError: the two ranges differ.
    """
    store = store_of(dataset)
    if store is not None and store.value_range != data.range:
        own, theirs = (None if r is None else as_option(r) for r in (data.range, store.value_range))
        raise DensekitError(
            f"{store.path} was exported with data.range {theirs}, the config has {own}; export again, or set "
            f"data.range to what the store has"
        )


def find_range(dataset: Any) -> tuple[Range | None, list[str]]:
    """The range of a data set's deep images, and lines on it; None where there are none."""
    deep = survey(dataset).deep
    reader = getattr(dataset, "read_image", ImageReader())
    values = measure(deep, reader) if deep else None
    if values is None:
        return None, []
    return values.range(), [describe(values), *_too_wide(values, values.range())]


def unknown_range(data: DataConfig, dataset: Any) -> list[str]:
    """A line where a data set has deep images and the config, of a run on 8 bits, has no range for them."""
    if data.range is not None or store_of(dataset) is not None:
        return []
    found = survey(dataset)
    if not found.deep:
        return []
    return [
        f"data: {len(found.deep)} of {found.looked_at} images hold more than 8 bits, such as {found.deep[0]}, but none "
        f"was learned from: 0..65535 is taken for black to white, floats for 0..255; set data.range if they differ"
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


def _of_declared(value_range: Range, train_set: Any) -> list[str]:
    found = survey(train_set)
    if found.deep or not found.looked_at:
        return []
    return [
        f"data: data.range {as_option(value_range)} is for images of more than 8 bits, and the training set has none"
    ]
