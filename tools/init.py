"""Write a complete config for a folder of images and labels, from what is found in it.

    python tools/init.py cells/ --out cells.yaml

FOLDER is what an annotation tool exports: COCO json (COCO, Roboflow, CVAT, Label Studio), YOLO, Pascal VOC, LabelMe, or
a CSV of boxes; or images with masks; or a folder of images a class. What was recognised, split, chosen and left aside
is printed; the rule of the choice stands in densekit/first_config/. A folder without a validation set is split by
--seed; the lists are written beside the config.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from densekit.console import at_least, run, say


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="images and labels")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", default=None, help="the config (default: FOLDER's name.yaml, here)"
    )
    parser.add_argument("--task", choices=("detection", "segmentation", "classification"), help="default: seen")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FORMAT",
        help="coco, yolo, voc, labelme, csv, masks or image_folder (default: seen)",
    )
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="classes to learn, in this order (default: all)")
    parser.add_argument(
        "--ignore", nargs="+", type=_value, metavar="VALUE", help="of masks: not looked at; 255, or 0,0,0 for a colour"
    )
    parser.add_argument("--backbone", help="default: resnet18")
    parser.add_argument("--head", help="default: faster_rcnn, unet or classifier")
    parser.add_argument("--weights", help="of the backbone (default: torchvision/IMAGENET1K_V1); none: random numbers")
    parser.add_argument("--size", type=at_least(32), metavar="PIXELS", help="long side of the images")
    parser.add_argument("--epochs", type=at_least(1), help="passes over the training images")
    parser.add_argument("--time", dest="minutes", type=_minutes, metavar="30m", help="train no longer; also 2h")
    parser.add_argument("--seed", type=at_least(0), help="of the split and of the run (default: 0)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)

    from densekit.first_config import Wishes, write_first_config

    wishes = Wishes(**{name: value for name, value in vars(args).items() if name not in ("folder", "out")})
    target = args.out or Path(f"{args.folder.absolute().name}.yaml")
    for line in write_first_config(args.folder, target, wishes):
        say(line)
    return 0


def _minutes(text: str) -> float:
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("m", "h") else (text, "m")
    minutes = float(number) * (60 if unit == "h" else 1)
    if not 0 < minutes < 1e6:
        raise ValueError(text)
    return minutes


def _value(text: str) -> int | tuple[int, int, int]:
    red, *rest = (int(part) for part in text.split(","))
    if len(rest) not in (0, 2):
        raise ValueError(text)
    return (red, rest[0], rest[1]) if rest else red


if __name__ == "__main__":
    run(main)
