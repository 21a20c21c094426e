"""What densekit promises on a GPU, in one run of at most ten minutes: kernels, steps, inference, training, export.

    python benchmarks/gpu_table.py [--short] [--device cuda] [--minutes 10] [--only PART ...] [--json FILE]

Each part compares its results with the peer's first (TF32 off), then times both in turn. A part that fails says so in
its row and the others go on; what the minutes don't suffice for is left out and named. On a CPU it runs tiny sizes, to
show that it runs. BCCD is read from $DENSEKIT_DATA, or data.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import detector
import roi_align
import torch
import torchvision
import unet
import yaml
from common import Action, Table, all_in_turn, arguments, check, device_of, report_tables
from limits import peak_bytes

from densekit.engine.compiled import Compiled
from densekit.engine.distributed import World
from densekit.engine.optim import make_optimizer, parameter_groups
from densekit.engine.step import TrainStep
from densekit.infer.captured import capture
from densekit.model import DenseModel
from densekit.ops import nms
from densekit.packed import packed
from densekit.precision import DTYPES, autocast, choose_precision, why_not
from densekit.types import Batch, Detections, Predictions

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where and how large everything runs."""

    device: torch.device
    short: bool

    @property
    def gpu(self) -> bool:
        """Full sizes; else tiny ones."""
        return self.device.type == "cuda"

    @property
    def amp(self) -> bool:
        """The peer runs in mixed precision, in which it is the faster."""
        return why_not("bf16", self.device) is None

    @property
    def repeats(self) -> int:
        """Timed runs of each side."""
        return (5 if self.short else 15) if self.gpu else 1


Line = Sequence[str | float]
COLUMNS = ("what", "densekit ms", "images/s", "peer ms", "ratio", "goal", "remark")


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="start no further part after this time")
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), help="these parts alone")
    args = parser.parse_args()
    place, began = Place(device_of(args), args.short), time.perf_counter()
    lines: list[Line] = []
    failed = False
    for name, part in PARTS.items():
        if args.only and name not in args.only:
            continue
        if time.perf_counter() - began > 60 * args.minutes:
            lines.append([name, "", "", "", "", "", "left out: no time"])
            continue
        try:
            lines += part(place)
        except (Exception, SystemExit) as error:  # one part must not cost the others' numbers
            traceback.print_exc()
            lines.append([name, "", "", "", "", "", f"failed: {' '.join(str(error).split())[:100]}"])
            failed = True
        print(f"{name}: done after {time.perf_counter() - began:.0f} s", flush=True)
    report_tables("GPU", [Table("goals", COLUMNS, lines)], args)
    return int(failed)


def line(
    what: str, ours: Sequence[float], images: int, theirs: Sequence[float] = (), *, goal: str, remark: str
) -> Line:
    """Seconds of both sides to a row."""
    mine = statistics.median(ours)
    ratio = statistics.median(t / o for o, t in zip(ours, theirs)) if theirs else ""
    peer = 1e3 * statistics.median(theirs) if theirs else ""
    return [what, 1e3 * mine, images / mine, peer, ratio, goal, remark]


def regions(place: Place) -> list[Line]:
    """Multi-level RoIAlign, forward and backward."""
    size, images, count = ((800, 1344), 8, 512) if place.gpu else ((64, 96), 1, 4)
    maps, boxes = roi_align.inputs(images, count, size, place.device)
    agreement = roi_align.compare(maps, boxes, size)
    dtype = torch.bfloat16 if place.gpu else torch.float32
    sides = roi_align.sides(maps, boxes, size, dtype)
    ours, theirs = all_in_turn(sides, repeats=place.repeats, warm_up=2)
    least = 2 * dtype.itemsize * (sum(m.numel() for m in maps) + images * count * 49 * 256)  # both ways, each once
    share = least / statistics.median(ours) / peak_bytes(place.device, 3) if place.gpu else 0.0
    remark = f"{agreement}; {share:.0%} of the bandwidth, of which 50 % is the goal; {roi_align_method(place)}"
    return [line("RoIAlign, forward + backward", ours, images, theirs, goal="4 x", remark=remark)]


def roi_align_method(place: Place) -> str:
    from densekit.ops.roi_align import best_method

    return best_method(place.device)


def suppression(place: Place) -> list[Line]:
    """Proposals of a training step, and a long chain."""
    images, parts = (8, [2000, 2000, 2000, 2000, 819]) if place.gpu else (2, [60, 30])
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(images, sum(parts), 2, generator=generator) * 800
    sides = 20 + torch.rand(images, sum(parts), 2, generator=generator) * 150
    boxes = torch.cat([corners, corners + sides], -1).to(place.device)
    left = torch.arange(float(parts[0]), device=place.device) * 4
    boxes[0, : parts[0]] = torch.stack([left, left * 0, left + 10, left * 0 + 10], -1)
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool, device=place.device)

    def ours() -> torch.Tensor:
        return nms.greedy_nms(boxes, valid, 0.3, parts=parts)

    def theirs() -> torch.Tensor:
        kept = torch.zeros_like(valid)
        for image in range(images):
            for run, mask in zip(torch.split(boxes[image], parts), torch.split(kept[image], parts)):
                scores = torch.arange(len(run), 0, -1, device=run.device).float()
                mask[torchvision.ops.nms(run, scores, 0.3)] = True
        return kept

    agreement = check("boxes kept", ours().cpu(), theirs().cpu(), atol=0)
    times = all_in_turn([ours, theirs], repeats=place.repeats, warm_up=2)
    remark = f"{agreement}; {nms.best_method(place.device)}"
    return [line(f"suppression, {images} x {sum(parts)}", times[0], images, times[1], goal="1.5 ms", remark=remark)]


def detectors(place: Place) -> list[Line]:
    """Faster R-CNN ResNet-50-FPN: steps and inference."""
    size, count = ((800, 1344), 8) if place.gpu else ((96, 128), 1)
    theirs, ours = detector.pair(size, place.device)
    agreement = detector.compare(ours, theirs, detector.random_batch(1, size, place.device))
    batch = detector.random_batch(count, size, place.device)
    peer = detector.their_step(theirs, batch, place.amp)
    lines = steps("Faster R-CNN", ours, batch, peer, "sgd", place, ("3 x", "31 ms, 5 x"), agreement)
    for images, goal in ((count, "4 x"), (1, "10 ms")):
        some = detector.random_batch(images, size, place.device)
        lines += inference("Faster R-CNN", ours, some, detector.their_inference(theirs, some, place.amp), place, goal)
    return lines


def segmenters(place: Place) -> list[Line]:
    """U-Net ResNet-34: steps and inference."""
    side, count = (512, 32) if place.gpu else (64, 2)
    ours, theirs = unet.pair(place.device)
    agreement = unet.compare(ours, theirs, unet.random_batch(2, 128, place.device))
    batch = unet.random_batch(count, side, place.device)
    peer = unet.their_step(theirs.to(memory_format=torch.channels_last), batch, place.amp)
    lines = steps("U-Net", ours, batch, peer, "adamw", place, ("27 ms, 2 x", "27 ms, 2 x"), agreement)
    peer = unet.their_inference(theirs, batch, place.amp)
    return [*lines, *inference("U-Net", ours, batch, peer, place, "2 x")]


def inference(name: str, model: DenseModel, batch: Batch, peer: Action, place: Place, goal: str) -> list[Line]:
    """Predictions as ``Predictor`` makes them, and on a GPU also by recorded graphs."""
    count, lines = len(batch.ids), []
    for recorded in (False, True) if place.gpu else (False,):
        ours = predictions(model, batch, recorded)
        remark = check("recorded", values(ours, 3), values(predictions(model, batch), 1), atol=1e-3) if recorded else ""
        times = all_in_turn([ours, peer], repeats=place.repeats, warm_up=2)
        what = f"{name}, inference, {count} images{', recorded' if recorded else ''}"
        lines.append(line(what, times[0], count, times[1], goal=goal, remark=remark))
    return lines


def predictions(model: DenseModel, batch: Batch, recorded: bool = False) -> Callable[[], Predictions]:
    precision = choose_precision("auto", batch.images.device)
    ready = packed(model, DTYPES[precision])
    if recorded:
        capture(ready)

    @torch.inference_mode()
    def predict() -> Predictions:
        with autocast(precision, batch.images.device):
            return ready.predict(batch)

    return predict


def values(predict: Callable[[], Predictions], calls: int) -> torch.Tensor:
    """Scores or probabilities of the last of several calls; the third one is a recorded graph's."""
    found = [predict() for _ in range(calls)][-1]
    return found.scores if isinstance(found, Detections) else torch.stack(list(found.probabilities))


def steps(
    name: str,
    model: DenseModel,
    batch: Batch,
    peer: Action,
    optimizer: str,
    place: Place,
    goals: tuple[str, str],
    agreement: str,
) -> list[Line]:
    """Steps as ``tools/train.py`` runs them, and one replayed whole, optimiser and all."""
    count, lines = len(batch.images), []
    ways: dict[str, Compiled | None] = {"plain": None}
    if place.gpu:  # elsewhere a minute of a compiler that says nothing about a GPU
        ways |= {"compiled": Compiled(model), "captured": Compiled(model, few_sizes=True, captured=True)}
    for how, compiled in ways.items():
        goal, step = goals[compiled is not None], train_step(model, batch, optimizer, compiled)
        began = time.perf_counter()
        step()
        first = time.perf_counter() - began
        step()
        reset_memory(place)
        step()
        remark = f"{memory(place)}; first step {first:.1f} s; {agreement}"
        times = all_in_turn([step, peer], repeats=place.repeats, warm_up=2)
        lines.append(line(f"{name}, training step, {how}", times[0], count, times[1], goal=goal, remark=remark))
    if place.gpu:
        (times,) = all_in_turn([captured(model, batch, optimizer)], repeats=place.repeats, warm_up=2)
        lines.append(
            line(f"{name}, training step, compiled and replayed whole", times, count, goal=goals[1], remark="")
        )
    return lines


def train_step(model: DenseModel, batch: Batch, optimizer: str, compiled: Compiled | None) -> Action:
    world = World(0, 1, 1, batch.images.device)
    precision = choose_precision("auto", world.device)
    groups = parameter_groups(model, lr=1e-6, weight_decay=1e-4)
    options = {"world": world, "seed": 0, "precision": precision, "clip": 1.0, "compiled": compiled}
    step = TrainStep(model, make_optimizer(optimizer, groups), lambda _: 1.0, **options)
    return lambda: step([batch], 0)


def captured(model: DenseModel, batch: Batch, optimizer: str) -> Action:
    """The whole step with torch's own optimiser, recorded once: what a captured step of ours could reach."""
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
    options = {"lr": 1e-6, "fused": True, **({"capturable": True} if optimizer == "adamw" else {"momentum": 0.9})}
    learned, update = Compiled(model), kind([p for p in model.parameters() if p.requires_grad], **options)

    def body() -> None:
        with autocast(choose_precision("auto", batch.images.device), batch.images.device):
            losses = learned(batch)
        torch.stack(list(losses.values())).sum().backward()
        update.step()

    model.train()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            update.zero_grad(set_to_none=True)
            body()
    torch.cuda.current_stream().wait_stream(side)
    update.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    return graph.replay


def reset_memory(place: Place) -> None:
    if place.gpu:
        torch.cuda.reset_peak_memory_stats(place.device)


def memory(place: Place) -> str:
    return f"{torch.cuda.max_memory_allocated(place.device) / 2**30:.2f} GiB" if place.gpu else "memory not asked"


def training(place: Place) -> list[Line]:
    """BCCD through ``tools/train.py``, data and all, plain and compiled."""
    data = Path(os.environ.get("DENSEKIT_DATA", "data"))
    if not (data / "bccd").is_dir():
        return [["BCCD", "", "", "", "", "", f"skipped: {data / 'bccd'} is not there; set DENSEKIT_DATA"]]
    lines = []
    for compiled, goal in ((False, "600 images/s"), (True, "600 images/s"))[: 2 if place.gpu else 1]:
        with tempfile.TemporaryDirectory() as folder:
            images, rates = 16 if place.gpu else 2, train_bccd(data, Path(folder), place, compiled)
        seconds = [images / rate for rate in rates[len(rates) // 3 :]]  # warm caches and kernels
        size = "R18-FPN, 640 px" if place.gpu else "resnet8-FPN, 64 px"
        what = f"BCCD, {size}, {images} images, {'compiled' if compiled else 'plain'}"
        lines.append(line(what, seconds, images, goal=goal, remark=f"{os.cpu_count()} cores"))
    return lines


def train_bccd(data: Path, folder: Path, place: Place, compiled: bool) -> list[float]:
    """Images a second of each tenth step."""
    side, steps, every = (640, 120 if place.short else 300, 10) if place.gpu else (64, 2, 1)
    train = {
        "name": "coco",
        "images": f"{data}/bccd/images",
        "annotations": f"{data}/bccd/annotations/train.json",
    }
    jitter = {"name": "ScaleJitter", "scale": [0.7, 1.4], "size": [side, side]}
    config = {
        "model": {
            "backbone": {"name": "resnet18" if place.gpu else "resnet8", "norm": "batch"},
            "heads": {"boxes": {"name": "faster_rcnn", "neck": "fpn"}},
        },
        "data": {
            "train": train,
            "train_transforms": [jitter, {"name": "HorizontalFlip", "p": 0.5}],
            "eval_transforms": [{"name": "Resize", "long": side}],
            "fixed_size": [side, side],
        },
        "train": {
            "steps": steps,
            "batch_size": 16 if place.gpu else 2,
            "compile": compiled,
            "optimizer": {"name": "adamw", "lr": 4e-4},
            "max_minutes": 2,
        },
        "log": {"every": every},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    out = folder / "run"
    command = [sys.executable, "tools/train.py", str(folder / "config.yaml"), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    lines = [json.loads(text) for text in (out / "timing.jsonl").read_text().splitlines()]
    return [one["images_per_s"] for one in lines if "images_per_s" in one]


def export(place: Place) -> list[Line]:
    """``features.py``: ResNet-50's pooled features of JPEGs, file to file."""
    with tempfile.TemporaryDirectory() as folder:
        numbers, count = Path(folder) / "features.json", 512 if place.gpu else 4
        command = [sys.executable, "benchmarks/features.py", "--short", "--device", place.device.type]
        done = subprocess.run([*command, "--images", str(count), "--json", str(numbers)], cwd=ROOT)
        if done.returncode:
            raise RuntimeError("see above")
        rows = json.loads(numbers.read_text())["rows"]
    return [line(row["question"], row["ours"], count, row["theirs"], goal="1,500 images/s", remark="") for row in rows]


PARTS: dict[str, Callable[[Place], list[Line]]] = {
    "regions": regions,
    "suppression": suppression,
    "segmenters": segmenters,
    "detectors": detectors,
    "training": training,
    "export": export,
}
"""In the order of what a run that is cut short should have."""

if __name__ == "__main__":
    sys.exit(main())
