"""A run of albumentations transforms as one of our own: draws from our generator, boxes, masks and instances along."""

from __future__ import annotations

import copy
import dataclasses
import os
from typing import Any

import numpy as np

from densekit.data.transforms.deep import leaves, with_fills_to_one
from densekit.data.transforms.geometry import MIN_SIDE, keep_boxes, select_boxes
from densekit.data.transforms.instances import for_label_maps, found_in, painted
from densekit.types import DensekitError, Sample

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks the package index over the network at import


def refused_channels(transform: Any, channels: int) -> str | None:
    """Why an albumentations transform fails on images of so many channels, where it takes those of three."""
    once = copy.deepcopy(transform)
    once.p = 1.0
    reasons = []
    for count in (3, channels):
        image = np.random.default_rng(0).integers(0, 255, (64, 64, count), np.uint8)
        sample, stage = Sample(image, id="a test", original_size=(64, 64), seed=0), Albumentations([once], "")
        try:
            for seed in range(4):
                stage(sample, np.random.default_rng(seed))
        except DensekitError as error:
            reasons.append(str(error).partition(f"of 64 x 64 x {count}: ")[2].removesuffix("; correct the pipeline"))
        else:
            reasons.append("")
    return reasons[1] if reasons[1] and not reasons[0] else None


class Albumentations:
    """A run of albumentations transforms, as one of our own."""

    def __init__(self, transforms: list[Any], path: str) -> None:
        import albumentations

        self.path = path
        self.names = ", ".join(type(t).__name__ for t in transforms)
        self.moves = not all(isinstance(t, albumentations.ImageOnlyTransform) for t in transforms)
        self.transforms = transforms
        self._composed: dict[tuple[bool, bool, bool], Any] = {}

    def moving(self) -> Albumentations:
        """The run without its transforms of colour."""
        import albumentations

        kept = [t for t in self.transforms if not isinstance(t, albumentations.ImageOnlyTransform)]
        return Albumentations(kept, self.path)

    def _compose(self, floats: bool, with_boxes: bool, with_instances: bool) -> Any:
        """The run for a kind of sample, made when the first one comes."""
        import albumentations

        kind = (floats, with_boxes, with_instances)
        if kind not in self._composed:
            boxes = albumentations.BboxParams(
                format="pascal_voc",
                label_fields=["rows"],
                clip=True,
                filter_invalid_bboxes=True,  # without it, clip alone still raises
                min_width=MIN_SIDE,
                min_height=MIN_SIDE,
            )
            transforms = with_fills_to_one(self.transforms) if floats else self.transforms
            transforms = for_label_maps(transforms) if with_instances else transforms
            composed = albumentations.Compose(transforms, bbox_params=boxes if with_boxes else None, p=1.0)
            self._composed[kind] = composed
        return self._composed[kind]

    def check_channels(self, channels: int) -> None:
        """See ``Pipeline``."""
        for transform in leaves(self.transforms):
            if (reason := refused_channels(transform, channels)) is not None:
                raise DensekitError(
                    f"{self.path}: {type(transform).__name__} can't take the images' {channels} channels "
                    f"(model.channels): {reason.rstrip('.')}; remove it, or choose one that can"
                )

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """Apply the run to image, mask, boxes and instances."""
        floats = sample.image.dtype != np.uint8  # which albumentations wants on the 0..1 scale
        with_boxes = sample.boxes is not None and self.moves
        maps = painted(sample.instances, sample.image.shape[:2]) if sample.instances and self.moves else None
        compose = self._compose(floats, with_boxes, maps is not None)
        compose.set_random_seed(int(random.integers(2**32)))
        given: dict[str, Any] = {"image": sample.image / np.float32(255) if floats else sample.image}
        if sample.mask is not None and self.moves:
            given["mask"] = sample.mask if sample.mask.ndim == 2 else sample.mask.transpose(1, 2, 0)
        if with_boxes:
            given |= {"bboxes": sample.boxes, "rows": np.arange(len(sample.boxes))}  # type: ignore[arg-type]
        given = {k: np.ascontiguousarray(v) for k, v in given.items()}
        try:
            got = compose(**given, **({"masks": maps.maps} if maps is not None and maps.maps else {}))
        except Exception as error:  # the library's own kinds, many of them plain Exceptions
            raise DensekitError(self._message(sample, str(error))) from None
        if maps is not None:
            sample = dataclasses.replace(sample, instances=found_in(maps._replace(maps=got.get("masks", []))))
        return self._taken(sample, got, floats)

    def _taken(self, sample: Sample, got: dict[str, Any], floats: bool) -> Sample:
        image = got["image"] if got["image"].ndim == 3 else got["image"][:, :, None]
        if image.shape[2] != sample.image.shape[2]:
            reason = f"it makes {image.shape[2]} channels of {sample.image.shape[2]}, and the model takes those"
            raise DensekitError(self._message(sample, reason))
        image = image * np.float32(255) if floats else image
        mask = sample.mask
        if "mask" in got:
            mask = got["mask"].astype(np.uint8, copy=False)
            mask = mask.transpose(2, 0, 1) if sample.mask is not None and sample.mask.ndim == 3 else mask
        sample = dataclasses.replace(sample, image=image.astype(sample.image.dtype, copy=False), mask=mask)
        if "rows" not in got:
            return sample
        rows = np.asarray(got["rows"], np.float64).astype(np.int64).reshape(-1)  # an empty list or floats at times
        boxes = np.asarray(got["bboxes"], np.float32).reshape(-1, 4)
        return keep_boxes(select_boxes(sample, rows, boxes), boxes, image.shape[:2])

    def _message(self, sample: Sample, reason: str) -> str:
        shape = " x ".join(str(s) for s in sample.image.shape)
        reason = (reason.strip() or "no reason given").splitlines()[0]
        return f"{self.path}: {self.names} cannot take image {sample.id!r} of {shape}: {reason}; correct the pipeline"
