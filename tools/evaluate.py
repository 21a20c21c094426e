"""Measure a checkpoint, or weights of torchvision, timm or smp, on a data set.

    python tools/evaluate.py runs/bccd/best.pt --data test --json test.json
    python tools/evaluate.py runs/bccd/best.pt data.val.annotations=other.json data.val.images=other/
    python tools/evaluate.py configs/classification/imagenet_resnet50.yaml model.weights=resnet50.pth

The data set is a split of the checkpoint's own config (val unless said otherwise); any key of that config can be
overridden. A config in its place measures the weights that it names, without a training. Detectors get COCO's 12
numbers and AP per class, segmenters mIoU, Dice and IoU per class, classifiers top-1 and top-5; all get the loss.
--pictures draws some of the images, what is true beside what was predicted (as many as evaluation.pictures says), the
confusion matrix, and a detector's precision over recall. Under torchrun the ranks share the images and every image
counts once.

Beside each number stands the interval in which 95 % of its values lie when the images are drawn anew (--bootstrap, 0
for none): how far it would move on other images like these. Losses and F1 have none.

A segmenter's --json also has the numbers of each image (per_image), and the table names the worst ones. --flips,
--scales and --tiles measure as tools/predict.py predicts with the same options; then there is no loss, for no single
pass stands for the predictions.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path

from densekit.console import DEVICES, at_least, print_table, refuse_without_effect, run, say, share


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="best.pt or last.pt, or a config with model.weights")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that replace the checkpoint's")
    parser.add_argument("--data", choices=("train", "val", "test"), default="val", help="split (default: val)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--pictures", type=Path, help="folder for sample predictions, confusion matrix, curves")
    parser.add_argument("--match-names", action="store_true", help="match classes by name where ids or order differ")
    parser.add_argument("--flips", action="store_true", help="average over mirrored images")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="average over these sizes")
    parser.add_argument("--tiles", type=int, help="detection: side of tiles in pixels, for large images, small objects")
    parser.add_argument("--overlap", type=share, help="least share that tiles overlap (default: 0.25)")
    parser.add_argument("--bootstrap", type=at_least(0), default=1000, help="draws for the intervals (default: 1000)")
    parser.add_argument("--device", choices=DEVICES, help="default: cuda where there is one, else cpu")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    from densekit import build
    from densekit.config import is_set
    from densekit.data.images.settings import unfit_range
    from densekit.engine import distributed
    from densekit.engine.record import finite
    from densekit.files import write_text
    from densekit.infer.augmented import FLIPS
    from densekit.infer.evaluate import evaluate
    from densekit.infer.predict import Options, predicts_with
    from densekit.infer.samples import draw_samples
    from densekit.infer.tiles import untouched
    from densekit.metrics.intervals import intervals
    from densekit.precision import settle_precision
    from densekit.show import report

    world = distributed.join(args.device)
    model, config, made = build.to_measure(args.checkpoint, args.overrides, args.data, world)
    asked, overlap = is_set("train.precision", args.overrides), 0.25 if args.overlap is None else args.overlap
    precision, notes = settle_precision(config.train.precision, world.device, asked=asked)
    flips, scales = FLIPS if args.flips else ("none",), tuple(args.scales)
    options = Options(precision, tiles=args.tiles, overlap=overlap, flips=flips, scales=scales)
    refuse_without_effect(("--overlap", args.overlap is not None and args.tiles is None, "--tiles"))
    options.check(model)
    data = build.dataset(config, args.data, training=False, classes=model.classes, match_names=args.match_names)
    model.classes = data.classes  # the same unless names were matched: then predictions come in this data set's ids
    build.check_stores(config, model, data, training=False)
    transforms = build.transforms(config.data, training=False)
    batches = build.eval_batches(config, data if args.tiles is None else untouched(data), world)
    metric = build.metric(config, model, data)
    title = f"{args.checkpoint} on {args.data}: {len(data)} images, {len(data.classes)} classes, {precision}"
    say("\n".join([*made, *unfit_range(config.data, data), *build.notes(data), *notes, title]), world.is_first)
    numbers = evaluate(
        model.to(world.device),
        batches,
        {next(iter(model.heads)): metric},
        world=world,
        precision=precision,
        total=len(batches),
        predict=predicts_with(options, transforms, config.data.pad_to),
    )
    if world.is_first:
        if rows := report.per_image(metric, functools.partial(build.file_names, data)):
            numbers["per_image"] = rows
        numbers |= report.details(metric)
        if known := intervals(metric, count=args.bootstrap, seed=config.seed):
            numbers["intervals"] = known
        for title, columns, rows in report.tables(model.task, numbers):
            print_table(title, columns, rows)
        if line := report.undefined(model.task, numbers):
            say(line)
        if args.json:
            write_text(args.json, json.dumps(finite(numbers), indent=1, allow_nan=False) + "\n")
        if args.pictures:
            report.write_pictures(args.pictures, numbers, model.classes.names)
            shown = build.pictured(config, args.data, classes=model.classes, match_names=args.match_names)
            draw_samples(model, shown, args.pictures, config.evaluation.pictures)
    distributed.leave()
    return 0


if __name__ == "__main__":
    run(main)
