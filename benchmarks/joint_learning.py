"""What two heads on one backbone learn from two data sets, against a run for each head alone.

    python benchmarks/joint_learning.py                                 # three seeds, 2,000 steps each
    python benchmarks/joint_learning.py --seeds 0 1 2 3 4 --json result.json
    python benchmarks/joint_learning.py --weights resnet18.pth --steps 300 train.batch_size=6 train.ema=0.98
    python benchmarks/joint_learning.py --short                         # a few steps, to see that it runs

The run of both is ``configs/joint/bccd_nuclei.yaml``: boxes from blood cells, masks from nuclei. A run of one head is
the same config without the other head and its data: as many steps, of as many images of its set. The last weights,
averaged where the config says so, are measured on the test images. Data sets are looked for in $DENSEKIT_DATA, or data.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from common import Training, compared

from densekit import config as configs
from densekit.config import Config
from densekit.console import print_table, run, say
from densekit.data.loading.mixing import Mixing

CONFIG = "bccd_nuclei"
NUMBERS = {"boxes": ("AP", "AP50"), "masks": ("mIoU",)}
SMALL = ["train.batch_size=3", "model.backbone.weights=null", "train.precision=fp32"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2000, help="of each run (default: 2000)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the config of both")
    parser.add_argument("--weights", help="of the backbone: a file, or a name (default: the config's own)")
    parser.add_argument("--short", action="store_true", help="two steps of one seed, to see that it runs")
    parser.add_argument("--json", type=Path, help="also write the numbers of every run here")
    args = parser.parse_args(argv)

    steps = 2 if args.short else args.steps
    given = [f"train.steps={steps}", "evaluation.baselines={}", *args.overrides]
    given += [f"model.backbone.weights={args.weights}"] if args.weights else []
    results = []
    for seed in args.seeds[:1] if args.short else args.seeds:
        both = configs.load(CONFIG, [*given, f"seed={seed}", *(SMALL if args.short else [])])
        for heads in (["boxes", "masks"], ["boxes"], ["masks"]):
            began = time.perf_counter()
            numbers = learned(alone(both, heads[0]) if len(heads) == 1 else both)
            minutes = (time.perf_counter() - began) / 60
            results.append({"heads": heads, "seed": seed, "minutes": minutes, **numbers})
            say(str(results[-1]))
            if args.json:
                args.json.write_text(json.dumps(results, indent=2))
    print_table(f"{CONFIG} on test images, {steps} steps", *table(results))
    return 0


def alone(both: Config, head: str) -> Config:
    """The run of one head: its data set alone, and of each step the images of that set."""
    mixing = Mixing({name: one.share for name, one in both.sets.items()}, both.train.batch_size)
    return configs.override(both.of_heads([head]), [f"train.batch_size={mixing.sizes[both.set_of(head)]}"])


def learned(config: Config) -> dict[str, float]:
    """Train, and the numbers of the heads that learned, by head."""
    training = Training(config)
    for _ in range(training.plan.steps):
        training.step()
    measured, prefix = training.measured(), training.model.prefix
    return {f"{head}.{name}": float(measured[f"{prefix(head)}{name}"])
            for head in config.model.heads for name in NUMBERS[head]}  # fmt: skip


def table(results: Sequence[dict[str, object]]) -> tuple[list[str], list[list[str]]]:
    """Mean and standard deviation over the seeds, and of the differences of a seed's runs."""
    rows = []
    for head, names in NUMBERS.items():
        for name in (f"{head}.{name}" for name in names):
            sides = [[float(r[name]) for r in results if name in r and (len(r["heads"]) > 1) == joint]  # type: ignore[arg-type]
                     for joint in (False, True)]  # fmt: skip
            rows.append([name, *compared(*sides)])
    return ["number", "one head", "both heads", "difference"], rows


if __name__ == "__main__":
    run(main)
