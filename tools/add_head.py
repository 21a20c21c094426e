"""Write the config of a run that adds a head to a model that has learned.

    python tools/add_head.py runs/cells/best.pt configs/segmentation/unet_r18_nuclei.yaml --out both.yaml
    python tools/train.py both.yaml --out runs/both

The head, its data and its training are the config's; the backbone and the other heads are the checkpoint's, and rest:
their predictions stay what they are, to the bit. The new head becomes what it would become alone on that backbone. With
model.backbone.frozen_stages=0 the backbone learns along, and the predictions of the other heads change.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from densekit.console import run, say


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="best.pt or last.pt of the model that has learned")
    parser.add_argument(
        "config", help="YAML file that trains the new head, or the name of one that comes with densekit"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="values that replace the written config's"
    )
    parser.add_argument("--out", type=Path, required=True, help="config to write")
    args = parser.parse_intermixed_args(argv)

    from densekit.added_head import add_head  # torch takes seconds to import; --help should not
    from densekit.config import dump
    from densekit.files import write_text

    config = add_head(args.checkpoint, args.config, args.overrides)
    write_text(args.out, dump(config))
    frozen = config.model.frozen_heads
    new = ", ".join(name for name in config.model.heads if name not in frozen)
    say(f"{args.out}: {new} on {config.model.backbone.name} of {args.checkpoint}, beside {', '.join(frozen)}")
    say(f"train it: tools/train.py {args.out}")
    return 0


if __name__ == "__main__":
    run(main)
