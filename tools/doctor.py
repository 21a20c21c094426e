"""Examine a data set before a run is lost to it: each defect, why it hurts, what training does, and the remedy.

    python tools/doctor.py annotations/train.json --images images/ --html report.html
    python tools/doctor.py annotations/train.json --fix annotations/train_fixed.json
    python tools/doctor.py configs/detection/faster_rcnn_r18_bccd.yaml --json report.json

PATH is a COCO json, a config or a run's folder (its splits, also against each other, and its anchors), a folder with
images/ and masks/, a folder with COCO jsons in it, in annotations/ or in its subfolders (all of them, also against each
other), a folder with labels of YOLO, Pascal VOC, LabelMe or a CSV, a folder of masks (with --images), or a folder of
images. --fix repairs what can be told from the rest of the file or from the images, and removes what cannot. Exit code:
0 nothing worse than notes, 3 warnings, 4 errors, 2 a mistake in the command.

Of a config with several data sets all are examined, one after the other; --set chooses one, as --json, --html and --fix
need it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from densekit.console import run, say
from densekit.errors import DensekitError, nearest


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="COCO json, config, run folder, or folder")
    parser.add_argument("--set", metavar="NAME", help="of a config with several data sets, the one to examine")
    parser.add_argument("--images", type=Path, metavar="DIR", help="image folder of a json or of masks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings as JSON")
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write a page: what the set holds, labelled samples, pictures of the defects",
    )
    parser.add_argument(
        "--fix", type=Path, metavar="FILE", help="write a corrected json, and FILE's .log of the changes"
    )
    parser.add_argument(
        "--may-remove", type=float, default=0.1, metavar="PART", help="of images or annotations by --fix (default: 0.1)"
    )
    args = parser.parse_args(argv)

    from densekit.doctor.examine import examine
    from densekit.doctor.fixes.fix import LEFT, write_fixed
    from densekit.doctor.sets import sets_of
    from densekit.doctor.telling.page import write_page
    from densekit.doctor.telling.report import check_targets, print_report, write_json

    log_file = args.fix.with_suffix(".log") if args.fix is not None else None
    check_targets(args.path, [args.json, args.html, args.fix, log_file])
    names = sets_of(args.path) if args.images is None else []
    if args.set is not None and args.set not in names:
        hint = nearest(args.set, names) if names else "it is no config of several; leave --set out"
        raise DensekitError(f"--set: {args.path} has no data set {args.set!r}; {hint}")
    if args.set is None and len(names) > 1:
        if args.json or args.html or args.fix:
            raise DensekitError(f"--json, --html and --fix are for one data set; choose by --set: {', '.join(names)}")
        return max(alone(args.path, name) for name in names)
    report = examine(args.path, args.images, name=args.set)
    print_report(report)
    if args.json is not None:
        write_json(report, args.json)
        say(f"{args.json}: all findings")
    if args.html is not None:
        write_page(report, args.html)
        say(f"{args.html}: a page with pictures")
    if args.fix is not None:
        log = write_fixed(report, args.fix, may_remove=args.may_remove)
        left = sum(line.endswith(LEFT) for line in log)
        say(f"{args.fix}: the corrected annotations; {log_file}: {len(log) - left} changes, {left} left to you")
    return report.exit_code


def alone(path: Path, name: str) -> int:
    """Tell of one of a config's data sets; the exit code that it deserves."""
    from densekit.doctor.examine import examine
    from densekit.doctor.telling.report import print_report

    say(f"data.{name}:")
    report = examine(path, name=name)
    print_report(report)
    return report.exit_code


if __name__ == "__main__":
    run(main)
