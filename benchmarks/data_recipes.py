"""What data recipes bring: copy-paste on nuclei, and repeat factors on blood cells whose platelets are rare.

    python benchmarks/data_recipes.py                                   # both, with and without, three seeds
    python benchmarks/data_recipes.py --only copy_paste --seeds 0 1 2 3 4
    python benchmarks/data_recipes.py --weights resnet18.pth --steps 600 --json result.json
    python benchmarks/data_recipes.py train.batch_size=2 train.ema=0.98 # where minutes are few
    python benchmarks/data_recipes.py --short                           # a few steps, to see that it runs

Both arms of a comparison have the same seed, steps, model and batches' size; only the recipe differs. Blood cells are
those of the shipped config without nine tenths of the training images that show platelets, drawn by the seed, so that
no platelet lacks its label; validation and test images stay. The last weights, averaged where the config says so, are
measured on the test images. Data sets are looked for in $DENSEKIT_DATA, or data.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import Training, compared

from densekit.console import print_table, run, say

if TYPE_CHECKING:
    from densekit.config import Config

KEPT = 0.1
"""Part of the images with platelets that stay."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A recipe with and without.

    Attributes:
        config: shipped config to start from.
        steps: of each run.
        numbers: paths of the numbers to tell.
    """

    config: str
    steps: int
    numbers: tuple[str, ...]


QUESTIONS = {
    "copy_paste": Question("mask_rcnn_r18_nuclei", 1500, ("AP50", "mask_AP", "mask_AP50")),
    "repeat_factor": Question("faster_rcnn_r18_bccd", 500, ("AP", "AP50", "per_class.Platelets.AP")),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS), help="these recipes alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of each run (default: 1500 for copy_paste, 500 for repeat_factor)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the config, in both arms")
    parser.add_argument("--weights", help="of the backbone: a file, or a name (default: the config's own)")
    parser.add_argument("--short", action="store_true", help="a few steps of one seed, to see that it runs")
    parser.add_argument("--json", type=Path, help="also write the numbers of every run here")
    args = parser.parse_args(argv)

    results = []
    for name in args.only:
        steps = 2 if args.short else args.steps or QUESTIONS[name].steps
        for seed in args.seeds[:1] if args.short else args.seeds:
            for arm in ("without", "with"):
                given = [f"seed={seed}", f"train.steps={steps}", *args.overrides, *overrides(name, arm == "with")]
                if args.weights:
                    given.append(f"model.backbone.weights={args.weights}")
                began = time.perf_counter()
                numbers = train(name, seed, [*given, *(SMALL if args.short else [])])
                results.append({"recipe": name, "arm": arm, "seed": seed, "minutes": (time.perf_counter() - began) / 60}
                               | {path: value(numbers, path) for path in QUESTIONS[name].numbers})  # fmt: skip
                say(f"{name}, {arm}, seed {seed}: {results[-1]}")
                if args.json:
                    args.json.write_text(json.dumps(results, indent=2))
    for name in args.only:
        tell(name, [r for r in results if r["recipe"] == name])
    return 0


SMALL = ["train.batch_size=2", "data.workers=0", "model.backbone.weights=null", "train.precision=fp32"]


def overrides(name: str, used: bool) -> list[str]:
    """What the recipe changes in the config."""
    if name == "repeat_factor":
        return ["data.sampling={name: repeat_factor, threshold: 1.0}"] if used else []
    pasted = "{name: CopyPaste, p: 0.5, until: 0.9}, " if used else ""
    return [
        "data.train_transforms=[{name: ContrastStretch}, {name: ScaleJitter, size: [192, 192], scale: [1.2, 2.4]}, "
        f"{{name: D4}}, {pasted}"
        "{name: ColorJitter, brightness: 0.3, contrast: 0.3, saturation: 0.3, hue: 0.1, p: 0.5}]"
    ]


def train(name: str, seed: int, given: Sequence[str]) -> dict[str, Any]:
    """The numbers of a run with or without a recipe."""
    from densekit import config as configs

    config = configs.load(QUESTIONS[name].config, given)
    with tempfile.TemporaryDirectory() as folder:
        if name == "repeat_factor":
            thinned = Path(folder) / "train.json"
            thin(Path(config.data.train.options["annotations"]), thinned, seed)
            config = configs.override(config, [f"data.train.annotations={thinned}"])
        return trained(config)


def trained(config: Config) -> dict[str, Any]:
    """Train, and measure the weights that are left on the test images."""
    run = Training(config)
    for _ in range(run.plan.steps):
        run.step()
    return run.measured()


def thin(annotations: Path, out: Path, seed: int) -> None:
    """Write a COCO json without most of the images that show platelets."""
    content = json.loads(annotations.read_text())
    rare = next(c["id"] for c in content["categories"] if c["name"] == "Platelets")
    shown = sorted({a["image_id"] for a in content["annotations"] if a["category_id"] == rare})
    kept = np.random.default_rng(seed).permutation(shown)[: max(1, round(KEPT * len(shown)))]
    lost = set(shown) - set(kept.tolist())
    content["images"] = [i for i in content["images"] if i["id"] not in lost]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in lost]
    out.write_text(json.dumps(content))


def value(numbers: dict[str, Any], path: str) -> float:
    """A number by its path."""
    found: Any = numbers
    for key in path.split("."):
        found = found[key]
    return float(found)


def tell(name: str, results: Sequence[dict[str, Any]]) -> None:
    """Mean and spread over the seeds, and the mean of the differences of a seed's two arms."""
    rows = []
    for path in QUESTIONS[name].numbers:
        arms = {arm: [r[path] for r in results if r["arm"] == arm] for arm in ("without", "with")}
        rows.append([path, *compared(arms["without"], arms["with"])])
    minutes = statistics.mean(r["minutes"] for r in results)
    title = (
        f"{name} on test images, mean and standard deviation over {len(results) // 2} seeds, {minutes:.1f} minutes each"
    )
    print_table(title, ["number", "without", "with", "difference"], rows)


if __name__ == "__main__":
    run(main)
