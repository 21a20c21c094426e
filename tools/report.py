"""Tell a run in one HTML file, or set runs side by side.

    python tools/report.py runs/cells
    python tools/report.py runs/cells runs/other --out both.html
    python tools/report.py stores/train

The report needs no server and no network: open it by a double click, or print it. It measures best.pt on the
validation set and tells what was trained on what, how good it is with intervals, which class is worst and why, curves,
precision and recall, confusions with the images behind them, kinds of errors, how honest the scores are, the worst
images and some at random, labels that are probably wrong (also as label_errors.json, of boxes a COCO file), what the
doctor says of the data, time and memory. It is written into the run folder as report.html unless --out says otherwise.
Of a feature store it tells what was exported of which network, and what lies on the disk.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from densekit.console import DEVICES, at_least, run, say, split_overrides
from densekit.errors import DensekitError


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders, checkpoints or a store; key=value overrides"
    )
    parser.add_argument("--data", choices=("train", "val", "test"), default="val", help="split (default: val)")
    parser.add_argument("--head", help="of runs with several heads, the one to tell of (default: the first)")
    parser.add_argument("--out", type=Path, help="file to write (default: report.html in the run folder)")
    parser.add_argument("--pictures", type=at_least(0), default=8, help="worst images, and as many others (default: 8)")
    parser.add_argument("--device", choices=DEVICES, help="default: cuda where there is one, else cpu")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    names, overrides = split_overrides(args.runs)
    if not names:
        raise DensekitError("there is no run to tell of; name its folder")
    if len(names) > 1 and args.out is None:
        raise DensekitError("several runs side by side belong to none of their folders; say where by --out FILE.html")
    from densekit.run_report.store import is_store, write_store

    if stores := [name for name in names if is_store(Path(name))]:
        if len(names) > 1:
            raise DensekitError(f"{stores[0]} is a feature store, of which a page tells alone; give it alone")
        out = args.out or Path(names[0]) / "report.html"
        write_store(Path(names[0]), out)
        say(f"{out} ({out.stat().st_size / 2**20:.1f} MiB)")
        return 0
    from densekit.engine import distributed
    from densekit.files import write_text
    from densekit.measured import checkpoint_of
    from densekit.run_report.label_errors import as_json
    from densekit.run_report.page import write_report
    from densekit.run_report.side_by_side import write_side_by_side
    from densekit.run_report.story import gather

    world = distributed.join(args.device)
    if world.size > 1:
        raise DensekitError("report.py is one process: leave torchrun out")
    out = args.out or checkpoint_of(Path(names[0])).parent / "report.html"
    how = {"shown": args.pictures, "head": args.head}
    stories = [gather(Path(name), overrides, args.data, world, **how) for name in names]
    if len(stories) > 1:
        write_side_by_side(stories, out)
    else:
        (story,) = stories
        write_report(story, out)
        if story.run.data.task != "segmentation":
            text = json.dumps(as_json(story.suspects, story.run.data), indent=1)
            write_text(out.with_name("label_errors.json"), text + "\n")
            say(f"{len(story.suspects)} labels that are probably wrong: {out.with_name('label_errors.json')}")
    say(f"{out} ({out.stat().st_size / 2**20:.1f} MiB)")
    return 0


if __name__ == "__main__":
    run(main)
