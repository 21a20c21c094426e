"""Count the pixels of each class in a segmenter's training masks, and give losses that weigh the rare ones more.

    python tools/class_weights.py configs/segmentation/unet_r34_camvid.yaml
    python tools/class_weights.py configs/segmentation/unet_r34_camvid.yaml --power 1 --json counts.json

The last lines are overrides: add them to the command of tools/train.py, or write them into the config. The weights are
then plain numbers there, in the run folder and in the checkpoints, so that a resumed run has the same.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from densekit import config as configs
from densekit.console import print_table, run, say, track


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of a segmenter")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that replace the config's")
    parser.add_argument("--power", type=float, default=0.5, help="0 weighs pixels alike, 1 classes (default: 0.5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write counts and losses to this file")
    args = parser.parse_intermixed_args(argv)
    config = configs.load(args.config, args.overrides)

    from densekit import build
    from densekit.engine.class_weights import balanced_losses, count_pixels
    from densekit.files import write_text
    from densekit.model import build_model

    data = build.dataset(config, "train", training=True)
    for line in build.notes(data):
        say(line)
    heads = build_model(config.model, data.classes).heads  # checks the options that are added to
    counts = count_pixels(data, lambda indices: track(indices, "counting", len(indices)))
    losses = {
        name: balanced_losses(part.options.get("losses"), heads[name].mode, counts, args.power)
        for name, part in config.model.heads.items()
        if heads[name].task == "segmentation"
    }
    pixels = {name: int(count) for name, count in zip(data.classes.names, counts)}
    total = max(1, sum(pixels.values()))
    rows = [[name, count, f"{100 * count / total:.3f}"] for name, count in pixels.items()]
    print_table(f"{len(data)} masks", ["class", "pixels", "%"], rows)
    for name, option in losses.items():
        say(shlex.quote(f"model.heads.{name}.losses={json.dumps(option)}"))
    if args.json:
        write_text(args.json, json.dumps({"pixels": pixels, "losses": losses}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run(main)
