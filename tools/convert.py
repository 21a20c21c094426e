"""Write the labels of a folder, whatever program they are from, as COCO json.

    python tools/convert.py cells/ --to coco cells.json

FOLDER is recognised by its files: COCO jsons (as COCO, Roboflow, CVAT and Label Studio lay them out), YOLO, Pascal VOC,
LabelMe, or a table of boxes (CSV). It may also be a COCO json, a data.yaml or a CSV. Of a folder with splits each one
is written to a file of its own: cells_train.json, cells_val.json. Nothing is written where a label cannot be read.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from densekit.console import run, say


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="images and labels")
    parser.add_argument(
        "--to", required=True, nargs=2, metavar=("coco", "FILE"), help="the format, and the json to write"
    )
    parser.add_argument(
        "--from", dest="source", metavar="FORMAT", help="coco, yolo, voc, labelme or csv (default: seen)"
    )
    parser.add_argument("--split", help="write this one alone")
    args = parser.parse_args(argv)

    from densekit.data.formats.coco.write import content_of
    from densekit.data.formats.recognise import recognise
    from densekit.errors import DensekitError, nearest
    from densekit.files import write_text
    from densekit.registry import DATASETS

    kind, target = args.to[0], Path(args.to[1])
    if kind != "coco":
        raise DensekitError(f"--to: there is no format {kind!r} to write; coco is the one that there is")
    found = recognise(args.folder, args.source, "detection")
    if args.split is not None and args.split not in found.splits:
        raise DensekitError(f"--split: there is none called {args.split!r}; {nearest(args.split, found.splits)}")
    names = list(found.splits) if args.split is None else [args.split]
    paths = {n: target.with_name(f"{target.stem}_{n}{target.suffix}") if len(names) > 1 else target for n in names}
    for path in paths.values():
        if path.exists():
            raise DensekitError(f"{path} is there already and may be what is read; give another name, or remove it")

    # Everything is read before anything is written.
    opened = {name: DATASETS.build(found.format, found.splits[name], path=name) for name in names}
    texts = {name: json.dumps(content_of(data.file, own_ids=False)) for name, data in opened.items()}
    say(f"{args.folder}: labels of the format {found.format}")
    for line in [*found.notes, *dict.fromkeys(note for data in opened.values() for note in data.notes)]:
        say(line)
    for name, data in opened.items():
        write_text(paths[name], texts[name])
        objects, classes = len(data.file.labels), ", ".join(data.classes.names)
        told = f"{len(data)} images in {data.folder}, {objects} objects, {len(data.classes)} classes: {classes}"
        say(f"{paths[name]}: {told}")
    return 0


if __name__ == "__main__":
    run(main)
