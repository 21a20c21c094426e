"""Generate densekit's own data set: coloured shapes with boxes, polygons, crowds and masks.

    python tools/generate_shapes.py data/shapes --train 400 --val 80 --test 80

OUT gets images/, annotations/ (COCO json), masks/ (class-index PNG) and classes.txt, for the configs named *_shapes.
The same options and seed always give the same files; a folder that already holds them is left as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from densekit.console import run, say


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--train", type=int, default=400, help="images for training (400)")
    parser.add_argument("--val", type=int, default=80, help="images to choose a checkpoint by (80)")
    parser.add_argument("--test", type=int, default=80, help="images for the last measurement (80)")
    parser.add_argument("--size", type=int, default=160, help="short side of the images in pixels (160)")
    parser.add_argument("--objects", type=int, default=6, help="the most shapes in an image (6)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other images (0)")
    args = parser.parse_args(argv)

    from densekit.data.formats.shapes import generate_shapes  # torch takes seconds to import; --help should not

    new = generate_shapes(**vars(args))
    say(f"{args.out}: {args.train} + {args.val} + {args.test} images" + ("" if new else " were there already"))
    return 0


if __name__ == "__main__":
    run(main)
