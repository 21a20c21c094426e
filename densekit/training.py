"""From the part of a config that says how to train to a training step."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import nn

from densekit.backbones.checkpointing import checkpoint_blocks
from densekit.backbones.describe import stages_of
from densekit.config import Config
from densekit.data.loading.batching import possible_sizes
from densekit.engine.compiled import Compiled, compiles
from densekit.engine.distributed import World
from densekit.engine.freezing import Freezing
from densekit.engine.loss_weights import GradNormWeights, LossWeights, UncertaintyWeights
from densekit.engine.optim import AveragedModel, Schedule, held, make_optimizer, make_schedule, parameter_groups
from densekit.engine.plan import Plan
from densekit.engine.step import TrainStep
from densekit.engine.swa import EqualAverage
from densekit.errors import DensekitError
from densekit.memory import enough_memory
from densekit.model import DenseModel
from densekit.precision import Precision, choose_precision


def train_step(
    config: Config, built: DenseModel, timetable: Plan, world: World, precision: Precision | None = None
) -> TrainStep:
    """Optimiser, schedule and averaged weights around a model that is on its device.

    ``precision`` is that of the forward pass; None takes the config's.

    Raises:
        DensekitError: moments that do not lie in the run, a backbone to freeze that does not learn anyway, weights of
            losses that can't be learned, or statistics to keep that are not given or not learned.
    """
    t, o = config.train, config.train.optimizer
    compiled, _ = compiling(config, built, timetable, world.device)
    if t.deterministic or world.device.type == "cpu":
        _same_bits(compiled=compiled)
    stages = stages_of(built.backbone, built.channels) if o.layer_decay < 1 or t.freeze_until is not None else None
    groups = parameter_groups(
        built,
        lr=o.lr,
        weight_decay=o.weight_decay,
        backbone_lr=o.backbone_lr,
        norm_decay=o.norm_decay,
        layer_decay=o.layer_decay,
        stages=stages if o.layer_decay < 1 else None,
    )
    with enough_memory():
        average = _average(config, built, timetable)
    if t.checkpoint_backbone:
        checkpoint_blocks(built.backbone)
    return TrainStep(
        built,
        make_optimizer(o.name, groups, momentum=o.momentum, nesterov=o.nesterov, betas=o.betas),
        _schedule(config, timetable),
        world=world,
        seed=config.seed,
        precision=precision or choose_precision(t.precision, world.device),
        clip=t.clip,
        average=average,
        freezing=None if stages is None else _freezing(config, built, timetable, stages),
        weights=_loss_weights(config, built, world.device),
        fixed_norms=_fixed_norms(config, built),
        compiled=Compiled(built, few_sizes=_shapes(config) > 0, captured=t.compile == "captured") if compiled else None,
        skip_limit=t.skip_non_finite,
    )


def compiling(config: Config, built: DenseModel, timetable: Plan, device: torch.device) -> tuple[bool, str]:
    """Whether a run compiles its steps, and how its summary says so; see ``engine/compiled.py``."""
    compiled, told = compiles(
        config.train.compile,
        device,
        steps=timetable.steps,
        shapes=_shapes(config),
        micro_batches=config.train.accumulate * (1 if config.train.mixing == "turn" else len(config.taught)),
        tasks=[head.task for head in built.heads.values()],  # type: ignore[misc]  # nn.Module types its attributes
        same_bits=config.train.deterministic,
    )
    weights = config.train.loss_weights
    if not compiled or isinstance(weights, dict) or weights.name != "gradnorm":
        return compiled, told
    if config.train.compile != "auto":
        raise DensekitError(
            f"train.compile={str(config.train.compile).lower()}: train.loss_weights gradnorm takes gradients out of a "
            f"step, which a compiled one does not give; set compile to false, or take uncertainty or fixed weights"
        )
    return False, "not compiled (auto: gradnorm)"


def _shapes(config: Config) -> int:
    """How many shapes training batches have, those of each data set for themselves, as their heads differ; 0: any."""
    fixed = [config.sets[name].fixed_size for name in config.taught]
    return sum(len(possible_sizes(sizes)) for sizes in fixed) if all(fixed) else 0


def _loss_weights(config: Config, built: DenseModel, device: torch.device) -> LossWeights:
    """What the losses of the heads are multiplied by, around a model of which what does not learn is frozen."""
    chosen = config.train.loss_weights
    if isinstance(chosen, dict):
        return LossWeights(chosen)
    heads = [head for head in built.heads if head not in built.frozen]
    if chosen.name == "uncertainty":
        return UncertaintyWeights(heads, lr=chosen.lr, device=device)
    assert chosen.alpha is not None
    weights = GradNormWeights(built, alpha=chosen.alpha, lr=chosen.lr, device=device)
    apart = [name for name in config.taught if not set(heads) <= set(config.heads_of(name))]
    if config.train.mixing == "turn" and apart:
        raise DensekitError(
            f"train.loss_weights: gradnorm compares the heads in each step, and with train.mixing=turn those of "
            f"data.{apart[0]} learn alone; set mixing to share or size, or take uncertainty or fixed weights"
        )
    return weights


def _fixed_norms(config: Config, built: DenseModel) -> list[nn.Module]:
    """The norms of the backbone that keep their statistics in training."""
    chosen = config.train.norm_statistics
    if chosen == "shared":
        return []
    norms = [m for m in built.backbone.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    if not norms:
        raise DensekitError(
            f"train.norm_statistics={chosen}: {config.model.backbone.name} has no batch norm whose statistics could be "
            f"learned; leave it out"
        )
    if chosen == "each":
        _check_each(config, built, norms)
        return []
    if config.model.backbone.weights is None and config.model.weights is None:
        raise DensekitError(
            "train.norm_statistics=frozen keeps the statistics of given weights, and the backbone starts at random; "
            "set model.backbone.weights, or leave it out"
        )
    return [*norms]


def _check_each(config: Config, built: DenseModel, norms: Sequence[nn.Module]) -> None:
    """Refuse what can't have statistics of each data set."""
    if built.statistics is None:
        raise DensekitError("train.norm_statistics=each is for several data sets, and there is one; leave it out")
    for head, part in built.heads.items():
        sets = [name for name in config.sets if head in config.heads_of(name)]
        if len(sets) > 1:
            raise DensekitError(
                f"train.norm_statistics=each: the head {head!r} learns from {' and '.join(sets)}, and in prediction it "
                f"looks through the statistics of one; give each set a head of its own, or take shared or frozen"
            )
        if getattr(part, "runs_last_stage", False):
            raise DensekitError(
                f"train.norm_statistics=each: the head {head!r} runs the last stage of the backbone itself, with one "
                f"set's statistics; take another neck, or shared or frozen"
            )
    before = built.backbone.training
    built.backbone.train()
    learning = any(norm.training for norm in norms)
    built.backbone.train(before)
    if not learning:
        raise DensekitError(
            f"train.norm_statistics=each: all batch norms of {config.model.backbone.name} rest, so no statistics are "
            f"learned; lower model.backbone.frozen_stages, or leave it out"
        )


def _same_bits(*, compiled: bool) -> None:
    # On the CPU too: with several threads the backward of an index adds in any order. It costs nothing there.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # torch.use_deterministic_algorithms does the same and also tells the compiler, which takes 3 s to import.
    if compiled:
        torch.use_deterministic_algorithms(True)
    else:
        torch.set_deterministic_debug_mode("error")
    # Only for debugging, and slow; set as a property of the module, which mypy can't see.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _average(config: Config, built: DenseModel, timetable: Plan) -> AveragedModel | None:
    t = config.train
    if t.swa is not None:
        start = timetable.moment(t.swa.start, "train.swa.start")
        return EqualAverage(built, start=start, every=max(1, round(t.swa.every * timetable.steps_per_epoch)))
    return AveragedModel(built, t.ema) if t.ema is not None else None


def _schedule(config: Config, timetable: Plan) -> Schedule:
    s, swa = config.train.schedule, config.train.swa
    schedule = make_schedule(
        s.name,
        timetable.steps,
        warmup=s.warmup,
        warmup_start=s.warmup_start,
        milestones=s.milestones,
        gamma=s.gamma,
        power=s.power,
        end=s.end,
        steps_per_epoch=timetable.steps_per_epoch,
    )
    if swa is None or swa.lr is None:
        return schedule
    start, anneal = timetable.moment(swa.start, "train.swa.start"), round(swa.anneal * timetable.steps_per_epoch)
    return held(schedule, start, swa.lr, anneal=anneal)


def _freezing(config: Config, built: DenseModel, timetable: Plan, stages: dict[str, int]) -> Freezing | None:
    until = config.train.freeze_until
    if until is None:
        return None
    several = until if isinstance(until, tuple) else (until,)
    return Freezing(built.backbone, stages, [timetable.moment(one, "train.freeze_until") for one in several])
