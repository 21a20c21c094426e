"""Train any head on any backbone, from one YAML config.

    python tools/train.py configs/detection/faster_rcnn_r18_bccd.yaml --out runs/bccd train.epochs=20

Any key of the config can be overridden as key.path=value. A run that was stopped or killed goes on with --resume, as if
it had not been. On several GPUs or machines: torchrun --nproc-per-node 8 tools/train.py CONFIG ...
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from densekit.console import DEVICES, INTERRUPTED, Bar, run, say

if TYPE_CHECKING:
    from densekit.config import Config
    from densekit.engine.distributed import World
    from densekit.run import Run


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, or the name of a config that comes with densekit")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that replace the config's")
    parser.add_argument("--out", type=Path, help="run folder (default: runs/<name of the config>)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    parser.add_argument("--device", choices=DEVICES, help="default: cuda where there is one, else cpu")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    from densekit import config as configs  # not above: help should start at once

    config = configs.load(args.config, args.overrides)
    from densekit.engine import distributed  # torch takes seconds to import; a misspelt key should not

    training = begin(config, args, distributed.join(args.device))
    if not loop(training):
        say(f"stopped after step {training.state.step}; go on with the same command and --resume", training.first)
        return INTERRUPTED
    leave_behind(training)
    distributed.leave()
    return 0


def begin(config: Config, args: argparse.Namespace, world: World) -> Run:
    """Everything that the config names is built and checked before the run folder is touched."""
    from densekit import build, learning_sets
    from densekit import config as configs
    from densekit.engine.record import Record
    from densekit.engine.run_folder import RunFolder, holds_run
    from densekit.forecast.fit import fitted_plan
    from densekit.precision import settle_precision
    from densekit.run import Run

    out = args.out or Path("runs") / Path(args.config).stem
    precision, _ = settle_precision(config.train.precision, world.device, asked=not holds_run(out))

    # Data and model.
    sets = learning_sets.open_sets(config)
    config, told = learning_sets.settle(config, world, sets)
    model, report = build.model(config, learning_sets.classes_of(sets))
    config, plan, fits = fitted_plan(config, model, sets, world, precision, out)
    checked = learning_sets.check(config, sets, model, world, out / "config.yaml")
    step = build.train_step(config, model.to(world.device), plan, world, precision)

    # The run folder, and the state to go on with.
    folder = RunFolder(out, configs.dump(config), resume=args.resume, world=world)
    state, notes = folder.resume(step)
    state.evaluation_due &= any(one.val is not None for one in sets)
    batches = learning_sets.train_batches(config, sets, world, start=state.step)  # from here on workers read ahead
    options = {**config.log.model_dump(), "enabled": world.is_first}
    record = Record(out, step=state.step, evaluation_due=state.evaluation_due, **options)
    notes += [f"going on from step {state.step} of {plan.steps}"] if state.step else []
    summary = build.summary(config, model, [one.train for one in sets], step, plan, world)
    say("\n".join([*told, *report, *fits, summary, *checked, *notes]), world.is_first)
    return Run(config, world, step, plan, folder, state, record, sets, batches)


def loop(training: Run) -> bool:
    """Steps and evaluations to the end of the run; False where it was asked to stop before."""
    from densekit.engine.guard import Stop

    state, plan, first = training.state, training.plan, training.first
    state.finished = plan.is_over(state) or (state.finished and training.out_of_time())
    with Stop(training.world) as stop, Bar("training", plan.steps, start=state.step, shown=first) as bar:
        asked = False
        while not (state.finished or asked):
            if not state.evaluation_due:  # a run that was left in an evaluation goes on with it
                bar.advance(training.advance())
                over = state.step >= plan.steps or training.out_of_time()
                state.evaluation_due = bool(training.measured) and (plan.evaluates(state.step) or over)
                state.finished = over and not state.evaluation_due
                asked = stop.asked()
                if plan.saves(state.step) or over or asked:
                    training.save()  # before the evaluation, so that nothing in it loses the steps
            if state.evaluation_due:
                asked = not training.evaluate(stop)
    return state.finished


def leave_behind(training: Run) -> None:
    """The last weights where none could be chosen, curves, and a look at what was learned."""
    from densekit import build
    from densekit.infer.samples import draw_samples
    from densekit.show.curves import draw_curves

    folder, out = training.folder, training.out
    if not training.measured:
        folder.save_best(training.model_to_use(), training.state, {})
    if training.first:
        training.record.close()
        draw_curves(training.record.lines(), out / "curves.png")
        model, config = build.from_checkpoint(folder.best)
        for name in config.taught:
            own = config.of_set(name)
            shown = build.pictured(own, "val" if own.data.val else "train", classes=model.classes_by_head)
            draw_samples(model, shown, out / "samples", config.evaluation.pictures, heads=own.learning)
        say(training.plan.farewell(training.state, out))


if __name__ == "__main__":
    run(main)
