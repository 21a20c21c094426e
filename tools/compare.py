"""Say whether one run is better than another, beyond chance.

    python tools/compare.py runs/a runs/b
    python tools/compare.py runs/a0 runs/a1 runs/b0 runs/b1 --data test --json compared.json

Both checkpoints (best.pt of a run folder, or any checkpoint) are evaluated on the same images, and these are drawn anew
a thousand times for both alike: the interval of the difference holds 95 % of the draws. Runs of one config with other
seeds are grouped: their numbers are averaged, and the seeds are drawn as well (two or three seeds say little of their
own spread; the interval is then rather too narrow). Any key of the configs can be overridden, for all runs alike.

Of runs with several heads the first is compared, or the one that --head names. Where its name is not the same in all
runs, --head is given once a run, in their order: compare.py runs/both runs/alone --head masks --head main.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from densekit.console import DEVICES, at_least, print_table, run, say, split_overrides
from densekit.errors import DensekitError


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders or checkpoints; key.path=value overrides")
    parser.add_argument("--data", choices=("train", "val", "test"), default="val", help="split (default: val)")
    parser.add_argument("--head", action="append", help="of runs with several heads, the one (default: the first)")
    parser.add_argument("--bootstrap", type=at_least(2), default=1000, help="draws of the images (default: 1000)")
    parser.add_argument("--json", type=Path, help="write the differences to this file")
    parser.add_argument("--device", choices=DEVICES, help="default: cuda where there is one, else cpu")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    names, overrides = split_overrides(args.runs)
    if len(names) < 2:
        raise DensekitError(f"{', '.join(names) or 'nothing'}: a comparison is of two runs; name both")
    from densekit.comparison import check_alike, chosen_number, compare, grouped, heads_of, table, verdict
    from densekit.engine import distributed
    from densekit.files import write_text
    from densekit.measured import measure

    world = distributed.join(args.device)
    if world.size > 1:
        raise DensekitError("compare.py is one process: leave torchrun out")
    heads = heads_of(names, args.head)
    runs = [measure(Path(name), overrides, args.data, world, head=head) for name, head in zip(names, heads)]
    check_alike(runs)
    first, second = grouped(runs)
    differences = compare(first, second, count=args.bootstrap, seed=0)
    words = []
    for letter, group in zip("AB", (first, second)):
        seeds = f" ({len(group)} seeds)" if len(group) > 1 else ""
        words.append(f"{letter}{seeds}: {', '.join(str(one.path) for one in group)}")
    say("\n".join(words))
    print_table("all classes", ("number", "A", "B", "B - A", "95 % between"), table(differences))
    sentence = verdict(differences, chosen_number(runs[0]))
    say(sentence)
    if args.json:
        rows = [{**one._asdict(), "by": one.by} for one in differences]
        content = {"A": [str(r.path) for r in first], "B": [str(r.path) for r in second]}
        write_text(args.json, json.dumps({**content, "says": sentence, "numbers": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run(main)
