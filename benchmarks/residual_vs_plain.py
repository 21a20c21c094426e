"""What the shortcut does: residual and plain networks of growing depth, trained alike on MNIST's digits.

    python benchmarks/residual_vs_plain.py                 # 20, 56 and 110 layers, 30 epochs
    python benchmarks/residual_vs_plain.py --short         # 20 and 32 layers, 2 epochs on a part of the digits
    python benchmarks/residual_vs_plain.py --depths 20 44 --json result.json

The networks are He et al.'s (2015, section 4.2) with a 7x7 stem, one channel, on 8,000 digits of 28 x 28 pixels; the
other 2,000 test them. The digits are looked for in $DENSEKIT_DATA/mnist, or data/mnist. Only the shortcuts differ
between the two networks of a depth: same widths, same recipe, same order of the images.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densekit.console import print_table, run, say

MARKS = (10, 20, 30)
"""Epochs whose numbers go into the table."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56, 110], choices=(20, 32, 44, 56, 110))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--short", action="store_true", help="minutes instead of an hour, to see that it runs")
    parser.add_argument("--json", type=Path, help="also write the numbers of every epoch here")
    args = parser.parse_args(argv)
    depths, epochs, digits = ([20, 32], 2, 1000) if args.short else (args.depths, args.epochs, 8000)

    results = []
    for depth in depths:
        for kind in ("plain", "resnet"):
            history = train(f"{kind}{depth}", epochs, digits)
            results.append({"network": f"{kind}{depth}", "history": history})
            if args.json:
                args.json.write_text(json.dumps(results, indent=2))
    marks = [mark for mark in MARKS if mark <= epochs] or [epochs]
    columns = ["network", *(f"{what} {mark}" for mark in marks for what in ("loss", "test %")), "minutes"]
    print_table(f"Training loss and test accuracy after epochs {', '.join(map(str, marks))}", columns, [
        [r["network"], *row(r["history"], marks), f"{r['history'][-1]['seconds'] / 60:.1f}"] for r in results
    ])  # fmt: skip
    return 0


def row(history: list[dict[str, float]], marks: Sequence[int]) -> list[str]:
    """Loss and accuracy at the marked epochs."""
    return [text for mark in marks for text in (f"{history[mark - 1]['loss']:.3f}", f"{history[mark - 1]['top1']:.2f}")]


def train(network: str, epochs: int, digits: int) -> list[dict[str, float]]:
    """Train one network; the mean training loss and the test accuracy in percent of each epoch."""
    from densekit import build
    from densekit import config as configs
    from densekit.engine import distributed
    from densekit.infer.evaluate import Measure, evaluate

    config = configs.parse(recipe(network, epochs, digits), "the recipe")
    world = distributed.join(None)
    train_set = build.dataset(config, "train", training=True)
    test_set = build.dataset(config, "test", training=False, classes=train_set.classes)
    model, _ = build.model(config, train_set.classes)
    plan = build.plan(config, [train_set], model.to(world.device))
    step = build.train_step(config, model, plan, world)
    batches = build.train_batches(config, train_set, world, start=0)
    test_batches = build.eval_batches(config, test_set, world)
    history, began = [], time.perf_counter()
    for epoch in range(epochs):
        losses = []
        for number in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
            result = step([next(batches).to(world.device)], number)
            losses.append(result.losses["cross_entropy"].detach())
        numbers = evaluate(
            model,
            [Measure(test_batches, build.metrics(config, model, test_set))],
            world=world,
            precision=step.precision,
        )
        loss = sum(float(loss) for loss in losses) / len(losses)
        history.append({"loss": loss, "top1": 100 * numbers["top1"], "seconds": time.perf_counter() - began})
        say(f"{network} epoch {epoch + 1}: loss {loss:.3f}, test {100 * numbers['top1']:.2f} %")
    return history


def recipe(network: str, epochs: int, digits: int) -> dict[str, Any]:
    """The config of a run: He et al.'s recipe with a cosine, and small shifts and turns of the digits.

    Half their rate after three epochs of warm-up: with all of it 110 layers hardly begin (their section 4.2 says so).
    """
    folder = Path(os.environ.get("DENSEKIT_DATA", "data")) / "mnist"
    files = {
        "images": str(folder / "t10k-images-idx3-ubyte.gz"),
        "labels": str(folder / "t10k-labels-idx1-ubyte.gz"),
    }
    return {
        "seed": 0,
        "model": {
            "channels": 1,
            "backbone": {"name": network, "stem": "7x7"},
            "heads": {"digit": {"name": "classifier"}},
            "normalize": {"mean": [0.1307], "std": [0.3081]},
        },
        "data": {
            "train": {"name": "idx", **files, "part": [0, digits]},
            "test": {"name": "idx", **files, "part": [8000, 10000]},
            "train_transforms": [
                {"name": "Affine", "rotate": [-10, 10], "translate_percent": 0.08, "scale": [0.9, 1.1], "p": 0.8}
            ],
            "eval_transforms": [],
            "workers": 1,
        },
        "train": {
            "epochs": epochs,
            "batch_size": 128,
            "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1.0e-4},
            "schedule": {"name": "cosine", "warmup": 189, "end": 0.01},
        },
        "evaluation": {"batch_size": 500},
    }


if __name__ == "__main__":
    run(main)
