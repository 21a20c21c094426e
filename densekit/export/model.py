"""An exported file in the place of a model: everything that predicts takes it as it takes a checkpoint's.

B images, C channels, H, W size, D detections an image, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from densekit import canvases
from densekit.calibration import Calibration
from densekit.config import Config, override, parse
from densekit.errors import DensekitError
from densekit.export.files import Notes
from densekit.export.runners import Runner, open_file
from densekit.model import DenseModel
from densekit.types import Batch, Classes, Classification, Detections, Level, Predictions, Segmentation, Task

FORMAT = 2
"""The newest that is read and written: 1 holds one head, 2 several. Rises when an older densekit can't read it."""


class RawImages(nn.Module):
    """In the place of a backbone: the images themselves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.levels = (Level("images", channels, 1),)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, C, H, W] -> the same, alone in a list."""
        return [images]


@dataclasses.dataclass(frozen=True)
class ExportedFile:
    """What a file gives of images: the outputs of ``Graph``.

    Attributes:
        runner: of the file.
        dtype: of the images that it takes.
    """

    runner: Runner
    dtype: torch.dtype

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Run it on raw images of one size.

        Raises:
            DensekitError: images of more than 8 bits for a file that was made for 8.
        """
        if images.is_floating_point() and not self.dtype.is_floating_point:
            raise DensekitError("this exported model takes uint8 images, and these are float32; export with --input")
        return self.runner(images.to(self.dtype))


class ExportedHead(nn.Module):
    """One of a file's heads.

    Args:
        file: that it is in.
        notes: the file's on this head.
        prefix: what the names of its outputs begin with.
    """

    def __init__(self, file: ExportedFile, notes: Notes, prefix: str = "") -> None:
        super().__init__()
        self.file, self.prefix = file, prefix
        self.task: Task = notes["task"]
        self.ids: list[int] = notes["classes"]["ids"]
        self.multilabel: bool = notes.get("multilabel", False)
        if "nms_threshold" in notes:
            self.nms_threshold: float = notes["nms_threshold"]

    def losses(self, maps: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """None: a file tells no losses."""
        return {}

    def predict(self, maps: Sequence[Tensor], batch: Batch) -> Predictions:
        """As a head: in the pixels of the images, with 0-based labels."""
        (images,) = maps
        return self.read(self.file(images))

    def read(self, outputs: dict[str, Tensor]) -> Predictions:
        """As ``predict``, from what the file gave."""
        start = len(self.prefix)
        found = {name[start:]: value for name, value in outputs.items() if name.startswith(self.prefix)}
        if self.task == "detection":
            ids = torch.tensor(self.ids, device=found["class_ids"].device)
            labels = (found["class_ids"][..., None] == ids).to(torch.uint8).argmax(-1)
            return Detections(found["boxes"], found["scores"], labels, found["valid"], found.get("masks"))
        chances = found["probabilities"]
        if self.task == "classification":
            return Classification(chances, chances.argmax(1))
        classes = (chances >= 0.5).to(torch.uint8) if self.multilabel else chances.max(1).indices
        return Segmentation(list(chances), list(classes))


class ExportedModel(DenseModel):
    """A file that predicts.

    Args:
        runner: of the file.
        notes: the file's.
        head: its name, of a file with one.
    """

    def __init__(self, runner: Runner, notes: Notes, head: str = "exported") -> None:
        held: dict[str, Notes] = notes.get("heads") or {head: notes}
        file, channels = ExportedFile(runner, getattr(torch, notes["input"])), notes["channels"]
        super().__init__(
            RawImages(channels),
            {name: ExportedHead(file, own, f"{name}." if len(held) > 1 else "") for name, own in held.items()},
            mean=notes["normalize"]["mean"],
            std=notes["normalize"]["std"],
            classes={
                name: Classes(tuple(own["classes"]["names"]), tuple(own["classes"]["ids"]))
                for name, own in held.items()
            },
            channels=channels,
        )
        self.notes, self.file = notes, file
        for name, own in held.items():
            if (known := Calibration.held_in(own, len(self.classes_of(name)), "that was exported")) is not None:
                self.calibrations[name] = known

    def features(self, batch: Batch) -> list[Tensor]:
        """The raw images: normalisation and backbone are in the file.

        Raises:
            DensekitError: the batch brings stored maps.
        """
        if batch.maps is not None:
            raise DensekitError("an exported model takes images, not stored features; give it a data set of images")
        return [batch.images]

    def losses_and_predictions(
        self, batch: Batch, heads: Sequence[str] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Predictions]]:
        """The predictions, and no losses."""
        return {}, self.predict_all(batch, heads)

    def predict_part(self, batch: Batch, names: Sequence[str]) -> dict[str, Predictions]:
        """All heads from one run of the file."""
        (images,) = self.features(batch)
        outputs = self.file(images)
        heads = {name: cast(ExportedHead, self.head(name)) for name in names}
        return {name: self.finish(head.read(outputs), batch, name) for name, head in heads.items()}

    def _by_canvas(self, batch: Batch) -> list[tuple[list[int], Batch]]:
        """By size: the file pads by itself."""
        return canvases.split(dataclasses.replace(batch, pad_to=1), 1, self.levels)


def load(path: Path, overrides: Sequence[str] = ()) -> tuple[ExportedModel, Config]:
    """The model that an exported file holds, and the config of its run with overrides.

    Raises:
        DensekitError: no such file, one of a newer densekit, a backbone alone, or overrides of what the file fixes.
    """
    for given in overrides:
        if given.startswith(("model.", "train.precision", "data.pad_to")):
            raise DensekitError(f"{given}: {path} is exported, so that this can't change any more; export it anew")
    runner, notes = open_file(path)
    if notes["format"] > FORMAT:
        raise DensekitError(f"{path} has format {notes['format']}, this densekit reads up to {FORMAT}; update densekit")
    if notes.get("task") == "features":
        raise DensekitError(f"{path} holds a backbone alone, which predicts nothing; export the whole checkpoint")
    config = override(parse(notes["config"], f"the config in {path}"), overrides)
    return ExportedModel(runner, notes, next(iter(config.model.heads))), config


def notes_of(model: DenseModel, config: Config) -> Notes:
    """What an exported file has to know of a model.

    Args:
        model: that is exported.
        config: of its run, of these heads alone.
    """
    tree = config.model_dump(mode="json")
    tree["train"]["precision"] = "fp32"  # of what surrounds the graph, whose own arithmetic is fixed
    held = {name: _of_head(model, name) for name in model.heads}
    return {
        "format": 1 if len(held) == 1 else 2,
        **(next(iter(held.values())) if len(held) == 1 else {"heads": held}),
        "channels": model.channels,
        "normalize": tree["model"]["normalize"],
        "transforms": config.data.model_dump(mode="json")["eval_transforms"],
        "config": tree,
    }


def _of_head(model: DenseModel, name: str) -> Notes:
    head, classes = model.head(name), model.classes_of(name)
    notes: Notes = {"task": head.task, "classes": {"names": list(classes.names), "ids": list(classes.ids)}}
    if name in model.calibrations:
        notes["calibration"] = model.calibrations[name].content()
    if head.task == "segmentation":
        notes["multilabel"] = getattr(head, "mode", None) == "multilabel"
    if hasattr(head, "nms_threshold"):
        notes["nms_threshold"] = head.nms_threshold
    return notes
