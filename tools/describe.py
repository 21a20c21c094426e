"""Describe a backbone: each stage's output shape, stride, parameters, multiply-adds and receptive field.

    python tools/describe.py resnet50
    python tools/describe.py timm/resnet50d --input 1x3x320x320 output_stride=8

Backbones' names and options: python tools/list_parts.py
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

import yaml

from densekit.console import run
from densekit.errors import DensekitError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", help="registered name, or timm/<name>")
    parser.add_argument("options", nargs="*", metavar="option=value", help="options of the backbone")
    parser.add_argument("--input", default="1x3x224x224", metavar="BxCxHxW", help="shape of the images (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_intermixed_args(argv)
    shape = input_shape(args.input)

    from densekit.backbones.describe import describe, table
    from densekit.registry import BACKBONES

    backbone = BACKBONES.build(args.backbone, read_options(args.options), in_channels=shape[1])
    stages = describe(backbone, shape)
    if args.json:
        print(json.dumps([{"channels": s.channels, **dataclasses.asdict(s)} for s in stages], indent=2))
    else:
        print(table(stages))
    return 0


def read_options(texts: Sequence[str]) -> dict[str, object]:
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise DensekitError(f"{text!r} is not of the form option=value, such as output_stride=8")
        options[name] = yaml.safe_load(value)
    return options


def input_shape(text: str) -> tuple[int, int, int, int]:
    sizes = text.lower().split("x")
    if len(sizes) != 4 or not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise DensekitError(f"--input: {text!r} is not a shape; write images x channels x height x width: 1x3x224x224")
    batch, channels, height, width = map(int, sizes)
    return batch, channels, height, width


if __name__ == "__main__":
    run(main)
