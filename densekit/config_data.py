"""The part of a run's config that says what to learn from."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
from pydantic import Field

from densekit.config_train import Strict


class Part(pydantic.BaseModel):
    """A named part and its options, such as ``{name: faster_rcnn, neck: fpn}``."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """All keys but the name."""
        return dict(self.model_extra or {})


class DataConfig(Strict):
    """A data set with its splits, its transforms, and how batches of it are put together.

    Attributes:
        heads: of the model that it has labels for; null: all. share: see ``train.mixing``.
        train: the data set to learn from; val: chooses the best checkpoint; test: for ``evaluate.py --data test``.
        train_transforms: list of transforms, in order; eval_transforms: ``Resize`` (it can be undone), transforms of
            colour alone that draw nothing, ``{name: AutoContrast, p: 1}``, and of a classifier ``CenterCrop``.
        sampling: how often an epoch shows an image, ``{name: repeat_factor, threshold: 0.001}``; null: once.
        pad_to: batches are padded to a multiple of this many pixels.
        aspect_grouping: put images of like shape (wider / higher than square) into one batch.
        fixed_size: (height, width) to which every training batch is padded: constant shapes, for compiled steps. Of
            several a batch takes the smallest that holds its images.
        workers: loader processes; null takes one less than the cores of each rank, at most 8.
        on_bad_image: ``error`` stops and names the image; ``skip`` takes the next one and lists it at the end.
        match_names: classes are matched by name with those of ``model.weights`` (fine-tuning) or of the checkpoint
            (evaluation), whatever their ids and order; false refuses classes that differ in either.
        max_pixels: a larger image is refused before it is decoded.
        range: (low, high) values that become black and white in images of more than 8 bits, which are cut off there;
            null measures it once over ``train``. 8-bit images are 0 to 255 always.
        orientation: ``exif`` turns images by their EXIF tag, ``stored`` takes them as stored, where the annotated size
            fits both or there is none; null takes what the sizes of ``train`` show, else ``exif``.
    """

    heads: tuple[str, ...] | None = Field(default=None, min_length=1)
    share: float = Field(default=1.0, gt=0)
    train: Part
    val: Part | None = None
    test: Part | None = None
    train_transforms: tuple[dict[str, Any], ...] = ()
    eval_transforms: tuple[dict[str, Any], ...] = ()
    sampling: Part | None = None
    pad_to: int = Field(default=32, ge=1)
    aspect_grouping: bool = True
    fixed_size: tuple[tuple[int, int], ...] = ()
    workers: int | None = Field(default=None, ge=0, le=1024)
    on_bad_image: Literal["error", "skip"] = "error"
    match_names: bool = False
    max_pixels: int = Field(default=2**28, ge=1)
    range: tuple[float, float] | None = None
    orientation: Literal["exif", "stored"] | None = None

    @pydantic.field_validator("fixed_size", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        several = isinstance(value, list | tuple) and all(isinstance(one, list | tuple) for one in value)
        sizes = () if value is None else value if several else [value]
        if not all(_is_size(one) for one in sizes):
            raise ValueError(f"give [height, width] in pixels, or a list of these, not {value!r}")
        return sizes

    @pydantic.field_validator("range")
    @classmethod
    def _low_below_high(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"black lies below white, not {value[0]:g} and {value[1]:g}")
        return value


def _is_size(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)


def named_sets(tree: Any) -> Any:
    """``data`` of a config as data sets by name: the plain form is one without a name."""
    by_name = (
        isinstance(tree, dict)
        and not tree.keys() & DataConfig.model_fields.keys()
        and any(isinstance(one, dict) and "train" in one for one in tree.values())
    )
    return tree if by_name else {"": tree}
