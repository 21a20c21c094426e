"""The config of a run: one complete YAML file, checked key by key, with ``key.path=value`` overrides.

Nothing here imports torch, so a misspelt key is told in a fraction of a second. A part (backbone, head, data set,
transform) is written as ``{name: ..., option: value, ...}``; its options are checked against the part's own signature
when it is built.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
import yaml
from pydantic import Field

from densekit.config_data import DataConfig as DataConfig
from densekit.config_data import Part as Part
from densekit.config_data import named_sets
from densekit.config_file import apply_override, expand, read_yaml
from densekit.config_train import FIXED, LEARNED, Strict
from densekit.config_train import OptimizerConfig as OptimizerConfig
from densekit.config_train import ScheduleConfig as ScheduleConfig
from densekit.config_train import TrainConfig as TrainConfig
from densekit.errors import DensekitError, nearest, plain_words
from densekit.shipped import configs


class BackboneConfig(Part):
    """A backbone, its options, and where its weights come from.

    Attributes:
        weights: a file, ``torchvision/IMAGENET1K_V1``, ``timm/<tag>``; null starts from random numbers.
        bgr: whether the weights learned on images of blue, green, red, as many of detectron2's did; null: where they
            have Caffe2's names.
    """

    weights: str | None = None
    bgr: bool | None = None


class NormalizeConfig(Strict):
    """(image / 255 - mean) / std per channel; one number stands for all channels."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @pydantic.model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} values and std has {len(self.std)}; give one of each a channel"
            )
        if not all(s > 0 for s in self.std):
            raise ValueError("std must be above 0 in every channel")
        return self


class ModelConfig(Strict):
    """Backbone and heads.

    Attributes:
        channels: image channels that the model takes (1 grey, 3 RGB, more for TIFF and npy).
        heads: heads by a name of your own.
        weights: a densekit checkpoint or a state dict of torchvision, timm or smp to start the whole model from. Heads
            that the checkpoint lacks start anew.
        frozen_heads: heads that stay as ``weights`` gives them: they do not learn, nor do the statistics of their
            norms. Their predictions stay the same to the bit where the backbone is frozen too.
    """

    backbone: BackboneConfig
    heads: dict[str, Part] = Field(min_length=1)
    channels: int = Field(default=3, ge=1)
    normalize: NormalizeConfig = NormalizeConfig()
    weights: str | None = None
    frozen_heads: tuple[str, ...] = ()


class EvaluationConfig(Strict):
    """When and how to evaluate on ``data.val``.

    Attributes:
        every: epochs between evaluations (the last step always evaluates).
        metric: which number chooses ``best.pt``; null takes AP, mIoU or top1 of the first head.
        batch_size: images per batch on each rank, so that a batch is the same whatever their number.
        baselines: numbers above 0 by name, such as those of runs with one head each: ``gain``, the mean of the relative
            gains over them, then chooses ``best.pt`` where ``metric`` is null.
        max_detections: per image, for COCO's numbers.
        boundary: count masks of objects by their outlines too, as boundary_AP and so on (Cheng et al. 2021); slow.
        patience: evaluations without a better number before the run stops early; null never does.
        pictures: how many sample predictions to draw at the end.
    """

    every: float = Field(default=1.0, gt=0)
    metric: str | None = None
    baselines: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})
    batch_size: int = Field(default=8, ge=1)
    max_detections: int = Field(default=100, ge=1)
    boundary: bool = False
    patience: int | None = Field(default=None, ge=1)
    pictures: int = Field(default=8, ge=0)


class LogConfig(Strict):
    """What a run writes beside checkpoints.

    Attributes:
        every: steps between lines of ``metrics.jsonl``. tensorboard: events beside them. csv: ``metrics.csv`` too.
        trackers: services that follow the run too, ``wandb`` and ``mlflow``; each is an extra of densekit.
    """

    every: int = Field(default=10, ge=1)
    tensorboard: bool = True
    csv: bool = False
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()


class Config(Strict):
    """One run, complete.

    Attributes:
        sets: ``data`` in the file: data sets by a name of your own, or one alone, which has no name here.
    """

    seed: int = Field(default=0, ge=0, lt=2**63)
    model: ModelConfig
    sets: dict[str, DataConfig] = Field(alias="data", min_length=1)
    train: TrainConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    log: LogConfig = LogConfig()

    @property
    def data(self) -> DataConfig:
        """The data set that the first head learns from."""
        return self.sets[self.set_of(next(iter(self.model.heads)))]

    @property
    def place(self) -> str:
        """Where ``data`` stands, for messages: ``data``, or ``data.NAME``."""
        return ".".join(filter(None, ("data", self.set_of(next(iter(self.model.heads))))))

    @property
    def learning(self) -> tuple[str, ...]:
        """The heads that learn from ``data``."""
        return self.heads_of(self.set_of(next(iter(self.model.heads))))

    @property
    def taught(self) -> list[str]:
        """The names of the data sets that a head learns from; others belong to frozen heads alone."""
        frozen = self.model.frozen_heads
        return [name for name in self.sets if not set(self.heads_of(name)) <= set(frozen)]

    def of_heads(self, heads: Iterable[str]) -> Config:
        """As if the model had these heads alone, in their order; data sets without labels for them are left out."""
        own = {head: self.model.heads[head] for head in heads}
        frozen = tuple(head for head in self.model.frozen_heads if head in own)
        model = self.model.model_copy(update={"heads": own, "frozen_heads": frozen})
        train = self.train
        if isinstance(weights := train.loss_weights, dict):
            kept_weights = {head: weight for head, weight in weights.items() if head in own}
            train = train.model_copy(update={"loss_weights": kept_weights})
        sets = {name: one for name, one in self.sets.items() if own.keys() & set(self.heads_of(name))}
        sets = sets or {name: self.sets[name] for name in [self.set_of(next(iter(own)))]}
        kept = {
            name: one.model_copy(update={"heads": tuple(head for head in one.heads or () if head in own) or None})
            for name, one in sets.items()
        }
        return self.model_copy(update={"model": model, "sets": kept, "train": train})

    def heads_of(self, name: str) -> tuple[str, ...]:
        """The heads that learn from a data set, in their order."""
        given = self.sets[name].heads
        return tuple(head for head in self.model.heads if given is None or head in given)

    def set_of(self, head: str) -> str:
        """The name of the first data set that a head learns from; of the first one where it learns from none."""
        return next((name for name in self.sets if head in self.heads_of(name)), next(iter(self.sets)))

    def of_set(self, name: str) -> Config:
        """As if there were this data set alone."""
        return self.model_copy(update={"sets": {name: self.sets[name]}})

    def with_data(self, data: DataConfig) -> Config:
        """Another ``data``."""
        return self.model_copy(update={"sets": {**self.sets, self.set_of(next(iter(self.model.heads))): data}})

    @pydantic.field_validator("sets", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return named_sets(value)

    @pydantic.model_serializer(mode="wrap")
    def _as_written(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = handler(self)
        data = tree["sets"].get("", tree["sets"])
        return {("data" if key == "sets" else key): data if key == "sets" else value for key, value in tree.items()}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config, apply ``key.path=value`` overrides, check it.

    Args:
        path: a YAML file, or the name of a config that comes with densekit; ``${NAME}`` and ``${NAME:-default}`` in
            values are replaced from the environment.
        overrides: such as ``train.epochs=3`` or ``model.heads.boxes.neck=c5``; values are read as YAML. ``train.steps``
            takes the place of the file's ``train.epochs``, and the other way round.

    Raises:
        DensekitError: the file is missing or not YAML, a key is misspelt, a value is of the wrong type or range.
    """
    path = _found(Path(path))
    tree = read_yaml(path)
    _apply(tree, overrides)
    return parse(expand(tree, str(path)), str(path))


def _apply(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply overrides in their order; the length of a run is given once, so a new one takes the other's place."""
    batch = _batch_size(tree)
    for text in overrides:
        apply_override(tree, text)
    if _batch_size(tree) == "auto" and batch is not None:  # the recipe's number, which the learning rate belongs to
        tree["train"] |= {"batch_size": batch, "fit_memory": True}
    named = {text.partition("=")[0].strip() for text in overrides}
    train = tree.get("train")
    for given, other in (("steps", "epochs"), ("epochs", "steps")):
        replaces = f"train.{given}" in named and f"train.{other}" not in named
        if replaces and isinstance(train, dict) and train.get(given) is not None:
            train[other] = None


def _batch_size(tree: dict[str, Any]) -> Any:
    train = tree.get("train")
    return train.get("batch_size") if isinstance(train, dict) else None


def is_config(path: Path) -> bool:
    """Whether this names a YAML file, or a config that comes with densekit."""
    return path.suffix in (".yaml", ".yml") or (_is_name(path) and path.name in configs())


def _found(path: Path) -> Path:
    """The file itself, or the config of that name that comes with densekit."""
    if not _is_name(path):
        return path
    shipped = configs()
    if path.name not in shipped:
        raise DensekitError(
            f"config {path} does not exist; give the path of a YAML file, or the name of one that comes with densekit: "
            f"{nearest(path.name, shipped)}"
        )
    return shipped[path.name]


def _is_name(path: Path) -> bool:
    return not (path.suffix or path.parent != Path() or path.exists())


def parse(tree: Any, source: str, *, whole: bool = True) -> Config:
    """Check a config that was already read.

    Args:
        tree: the config.
        source: names it in messages.
        whole: its heads and its data sets belong together; not so of a part, as ``Config.of_set`` is one.
    """
    if place := _not_finite(tree):
        raise DensekitError(f"{source}: {place} is not a finite number; write one, or null for none")
    try:
        config = Config.model_validate(tree)
    except pydantic.ValidationError as error:
        raise DensekitError(f"{source}: {_explain(error, tree)}") from None
    if whole and (wrong := _wrong_heads(config)):
        raise DensekitError(f"{source}: {wrong}")
    return config


def _wrong_heads(config: Config) -> str | None:
    """A name of a head that does not exist, or a head without data."""
    heads = list(config.model.heads)
    named = [(f"data.{name}.heads" if name else "data.heads", one.heads or ()) for name, one in config.sets.items()]
    if isinstance(weights := config.train.loss_weights, dict):
        named += [("train.loss_weights", tuple(weights))]
    for place, names in named:
        for name in names:
            if name not in heads:
                return f"{place}: there is no head {name!r}; {nearest(name, heads)}"
    for head in heads:
        if not any(head in config.heads_of(name) for name in config.sets) and head not in config.model.frozen_heads:
            sets = ", ".join(filter(None, config.sets)) or "data"
            return f"model.heads.{head}: no data set trains it; add {head!r} to the heads of one ({sets}), or remove it"
    return None


def _not_finite(tree: Any, path: str = "") -> str | None:
    """Where the first NaN or infinity stands; options of parts have no schema yet, and no option takes one."""
    if isinstance(tree, float):
        return None if math.isfinite(tree) else path
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return next((p for key, value in children if (p := _not_finite(value, f"{path}.{key}".lstrip(".")))), None)


def dump(config: Config) -> str:
    """The config as YAML that ``load`` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=110)


def _explain(error: pydantic.ValidationError, tree: Any) -> str:
    """The first problem in one line: path, rule, value, and the nearest key where one is misspelt."""
    problems = error.errors(include_url=False)
    # A misspelt key often makes another one missing: tell the cause first.
    first = min(problems, key=lambda p: p["type"] != "extra_forbidden")
    path = _path(first)
    if first["type"] == "missing":
        return _missing([_path(problem) for problem in problems if problem["type"] == "missing"])
    if first["type"] == "extra_forbidden":
        return f"{path}: there is no such key; {nearest(str(first['loc'][-1]), _fields(first['loc'][:-1]))}"
    message = plain_words(first["msg"])
    shown = "" if first["type"] == "value_error" else f", not {first['input']!r}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{path}: {message}{shown}{more}"


def _path(problem: Any) -> str:
    return ".".join(str(p) for p in problem["loc"] if p not in _NO_KEYS)


_NO_KEYS = ("", FIXED, LEARNED)
"""What pydantic puts into a path beside the keys of the file."""


_LIKE = {
    "model": "{backbone: {name: resnet50}, heads: {boxes: {name: faster_rcnn}}}",
    "model.backbone": "{name: resnet50}",
    "model.backbone.name": "resnet50",
    "model.heads": "{boxes: {name: faster_rcnn}}",
    "data": "{train: {name: coco, images: images, annotations: train.json}}",
    "data.train": "{name: coco, images: images, annotations: train.json}",
    "data.train.name": "coco",
    "train": "{epochs: 12, optimizer: {lr: 0.01}}",
    "train.optimizer": "{lr: 0.01}",
    "train.optimizer.lr": "0.01",
}
"""What each required key may look like."""


def _missing(paths: Sequence[str]) -> str:
    """All required keys that a config lacks, each with a value to copy."""
    examples = ", ".join(f"{path}: {_LIKE.get(path, '...')}" for path in paths)
    what = "these required keys are" if len(paths) > 1 else "this required key is"
    return f"{what} missing; add, for example, {examples}"


def _fields(location: Sequence[str | int]) -> list[str]:
    """The keys that may stand at a place of the schema."""
    model: Any = Config
    of_a_set = ("data", *location[2:]) if location[:1] == ("data",) else location
    for part in of_a_set:
        if part in _NO_KEYS:
            continue
        fields = _by_key(model)
        annotation = fields[str(part)].annotation if part in fields else None
        model = next((a for a in _arguments(annotation) if _is_model(a)), None)
        if model is None:
            return []
    return list(_by_key(model))


def _by_key(model: type[pydantic.BaseModel]) -> dict[str, pydantic.fields.FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, pydantic.BaseModel)


def _arguments(annotation: Any) -> tuple[Any, ...]:
    of_several = typing.get_origin(annotation) in (typing.Union, types.UnionType, dict)
    several = typing.get_args(annotation) if of_several else (annotation,)
    return tuple(typing.get_args(one)[0] if typing.get_origin(one) is Annotated else one for one in several)


def override(config: Config, overrides: Sequence[str]) -> Config:
    """A copy of a config with ``key.path=value`` overrides applied, checked again."""
    tree = config.model_dump(mode="json")
    _apply(tree, overrides)
    return parse(expand(tree, "config"), "config") if overrides else config


def is_set(key: str, overrides: Sequence[str]) -> bool:
    """Whether one of the ``key.path=value`` sets a key, or a part of the config that holds it."""
    return any(f"{key}.".startswith(f"{text.partition('=')[0].strip()}.") for text in overrides)
