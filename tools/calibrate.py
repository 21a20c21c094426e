"""Make a checkpoint's scores honest, and choose the scores from which on its boxes are believed.

    python tools/calibrate.py runs/cells
    python tools/calibrate.py runs/cells/best.pt --precision 0.95

A temperature (a class for detectors, one for segmenters and classifiers) is fitted on the validation set, so that of
the boxes, pixels or images with a score of 0.8 eight in ten are right; the expected calibration error is told before
and after, where each half of the images is judged by the temperature of the other half. For a detector a score a class
is chosen: that of the best F1, or the one that gives --precision or --recall. Both are written into the checkpoint
(best.pt of a run folder), of which nothing else changes, and predict.py uses them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from densekit.console import DEVICES, print_table, run, say, share
from densekit.errors import DensekitError


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder or checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that replace the checkpoint's")
    parser.add_argument("--data", choices=("train", "val", "test"), default="val", help="split (default: val)")
    parser.add_argument("--head", help="whose scores, of a checkpoint with several heads (default: the first)")
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument("--precision", type=share, help="detection: share of the boxes of a class that are to be right")
    wanted.add_argument("--recall", type=share, help="detection: share of the objects of a class that are to be found")
    parser.add_argument("--device", choices=DEVICES, help="default: cuda where there is one, else cpu")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    from densekit.calibrate import calibrate, store
    from densekit.engine import distributed

    world = distributed.join(args.device)
    if world.size > 1:
        raise DensekitError("calibrate.py is one process: leave torchrun out")
    wanted = {"precision": args.precision, "recall": args.recall}
    found = calibrate(args.run, args.overrides, args.data, world, **wanted, head=args.head)
    calibration, classes = found.calibration, found.run.data.classes
    if found.cuts:
        rows = [
            [name, temperature, cut.score, cut.precision, cut.recall, "" if cut.reached else "not reached"]
            for name, temperature, cut in zip(classes.names, calibration.temperatures, found.cuts)
        ]
        print_table("per class", ("class", "temperature", "score", "precision", "recall", calibration.rule), rows)
    else:
        say(f"temperature {calibration.temperatures[0]:.4f}")
    say(f"expected calibration error {calibration.before:.4f} before, {calibration.after:.4f} after (held out)")
    store(found)
    say(f"written into {found.run.path}; predict.py uses it from now on")
    return 0


if __name__ == "__main__":
    run(main)
