"""Run a step again whose loss was not finite, and show where the first such value arises.

    python tools/replay.py runs/bccd/bundle_step1200_rank0.pt

The bundle holds the weights before the step, the batch with its file names, the seed and the precision, so the step
is the same again (to the bit, on the same kind of device). Shown are the losses, the gradient's norm, and the first
module, loss or gradient that is not finite. Try --precision fp32 to see whether the arithmetic is to blame.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from densekit.console import DEVICES, print_table, run, say


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="bundle_step*.pt of a run folder")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="default: that of the run")
    parser.add_argument("--device", choices=DEVICES, help="default: cuda where there is one, else cpu")
    args = parser.parse_args(argv)

    from densekit.engine import distributed
    from densekit.engine.replay import read_bundle, replay
    from densekit.memory import describe_batch
    from densekit.precision import settle_precision

    world = distributed.join(args.device)
    bundle = read_bundle(args.bundle)
    named, asked = args.precision or bundle.precision, args.precision is not None
    precision, notes = settle_precision(named, world.device, asked=asked)
    bundle = dataclasses.replace(bundle, precision=precision)
    for line in [
        f"step {bundle.step} on rank {bundle.rank}, seed {bundle.seed}, {precision} on {world.device}",
        *notes,
    ]:
        say(line)
    found = False
    for micro, (result, batch, files) in enumerate(zip(replay(bundle, world.device), bundle.batches, bundle.files)):
        rows: list[list[object]] = [[name, value] for name, value in result.losses.items()]
        print_table(f"micro-batch {micro}: {describe_batch(batch)}", ("loss", "value"), [*rows, ["norm", result.norm]])
        say("\n".join(f"  {name}" for name in files))
        if result.finding is not None:
            found = True
            say(f"first not finite: {result.finding.stage} {result.finding.name}: {result.finding.detail}")
    if not found:
        say("everything was finite this time: the fault needs the run's own device, ranks or precision")
    return 0


if __name__ == "__main__":
    run(main)
