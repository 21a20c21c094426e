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

Every head of the checkpoint is measured on the data sets that have labels for it, in one pass of the backbone for those
of one set; where there are several heads, the names of their numbers begin with theirs (boxes.AP, masks.mIoU). --heads
chooses some, or one, which is measured as if it were alone.

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
from typing import TYPE_CHECKING, Any

from densekit.console import DEVICES, at_least, print_table, refuse_without_effect, run, say, share

if TYPE_CHECKING:
    from densekit.model import DenseModel


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="best.pt or last.pt, or a config with model.weights")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that replace the checkpoint's")
    parser.add_argument("--data", choices=("train", "val", "test"), default="val", help="split (default: val)")
    parser.add_argument("--heads", nargs="+", metavar="HEAD", help="the only ones that are measured (default: all)")
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
    from densekit.infer.evaluate import Measure, evaluate
    from densekit.infer.predict import Options, predicts_with
    from densekit.infer.samples import draw_samples
    from densekit.infer.tiles import untouched
    from densekit.learning_sets import open_measured
    from densekit.precision import settle_precision
    from densekit.show import report

    world = distributed.join(args.device)
    model, config, made = build.to_measure(args.checkpoint, args.overrides, args.data, world, args.heads)
    asked, overlap = is_set("train.precision", args.overrides), 0.25 if args.overlap is None else args.overlap
    precision, notes = settle_precision(config.train.precision, world.device, asked=asked)
    flips, scales = FLIPS if args.flips else ("none",), tuple(args.scales)
    options = Options(precision, tiles=args.tiles, overlap=overlap, flips=flips, scales=scales)
    refuse_without_effect(("--overlap", args.overlap is not None and args.tiles is None, "--tiles"))
    options.check(model)
    sets = open_measured(config, model, args.data, match_names=args.match_names)
    measures = []
    for one in sets:
        transforms = build.transforms(one.config.data, training=False)
        how = predicts_with(options, one.heads, transforms, one.config.data.pad_to)
        batches = build.eval_batches(one.config, one.data if args.tiles is None else untouched(one.data), world)
        measures.append(Measure(batches, build.metrics(one.config, model, one.data, one.heads), how))
        made += [*unfit_range(one.config.data, one.data), *build.notes(one.data)]
    titles = [f"{args.checkpoint} on {one.title(args.data)}, {precision}" for one in sets]
    say("\n".join([*made, *notes, *titles]), world.is_first)
    numbers = evaluate(model.to(world.device), measures, world=world, precision=precision, progress=True)
    if world.is_first:
        for one, measure in zip(sets, measures):
            for head, metric in measure.metrics.items():
                files = functools.partial(build.file_names, one.data)
                told = report.all_of(metric, files, draws=args.bootstrap, seed=config.seed)
                numbers |= {f"{model.prefix(head)}{name}": value for name, value in told.items()}
                show(model, head, numbers, args.pictures)
            if args.pictures:
                classes, match = model.classes_by_head, args.match_names
                shown = build.pictured(one.config, args.data, classes=classes, match_names=match)
                draw_samples(model, shown, args.pictures, config.evaluation.pictures, heads=one.heads)
        if args.json:
            write_text(args.json, json.dumps(finite(numbers), indent=1, allow_nan=False) + "\n")
    distributed.leave()
    return 0


def show(model: DenseModel, head: str, numbers: dict[str, Any], pictures: Path | None) -> None:
    """A head's tables, and the pictures of its numbers."""
    from densekit.show import report

    prefix, task = model.prefix(head), model.head(head).task
    own = report.of_head(numbers, prefix)
    for title, columns, rows in report.tables(task, own):
        print_table(f"{head}: {title}" if prefix else title, columns, rows)
    if line := report.undefined(task, own):
        say(f"{prefix}{line}")
    if pictures:
        report.write_pictures(pictures, own, model.classes_of(head).names, prefix)


if __name__ == "__main__":
    run(main)
