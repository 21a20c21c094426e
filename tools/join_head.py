"""Make a normal checkpoint of a head that was trained from stored features, or join a head to another checkpoint.

    python tools/join_head.py runs/cells/best.pt --out cells.pt
    python tools/join_head.py runs/nuclei/best.pt --to runs/cells/best.pt --name masks --out both.pt

The frozen backbone and the head stand in one checkpoint whose config names the images themselves, so that
tools/evaluate.py, tools/predict.py and fine-tuning take it without the feature store.

With --to the head comes beside those of another checkpoint, which stay as they are with their classes: it must have
been trained on that one's backbone, frozen or from stored features.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from densekit.console import refuse_without_effect, run, say


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="best.pt or last.pt of a run on stored features")
    parser.add_argument("--to", type=Path, metavar="CHECKPOINT", help="join it to the heads of this one")
    parser.add_argument("--name", help="of the head beside the others (default: as it is called)")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint to write")
    args = parser.parse_args(argv)
    refuse_without_effect(("--name", args.name is not None and args.to is None, "--to"))

    from densekit import build  # torch takes seconds to import; --help should not
    from densekit.engine import checkpoint
    from densekit.joined_heads import join

    if args.to is not None:
        content, config = join(args.checkpoint, args.to, args.name)
        checkpoint.save(args.out, content)
        say(f"{args.out}: {args.to} with the heads {', '.join(config.model.heads)}")
        return 0
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
