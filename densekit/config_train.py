"""The part of a run's config that says how to train."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Discriminator, Field, Tag


class Strict(pydantic.BaseModel):
    """A part of a config: no keys but its own, no values that are not finite, not to be changed."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OptimizerConfig(Strict):
    """The optimiser and its parameter groups.

    Attributes:
        lr: learning rate at the given global batch size. backbone_lr: multiplier for the backbone.
        layer_decay: each stage of the backbone learns at this part of the rate of the one above it, the last one at
            this part of the heads' (Clark et al. 2020, arXiv 2003.10555, section 3.1); 1 takes one rate for all.
        norm_decay: whether norms and biases get weight decay too.
    """

    name: Literal["sgd", "adamw"] = "adamw"
    lr: float = Field(gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    backbone_lr: float = Field(default=1.0, ge=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    norm_decay: bool = False


class ScheduleConfig(Strict):
    """The learning rate over the run.

    Attributes:
        warmup: steps of linear warm-up from lr * warmup_start.
        milestones: for ``step``: fractions of the run (or epochs where above 1) at which lr is multiplied by gamma.
        power: for ``poly``. end: the last learning rate as a fraction of the first, for ``cosine`` and ``poly``.
    """

    name: Literal["constant", "step", "cosine", "poly"] = "cosine"
    warmup: int = Field(default=0, ge=0)
    warmup_start: float = Field(default=0.001, ge=0, le=1)
    milestones: tuple[float, ...] = (0.6667, 0.8889)
    gamma: float = Field(default=0.1, gt=0, lt=1)
    power: float = Field(default=0.9, gt=0)
    end: float = Field(default=0.0, ge=0, le=1)


class SwaConfig(Strict):
    """Stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407): the plain mean of weights along the way.

    Attributes:
        start: when the mean begins: a fraction of the run, or epochs from 1 on. Before it the weights are themselves.
        every: epochs between the weights that are averaged.
        lr: learning rate from ``start`` on, as a fraction of ``optimizer.lr``; null keeps the schedule's.
        anneal: epochs in which the rate goes from the schedule's to ``lr``, along a cosine; 0 jumps.
        norm_batches: batches of the training set from which batch norm's statistics, which no average of weights has,
            are computed anew before each evaluation.
    """

    start: float = Field(default=0.75, gt=0)
    every: float = Field(default=1.0, gt=0)
    lr: float | None = Field(default=None, gt=0, le=1)
    anneal: float = Field(default=0.0, ge=0)
    norm_batches: int = Field(default=100, ge=1)


class LearnedWeights(Strict):
    """Weights of the heads' losses that are learned.

    Attributes:
        name: ``uncertainty`` (Kendall, Gal and Cipolla 2018) weighs a head by its loss, ``gradnorm`` (Chen et al. 2018)
            by what it does to the backbone.
        lr: of Adam, which learns them; the schedule leaves it alone.
        alpha: of ``gradnorm``, 1.5 if left out: how much more a head gets whose loss falls slower than the others'.
    """

    name: Literal["uncertainty", "gradnorm"]
    lr: float = Field(default=0.025, gt=0)
    alpha: float | None = Field(default=None, ge=0)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _by_its_name(cls, tree: Any) -> Any:
        tree = {"name": tree} if isinstance(tree, str) else tree
        without = isinstance(tree, dict) and tree.get("name") == "gradnorm" and tree.get("alpha") is None
        return {**tree, "alpha": 1.5} if without else tree

    @pydantic.model_validator(mode="after")
    def _own_options(self) -> Self:
        if self.name == "uncertainty" and self.alpha is not None:
            raise ValueError(f"uncertainty has no alpha ({self.alpha:g}); leave it out, or take gradnorm")
        return self


FIXED, LEARNED = "(fixed)", "(learned)"
"""Which form of ``loss_weights`` a message is about; no key of the file."""


def _form(value: Any) -> str:
    learned = isinstance(value, str | LearnedWeights) or (
        isinstance(value, dict) and isinstance(value.get("name"), str)
    )
    return LEARNED if learned else FIXED


class TrainConfig(Strict):
    """How to train.

    Attributes:
        epochs, steps: give one of them. A step is one update of the weights.
        batch_size: images per step over all ranks and accumulated micro-batches. ``auto`` sets ``fit_memory``; as an
            override it leaves the number of the file.
        fit_memory: as few micro-batches as fit into the free memory, at least ``accumulate``; the batch stays as large.
        accumulate: micro-batches per step. clip: largest norm of the gradient; null does not clip.
        precision: ``auto`` takes bf16 where the hardware is fast at it, else fp32.
        ema: decay of the averaged weights that are evaluated and saved as best; null keeps none.
        swa: the plain mean of weights in the last part of the run takes that place; null keeps none.
        freeze_until: when the backbone begins to learn: a fraction of the run, or epochs from 1 on. Of several that
            rise the first is for its last stage, the next for the stage before, the last for all that are left.
        compile: ``auto`` compiles where it was measured to pay (see docs/speed.md), true and false decide; ``captured``
            also replays the step as CUDA graphs, on a GPU with ``data.fixed_size``.
        checkpoint_backbone: the backbone's blocks keep their inputs alone for the backward and compute the rest again:
            less memory, about a third more time in the backbone, the same bits.
        deterministic: same bits on every run on a GPU too, slower there; the CPU always gives the same bits.
        save_every: steps between checkpoints; null saves with each evaluation.
        max_minutes: stop training (evaluate and save) after this much time in training steps.
        mixing: of several data sets: ``share`` takes images of each into every step, in proportion to ``share`` of the
            sets; ``size`` in proportion to how many images they have; ``turn`` takes a step's images from one set, each
            set as often as its share says.
        loss_weights: what the losses of a head are multiplied by, 1 where it is not named; or ``uncertainty`` or
            ``{name: gradnorm, alpha: 1.5}``, which learn it.
        norm_statistics: of the backbone's batch norms: ``shared`` learns one mean and variance for all data sets;
            ``each`` learns them for every set, and a head predicts through those of the set that it learned from;
            ``frozen`` keeps those of the given weights, in training too, while scale and shift learn.
        skip_non_finite: how many steps with a loss that is not finite are skipped before the run stops.
    """

    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=8, ge=1)
    accumulate: int = Field(default=1, ge=1)
    fit_memory: bool = False
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    clip: float | None = Field(default=None, gt=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: Literal["auto", "captured"] | bool = "auto"
    ema: float | None = Field(default=None, gt=0, lt=1)
    swa: SwaConfig | None = None
    freeze_until: float | tuple[float, ...] | None = None
    checkpoint_backbone: bool = False
    deterministic: bool = False
    save_every: int | None = Field(default=None, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    mixing: Literal["share", "size", "turn"] = "share"
    loss_weights: Annotated[
        Annotated[dict[str, Annotated[float, Field(ge=0)]], Tag(FIXED)] | Annotated[LearnedWeights, Tag(LEARNED)],
        Discriminator(_form),
    ] = {}
    norm_statistics: Literal["shared", "each", "frozen"] = "shared"
    skip_non_finite: int = Field(default=0, ge=0)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _auto(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or tree.get("batch_size") != "auto":
            return tree
        return {**{key: value for key, value in tree.items() if key != "batch_size"}, "fit_memory": True}

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps, one of the two")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}")
        if self.ema is not None and self.swa is not None:
            raise ValueError("ema and swa both average the weights that are evaluated; give one of the two")
        return self

    @pydantic.field_validator("freeze_until")
    @classmethod
    def _rises(cls, value: float | tuple[float, ...] | None) -> float | tuple[float, ...] | None:
        several = value if isinstance(value, tuple) else () if value is None else (value,)
        below = any(moment <= 0 for moment in several) or (isinstance(value, tuple) and not value)
        units = {moment < 1 for moment in several}
        if below or len(units) > 1 or any(b <= a for a, b in itertools.pairwise(several)):
            shown = list(value) if isinstance(value, tuple) else value
            raise ValueError(
                f"give a moment above 0, or several that rise, all as fractions or all as epochs, not {shown}"
            )
        return value
