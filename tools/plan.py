"""Say before the first step what a training will take: memory, seconds a step, hours, disk; and what would fit.

    python tools/plan.py configs/detection/faster_rcnn_r18_bccd.yaml
    python tools/plan.py configs/detection/faster_rcnn_r50_coco_1x.yaml --gpu 24GB --batch 8 16

A step is traced without data, and the operations that count are run for some seconds on this machine. Weights to start
from are not looked for. --gpu plans for a GPU that is not here; then there are no times. Exit code 1: it does not fit.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from densekit.console import DEVICES, run, say
from densekit.errors import DensekitError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, or the name of a config that comes with densekit")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that replace the config's")
    parser.add_argument("--batch", type=int, nargs="+", metavar="IMAGES", help="plan for each train.batch_size")
    parser.add_argument("--gpu", metavar="24GB", help="plan for a GPU of so much memory that is not here")
    parser.add_argument("--device", choices=DEVICES, help="default: cuda where there is one, else cpu")
    args = parser.parse_intermixed_args(argv)
    room = None if args.gpu is None else gigabytes(args.gpu)
    fits = True
    for batch in args.batch or [None]:
        fits &= plan(args.config, args.overrides, batch, args.device, room)
    return 0 if fits else 1


def gigabytes(text: str) -> int:
    """24GB, 24 or 23.5GiB in bytes; sellers and torch both call 2**30 a gigabyte here."""
    if (found := re.fullmatch(r"(\d+(\.\d+)?)\s*(g|gb|gib)?", text.lower())) is None or float(found[1]) <= 0:
        raise DensekitError(f"--gpu: {text!r} is not an amount of memory; write, for example, 24GB")
    return round(float(found[1]) * 2**30)


def plan(name: str, overrides: Sequence[str], batch: int | None, device: str | None, gpu: int | None) -> bool:
    """Tell the forecast of a config with one batch size; whether it fits."""
    from densekit import config as configs  # not above: help should start at once

    own = [*overrides, *([] if batch is None else [f"train.batch_size={batch}"])]
    config = configs.load(name, own)
    unread = [] if config.model.frozen_heads else ["model.weights=null"]  # those heads' classes stand in the checkpoint
    config = configs.override(config, [*unread, "model.backbone.weights=null"])
    from densekit import build, learning_sets
    from densekit.engine import distributed
    from densekit.forecast.forecast import forecast, told
    from densekit.forecast.room import room_on
    from densekit.precision import Precision, choose_precision

    world = distributed.join("cpu" if gpu else device)
    sets = learning_sets.open_sets(config)
    config, _ = learning_sets.settle(config, world, sets)
    model, _ = build.model(config, learning_sets.classes_of(sets))
    asked = config.train.precision
    if gpu:
        precision: Precision = "bf16" if asked == "auto" else asked
    else:
        precision = choose_precision(asked, world.device)
    room = gpu or room_on(world.device)
    found = forecast(config, model, sets, world, precision=precision, room=room, here=not gpu)
    where = f"a GPU of {gpu / 2**30:g} GB" if gpu else distributed.describe(world.device)
    timetable = build.plan(config, [one.train for one in sets], model)
    say("\n".join(told(found, config, timetable, precision, where)))
    return found.fits


if __name__ == "__main__":
    run(main)
