"""Export a checkpoint as one file that other programs run, checked on your validation set.

    python tools/export_model.py runs/bccd/best.pt --out bccd.onnx
    python tools/export_model.py runs/bccd/best.pt --format torch --out bccd.pt2

The file takes raw images [B, C, H, W], any number of any size, and gives boxes, scores, class ids and which of them are
valid (and masks), or probabilities: normalisation, padding and suppression are inside. Names, ids, normalisation and
transforms are in its metadata; resizing is not part of it, as everywhere in densekit. --backbone exports the backbone
alone, which gives its maps. Of a checkpoint with several heads the file has all, on one backbone; the names of its
outputs begin with the head's (cells.boxes). --head exports one alone.

The file gets its name when it has been run on the whole split, on odd sizes and batches, and its AP (mIoU, top-1) is
that of the model, head by head: --tolerance says how far both may be apart. tools/predict.py, tools/evaluate.py and
Predictor take the file in the place of a checkpoint. ONNX needs pip install 'densekit[export]'.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from densekit.console import at_least, refuse_without_effect, run, say
from densekit.errors import DensekitError


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="best.pt or last.pt of a run folder")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that replace the checkpoint's")
    parser.add_argument("--format", choices=("onnx", "torch"), help="default: by the suffix of --out, else onnx")
    parser.add_argument("--out", type=Path, help="file to write (default: beside the checkpoint, .onnx or .pt2)")
    parser.add_argument("--head", help="of a checkpoint with several heads, the only one to export")
    parser.add_argument("--backbone", action="store_true", help="the backbone alone: its maps")
    parser.add_argument("--data", choices=("train", "val", "test"), default="val", help="split of the check")
    parser.add_argument("--tolerance", type=float, default=0.001, help="most that AP, mIoU or top-1 may differ")
    smaller = parser.add_mutually_exclusive_group()
    smaller.add_argument("--half", action="store_true", help="convolutions in float16")
    smaller.add_argument(
        "--int8", type=at_least(1), metavar="IMAGES", help="ONNX: convolutions in int8, scaled on so many of data.train"
    )
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    from densekit import build
    from densekit.checked_sets import checked_on, train_images
    from densekit.engine import distributed
    from densekit.export import files
    from densekit.export.check import compare, compare_maps, save_checked, together
    from densekit.export.graph import Graph
    from densekit.export.model import ExportedModel, notes_of
    from densekit.export.runners import is_exported
    from densekit.learning_sets import open_measured
    from densekit.predictor import check_view

    out, form = files.chosen(args.checkpoint, args.out, args.format)
    refuse_without_effect(("--int8", args.int8 is not None and form != "onnx", "--format onnx"))
    if is_exported(args.checkpoint):
        raise DensekitError(f"{args.checkpoint} is exported already; give the checkpoint that it was made of")
    world = distributed.join("cpu")
    model, config, _ = build.to_measure(args.checkpoint, args.overrides, args.data, world)
    if args.head is not None or args.backbone:
        config, _ = build.of_one_head(model, config, args.head)
    check_view(config, "--head")
    sets = open_measured(config, model, args.data, match_names=False)
    places, dtype = checked_on(sets, model, world)
    say(f"exporting {args.checkpoint} to {out}")
    graph = Graph(model, pad_to=config.data.pad_to, backbone=args.backbone, half=args.half)
    written = files.made(graph, form, dtype)
    if args.int8 is not None:
        written = files.in_int8(written, model, train_images(config, model, world), args.int8)
    kind = {"task": "features", "levels": graph.names} if args.backbone else {}
    precision = "fp16" if args.half else "fp32" if args.int8 is None else "int8"
    notes = notes_of(model, config) | files.origin(args.checkpoint, dtype, precision) | kind
    plain, first = Graph(model, pad_to=config.data.pad_to, backbone=args.backbone), next(iter(model.heads))
    checked = save_checked(
        written,
        out,
        notes,
        lambda runner, held: (
            compare_maps(plain, runner, places[0])
            if args.backbone
            else together([compare(model, ExportedModel(runner, held, first), place) for place in places])
        ),
        tolerance=args.tolerance,
        odd_sizes=0.1 if precision == "fp32" else 0.5,
    )
    say(f"{out}: {checked.summary()}")
    return 0


if __name__ == "__main__":
    run(main)
