"""Make a normal checkpoint of a head that was trained from stored features.

    python tools/join_head.py runs/cells/best.pt --out cells.pt

The frozen backbone and the head stand in one checkpoint whose config names the images themselves, so that
tools/evaluate.py, tools/predict.py and fine-tuning take it without the feature store.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from densekit.console import run, say


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="best.pt or last.pt of a run on stored features")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint to write")
    args = parser.parse_args(argv)

    from densekit import build  # torch takes seconds to import; --help should not
    from densekit.engine import checkpoint

    content = checkpoint.load(args.checkpoint)
    model, config = build.from_checkpoint(args.checkpoint)  # checks that backbone and head are whole
    joined = build.with_pixels(config)
    checkpoint.save(
        args.out,
        {
            **{key: value for key, value in content.items() if key not in ("training", "config")},
            "config": joined.model_dump(mode="json"),
        },
    )
    levels = ", ".join(level.name for level in model.levels)
    heads = ", ".join(f"{name} ({part.name})" for name, part in joined.model.heads.items())
    say(f"{args.out}: {joined.model.backbone.name} ({levels}) with {heads}, trained on {joined.data.train.name}")
    return 0


if __name__ == "__main__":
    run(main)
