"""Train any head on any backbone, from one YAML config.

    python tools/train.py configs/detection/faster_rcnn_r18_bccd.yaml --out runs/bccd train.epochs=20

Any key of the config can be overridden as key.path=value. The run folder gets config.yaml, metrics.jsonl, TensorBoard
events, last.pt, best.pt and sample predictions. A run that was stopped or killed goes on with --resume, as if it had
not been. On several GPUs or machines: torchrun --nproc-per-node 8 tools/train.py CONFIG ...
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Sequence
from pathlib import Path

from densekit.console import DEVICES, INTERRUPTED, Bar, run, say


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, or the name of a config that comes with densekit")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that replace the config's")
    parser.add_argument("--out", type=Path, help="run folder (default: runs/<name of the config>)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    parser.add_argument("--device", choices=DEVICES, help="default: cuda where there is one, else cpu")
    args = parser.parse_intermixed_args(argv)

    from densekit import config as configs  # not above: help should start at once

    config = configs.load(args.config, args.overrides)
    from densekit import build  # torch takes seconds to import; a misspelt key should not
    from densekit.doctor.lost_files import check_files
    from densekit.doctor.quick import quick_check
    from densekit.engine import distributed
    from densekit.engine.guard import FiniteGuard, Stop
    from densekit.engine.record import Record
    from densekit.engine.run_folder import RunFolder, holds_run
    from densekit.infer.evaluate import evaluate
    from densekit.infer.samples import draw_samples
    from densekit.precision import settle_precision

    world = distributed.join(args.device)
    out = args.out or Path("runs") / Path(args.config).stem
    precision, _ = settle_precision(config.train.precision, world.device, asked=not holds_run(out))

    # Data and model: everything that the config names is built and checked before the run folder is touched.
    train_set = build.dataset(config, "train", training=True)
    val_set = build.dataset(config, "val", training=False, classes=train_set.classes) if config.data.val else None
    config, told = build.settle(config, world, train_set, val_set)
    model, report = build.model(config, train_set.classes)
    build.check_stores(config, model, train_set, val_set, training=True)
    plan = build.plan(config, train_set, world, model)
    checked = check_files(config, train_set, val_set)
    checked += quick_check(train_set, val=val_set, config=config, saved=out / "config.yaml")
    step = build.train_step(config, model.to(world.device), plan, world, precision)

    # The run folder, and the state of a run to go on with.
    folder = RunFolder(out, configs.dump(config), resume=args.resume, world=world)
    state, notes = folder.resume(step)
    state.evaluation_due &= val_set is not None
    limit, log = 60 * (config.train.max_minutes or float("inf")), config.log
    state.finished = plan.is_over(state) or (state.finished and state.seconds >= limit)
    batches = build.train_batches(config, train_set, world, start=state.step)  # from here on workers read ahead
    options = {"every": log.every, "tensorboard": log.tensorboard, "csv": log.csv, "enabled": world.is_first}
    record = Record(out, step=state.step, evaluation_due=state.evaluation_due, **options)
    guard = FiniteGuard(folder, step, functools.partial(build.file_names, train_set))
    notes += [f"going on from step {state.step} of {plan.steps}"] if state.step else []
    summary = build.summary(config, model, train_set, step, plan, world)
    say("\n".join([*told, *report, summary, *checked, *notes]), world.is_first)

    # The loop.
    val_batches = build.eval_batches(config, val_set, world) if val_set is not None else None
    unread: list[str] = []

    def save() -> None:
        guard.drain(state)
        for line in state.add_skipped(unread):
            say(f"skipped: {line}", world.is_first)
        unread.clear()
        record.flush()
        folder.save_last(step, state)

    with Stop(world) as stop, Bar("training", plan.steps, start=state.step, shown=world.is_first) as bar:
        while not state.finished:
            if not state.evaluation_due:  # a run that was left in an evaluation goes on with it
                began = time.perf_counter()
                micro_batches = [next(batches) for _ in range(config.train.accumulate)]
                result = step([batch.to(world.device) for batch in micro_batches], state.step)
                guard.check(result, state)
                unread += [line for batch in micro_batches for line in batch.skipped]
                state.step += 1
                state.seconds += (seconds := time.perf_counter() - began)
                bar.advance(record.step(result, step.rate(result.step), seconds, config.train.batch_size))
                over = state.step >= plan.steps or distributed.any_rank(state.seconds >= limit)
                state.evaluation_due = val_set is not None and (plan.evaluates(state.step) or over)
                state.finished = over and not state.evaluation_due
                asked = stop.asked()
                if plan.saves(state.step) or over or asked:
                    save()  # before the evaluation, so that nothing in it loses the steps

            if state.evaluation_due:
                used, metric = step.model_to_use, build.metric(config, step.model_to_use, val_set)
                numbers = evaluate(used, val_batches, metric, world=world, precision=step.precision, stopping=stop.here)
                if not (asked := numbers is None):
                    state.evaluation_due = False
                    record.write("val", state.step, numbers)
                    improved = plan.judge(numbers, state)
                    state.finished |= distributed.any_rank(state.seconds >= limit)
                    say(plan.verdict(numbers, state, improved), world.is_first)
                    if improved:
                        folder.save_best(used, state, numbers)
                    save()
            if asked and not state.finished:
                say(f"stopped after step {state.step}; go on with the same command and --resume", world.is_first)
                return INTERRUPTED

    # What the run leaves behind.
    if val_set is None:
        folder.save_best(step.model_to_use, state, {})
    if world.is_first:
        record.close()
        shown = build.pictured(config, "val" if val_set else "train", classes=train_set.classes)
        draw_samples(build.from_checkpoint(folder.best)[0], shown, out / "samples", config.evaluation.pictures)
        say(plan.farewell(state, out))
    distributed.leave()
    return 0


if __name__ == "__main__":
    run(main)
