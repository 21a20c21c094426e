"""Options of a config that nothing in its run looks at: said at the start, so that nobody waits for their effect."""

from __future__ import annotations

import pydantic

from densekit.config import Config

_USED_BY = {
    "train.optimizer": {"sgd": {"momentum", "nesterov"}, "adamw": {"betas"}},
    "train.schedule": {"step": {"milestones", "gamma"}, "cosine": {"end"}, "poly": {"power", "end"}, "constant": set()},
}
"""Which optimiser and schedule take an option that not all of them take."""


def without_effect(config: Config, task: str, *, masks: bool = False) -> list[str]:
    """A line for each option that was set, and that nothing in a run of this task looks at.

    Args:
        config: of the run.
        task: of its first head.
        masks: whether a head finds masks of objects.
    """
    found: list[str] = []
    for place, part in (("train.optimizer", config.train.optimizer), ("train.schedule", config.train.schedule)):
        for key in sorted(set().union(*_USED_BY[place].values()) - _USED_BY[place][part.name]):
            found += _if_set(part, key, f"{place}.{key}", f"{part.name} has no such option")
    if config.train.optimizer.backbone_lr == 0:
        found += _if_set(config.train.optimizer, "layer_decay", "train.optimizer.layer_decay", "backbone_lr is 0")
    if config.train.swa is not None and config.train.swa.lr is None:
        found += _if_set(config.train.swa, "anneal", "train.swa.anneal", "swa.lr is null")
    if not config.train.schedule.warmup:
        found += _if_set(config.train.schedule, "warmup_start", "train.schedule.warmup_start", "warmup is 0")
    if "detection" not in task:
        found += _if_set(config.evaluation, "max_detections", "evaluation.max_detections", f"the task is {task}")
    if not masks:
        found += _if_set(config.evaluation, "boundary", "evaluation.boundary", "no head finds masks of objects")
    if len(config.taught) == 1:
        found += _if_set(config.train, "mixing", "train.mixing", "there is one data set")
    for name in config.taught:
        data = config.sets[name]
        if len(config.taught) == 1 or config.train.mixing == "size":
            why = "there is one data set" if len(config.taught) == 1 else "train.mixing is size"
            found += _if_set(data, "share", ".".join(filter(None, ("data", name, "share"))), why)
    if all(config.sets[name].val is None for name in config.taught):
        for key in ("every", "metric", "patience", "baselines"):
            found += _if_set(config.evaluation, key, f"evaluation.{key}", "there is no data.val to evaluate on")
    return found


def _if_set(part: pydantic.BaseModel, key: str, path: str, why: str) -> list[str]:
    value = getattr(part, key)
    default = type(part).model_fields[key].default
    return [] if value == default else [f"{path}: {value!r} has no effect, for {why}"]
