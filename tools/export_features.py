"""Export feature maps of any backbone to a feature store on disk.

    python tools/export_features.py --backbone resnet50 --weights resnet50.pth --images photos/ --levels c4 --out store
    python tools/export_features.py --checkpoint runs/bccd/best.pt --images photos/ --levels p3,p4,pooled --out store
    python tools/export_features.py --config run.yaml --split train --levels c2,c3,c4,c5 --out store

Levels are c1..c5 of the backbone, p2..p6 of a detector's neck, pooled (a vector) and roi (boxes cut out), or pooled:c4
and roi:c4. The same command goes on with an export that was stopped or killed; --verify makes damaged shards again.
Under torchrun ranks share the shards. Images that can't be read stand in manifest.json; exit code 3 (one process) then.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densekit import export_options, machine
from densekit.console import DEVICES, SKIPPED, Bar, at_least, run, say


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("overrides", nargs="*", metavar="key.path=value", help="values that replace the config's")
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--backbone", help="name of a backbone, see tools/list_parts.py")
    network.add_argument("--checkpoint", type=Path, help="a trained checkpoint, with its normalisation and resizing")
    network.add_argument("--config", help="a run's config: its backbone, weights, transforms, and the data of --split")
    add("--weights", help="for --backbone: a file, torchvision/<name> or timm/<tag>")
    add("--images", type=Path, help="folder of images (with --annotations and --list: theirs)")
    add("--annotations", type=Path, help="COCO json: its images, by their ids")
    add("--list", type=Path, help="text file with an image a line, relative to --images")
    add("--split", choices=("train", "val", "test"), help="data set of the config or checkpoint")
    add("--out", type=Path, required=True, help="folder of the store")
    add("--levels", type=lambda names: names.split(","), help="comma-separated (default: all of the backbone)")
    add("--boxes", type=Path, help="for roi: COCO annotations or results (default: the data set's own)")
    add("--size", type=at_least(1), nargs=2, metavar=("H", "W"), help="resize to a fixed size")
    add("--short", type=at_least(1), help="resize the short side (default: as checkpoint or config, else not)")
    add("--long", type=at_least(1), help="resize the long side, or its limit beside --short")
    add("--flips", nargs="+", default=[], choices=("horizontal", "vertical", "both"), help="mirrored views too")
    add("--dtype", choices=("float16", "float32"), default="float16")
    add("--format", dest="file_format", choices=("safetensors", "npy", "parquet"), default="safetensors")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="of the network (default: the config's, or auto)")
    add("--reduced", action="store_true", help="decode JPEGs of --images or --list at 1/2 to 1/8 where that suffices")
    add("--channels", type=at_least(1), help="for --backbone: image channels (3)")
    add("--mean", type=float, nargs="+", help="for --backbone (ImageNet's)")
    add("--std", type=float, nargs="+", help="for --backbone (ImageNet's)")
    add("--range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="for --backbone: black and white beyond 8 bits")
    add("--seed", type=at_least(0), help="for --backbone: of weights that no file gives (0)")
    add("--batch", dest="batch_size", metavar="N", type=at_least(1), default=8, help="images at once (8)")
    add("--shard-images", type=at_least(1), help="images a shard (default: about 64 MB a shard)")
    add("--workers", type=at_least(0, 1024), help="threads (GPU: processes) that decode (default: cores, at most 8)")
    add("--device", choices=DEVICES, help="default: cuda where there is one, else cpu")
    add("--verify", action="store_true", help="read every shard and make damaged ones again")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = export_options.settle(arguments().parse_intermixed_args(argv))

    from densekit.engine import distributed  # torch takes seconds to import; --help should not
    from densekit.features.export import Exporter
    from densekit.features.shards import ShardFolder, summary

    world = distributed.join(args.device)
    export, made = prepare(args, world)
    extractor, recipe = export.extractor(), export.recipe()
    if not world.is_first:
        distributed.barrier()  # the first rank makes the folder ready
    folder = ShardFolder(args.out, recipe, first=world.is_first)
    if world.is_first:
        distributed.barrier()

    # Each rank makes its share of the shards that are not there; the first sums up.
    missing = folder.missing(world.rank, world.size, verify=args.verify)
    lost, shards = sum(distributed.gather(len(missing))), recipe.shards()
    say(f"{shards - lost} of {shards} shards are whole, {lost} to make", world.is_first)
    count = args.workers if args.workers is not None else min(8, machine.cores() // world.local)
    with Bar("exporting", sum(len(recipe.shard(number)) for number in missing), shown=world.is_first) as bar:
        times = Exporter(export.source, extractor, folder, boxes=export.boxes, workers=count).run(missing, bar.advance)
    distributed.barrier()
    manifest = folder.finish(made) if world.is_first else {"unreadable": []}
    say(f"{times.summary()}\n{summary(args.out, manifest)}" if world.is_first else None)
    distributed.leave()
    return SKIPPED if manifest["unreadable"] and world.size == 1 else 0


def prepare(args: argparse.Namespace, world: Any) -> tuple[Any, dict[str, Any]]:
    """What to export, and what the manifest says of its weights."""
    from densekit import build
    from densekit import config as configs
    from densekit.features import setup
    from densekit.features.sources import read_boxes

    config, told, views = None, [], args.flips
    if args.backbone:
        image = {"channels": args.channels, "mean": args.mean, "std": args.std}
        model, lines = setup.bare_model(args.backbone, {}, weights=args.weights, seed=args.seed, **image)
    elif args.checkpoint:
        (model, config), lines = build.from_checkpoint(args.checkpoint, args.overrides), []
    else:
        config = configs.load(args.config, args.overrides)
        config, told = build.settle_alone(config, world, args.split)
        model, lines = setup.model_of(config)
    asked = bool(args.config) or configs.is_set("train.precision", args.overrides)
    precision, notes = setup.precision_of(args.precision, config, world.device, asked=asked)
    specs = setup.resize_specs(args.size, args.short, args.long)
    if args.split:
        split, drawn = setup.split_to_export(config, args.split, specs)
        source = build.dataset(split, args.split, training=args.split == "train")
        specs, views = source.transforms.specs, [*views, *drawn]
    else:
        specs = specs or (list(config.data.eval_transforms) if config else [])
        files = (args.images, args.annotations, args.list)
        source = setup.plain_source(*files, specs=specs, channels=model.channels, reduced=args.reduced)
    given = {name: getattr(args, name) for name in ("dtype", "file_format", "batch_size", "shard_images")}
    boxes, pad_to = read_boxes(args.boxes) if args.boxes else None, config.data.pad_to if config else 32
    given |= {"boxes": boxes, "pad_to": pad_to, "precision": precision}
    export = setup.Export(model.to(world.device), source, args.levels, setup.views_of(views), specs, **given)
    network = f"network in {export.precision}, {args.dtype} stored{', JPEGs decoded reduced' * args.reduced}"
    told = [*told, *notes, *setup.settle(source, config, args.range)]
    say("\n".join(dict.fromkeys([*lines, *told, network])), world.is_first)
    return export, setup.made_from(args.weights or args.checkpoint or (config and config.model.backbone.weights))


if __name__ == "__main__":
    run(main)
