"""Run every benchmark but the longest one after the other and print their tables: what `make bench` does.

python benchmarks/run_all.py [--short] [--only detector unet] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LONG = ("data_recipes", "gpu_table", "instances", "joint_learning")
"""Run where they are named: hours on a CPU, or made for a GPU out of parts of the others."""

DATA = {
    "residual_vs_plain": "mnist/t10k-images-idx3-ubyte.gz",
    "data_recipes": "nuclei/annotations/test.json",
    "instances": "nuclei/annotations/test.json",
    "joint_learning": "nuclei/annotations/test.json",
}
"""What a benchmark needs below $DENSEKIT_DATA, or data; the others generate what they run on."""


def main() -> int:
    names = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("common", "run_all"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer repeats and smaller inputs")
    parser.add_argument("--only", nargs="+", choices=names, help="these benchmarks alone")
    parser.add_argument("--out", type=Path, help="write the json of each benchmark into this folder")
    args = parser.parse_args()
    chosen = args.only or [name for name in names if name not in LONG]
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    failed, data = [], Path(os.environ.get("DENSEKIT_DATA", "data"))
    for name in chosen:
        print(f"\n# {name}", flush=True)
        if name in DATA and not (needed := data / DATA[name]).is_file():
            print(f"skipped: {needed} is not there; set DENSEKIT_DATA to the folder that holds {DATA[name]}")
            continue
        options = ["--short"] if args.short else []
        options += ["--json", str(args.out / f"{name}.json")] if args.out else []
        began = time.perf_counter()
        # A process each: what one benchmark leaves in memory and caches must not meet the next.
        done = subprocess.run([sys.executable, str(FOLDER / f"{name}.py"), *options], cwd=FOLDER.parent)
        print(f"({time.perf_counter() - began:.0f} s)", flush=True)
        failed += [name] if done.returncode else []
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
