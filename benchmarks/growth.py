"""How the cost of densekit grows: with batch, image size, objects, classes, proposals, images in the set, ranks.

    python benchmarks/growth.py [--short] [--device cpu|cuda] [--json FILE]

One table a question; in each one thing grows and the rest stays: Faster R-CNN, ResNet-50-FPN (--short: ResNet-18),
2 images of 256 x 256 pixels (8 of 512 x 512 on a GPU), 10 objects each, 20 classes, 2,000 proposals in training and
1,000 in prediction, densekit's defaults. The lines of a table are timed in turn. Ranks are processes on the CPU that
share one global batch and the cores (gloo); their losses must be those of one rank.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import shutil
import socket
import statistics
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from coco_open import IMAGES as COCO_IMAGES
from coco_open import OBJECTS, generate
from common import Table, all_in_turn, arguments, check, device_of, report_tables
from detector import our_inference, our_step

from densekit.data.formats.coco.file import open_coco
from densekit.data.loading.sampling import BatchPlan
from densekit.engine import distributed
from densekit.engine.optim import make_optimizer, make_schedule, parameter_groups
from densekit.engine.step import TrainStep
from densekit.heads.faster_rcnn import faster_rcnn
from densekit.model import DenseModel
from densekit.precision import choose_precision
from densekit.registry import BACKBONES
from densekit.types import Batch, BoxTargets, Classes, Targets


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of a table: the sizes of a training step and an inference."""

    backbone: str
    batch: int
    side: int
    objects: int = 10
    classes: int = 20
    proposals: int | None = None


def main() -> None:
    args = arguments(__doc__).parse_args()
    device = device_of(args)
    batch, side = (2, 256) if device.type == "cpu" else (8, 512)
    case = Case("resnet18" if args.short else "resnet50", batch, side)
    growing: dict[str, Sequence[int]] = {
        "batch": [batch // 2 * 2**k for k in range(4)],
        "side": [side // 2, side, 2 * side] if args.short else [side // 2, side, 2 * side, 4 * side],
        "objects": [1, 10, 100, 1000],
        "classes": [20, 80, 365, 1203],
        "proposals": [100, 500, 2000] if args.short else [100, 500, 1000, 2000, 4000],
    }
    repeats = 2 if args.short else 5
    tables = [step_table(name, case, values, device, repeats) for name, values in growing.items()]
    tables += [images_table(args), ranks_table(case, repeats)]
    report_tables("How cost grows", tables, args)


def step_table(name: str, case: Case, values: Sequence[int], device: torch.device, repeats: int) -> Table:
    """Training step and inference where one field of ``case`` takes several values."""
    cases = [dataclasses.replace(case, **{name: value}) for value in values]
    seconds = []
    for kind in (our_step, our_inference):
        actions = [kind(detector(c).to(device), random_batch(c).to(device)) for c in cases]
        seconds.append([statistics.median(times) for times in all_in_turn(actions, repeats=repeats)])
    training, inference = seconds
    rows = [[value, t, t / training[0], i, i / inference[0]] for value, t, i in zip(values, training, inference)]
    fixed = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(case).items() if k != name and v is not None)
    columns = [name, "training step s", "x the first", "inference s", "x the first"]
    return Table(f"{name} ({fixed})", columns, rows)


def detector(case: Case) -> DenseModel:
    torch.manual_seed(0)
    backbone = BACKBONES.build(case.backbone, {"norm": "frozen"})
    options = (
        {} if case.proposals is None else dict.fromkeys(("rpn_before_nms", "rpn_after_nms"), (case.proposals,) * 2)
    )
    head = faster_rcnn(backbone.levels, num_classes=case.classes, **options)
    names = tuple(f"class {i}" for i in range(case.classes))
    return DenseModel(
        backbone, {"boxes": head}, mean=[0.5], std=[0.25], classes=Classes(names, tuple(range(len(names))))
    )


def random_batch(case: Case) -> Batch:
    """Noise images with boxes of every size and class."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (case.batch, 3, case.side, case.side), generator=generator, dtype=torch.uint8)
    sides = 8 * (case.side / 16) ** torch.rand(case.batch, case.objects, 2, generator=generator)
    corners = torch.rand(case.batch, case.objects, 2, generator=generator) * (case.side - sides)
    labels = torch.randint(0, case.classes, (case.batch, case.objects), generator=generator)
    no = torch.zeros(case.batch, case.objects, dtype=torch.bool)
    targets = Targets(boxes=BoxTargets(torch.cat([corners, corners + sides], -1), labels, no, ~no))
    sizes = torch.tensor([[case.side, case.side]] * case.batch)
    return Batch(images, sizes, sizes, list(range(case.batch)), torch.arange(case.batch), targets)


def images_table(args: argparse.Namespace) -> Table:
    """Opening annotations the first time and from the cache, and the order of the first batches."""
    counts = [COCO_IMAGES // d for d in ((512, 64, 8) if args.short else (512, 64, 8, 1))]
    rows: list[list[float]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DENSEKIT_CACHE"] = str(Path(folder) / "cache")
        for count in counts:
            path = Path(folder) / f"{count}.json"
            generate(path, count, OBJECTS * count // COCO_IMAGES)
            actions = [lambda: shutil.rmtree(os.environ["DENSEKIT_CACHE"], ignore_errors=True)]
            actions += [lambda: open_coco(path), lambda: open_coco(path), lambda: first_batches(path)]  # noqa: B023
            times = all_in_turn(actions, repeats=2 if args.short else 3, warm_up=0)
            rows.append([count, path.stat().st_size / 1e6, *(statistics.median(t) for t in times[1:])])
    columns = ["images", "MB of json", "first opening s", "from the cache s", "cache + first 100 batches' images s"]
    return Table("images in the set (7.3 objects each)", columns, rows)


def first_batches(path: Path) -> None:
    file = open_coco(path)
    plan = BatchPlan(len(file), 16, 0, (file.sizes[:, 1] / file.sizes[:, 0]).astype("float32"))
    for step in range(100):
        plan.slice(step, 0, 1)


def ranks_table(case: Case, repeats: int) -> Table:
    """One global batch by one rank and by two; the ranks share the cores."""
    case = dataclasses.replace(case, batch=4, side=256)
    cores = torch.get_num_threads()
    results = {ranks: run_ranks(ranks, max(1, cores // ranks), case, repeats) for ranks in (1, 2)}
    agreement = check("losses of two ranks", results[2][1], results[1][1], atol=1e-4)
    one = results[1][0]
    rows = [[ranks, max(1, cores // ranks), s, s / one] for ranks, (s, _) in results.items()]
    title = f"ranks on one CPU (gloo, {case.batch} images in all, {case.backbone}; {agreement})"
    return Table(title, ["ranks", "threads each", "training step s", "x the first"], rows)


def run_ranks(ranks: int, threads: int, case: Case, repeats: int) -> tuple[float, list[float]]:
    """Median seconds of a step, and the losses of the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    given = (ranks, threads, port, case, repeats, send)
    processes = [context.Process(target=one_rank, args=(rank, *given)) for rank in range(ranks)]
    for process in processes:
        process.start()
    send.close()
    while not receive.poll(0.1):
        if any(process.exitcode for process in processes):  # the others would wait for it
            for process in processes:
                process.kill()
            sys.exit(f"one of {ranks} ranks failed: nothing is timed")
    result: tuple[float, list[float]] = receive.recv()
    for process in processes:
        process.join()
    return result


def one_rank(rank: int, ranks: int, threads: int, port: int, case: Case, repeats: int, send: Connection) -> None:
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = distributed.join("cpu")
    share = slice(rank * case.batch // ranks, (rank + 1) * case.batch // ranks)
    step, batch = training(case, world), part(random_batch(case), share)
    losses = [float(value) for value in step([batch], 0).losses.values()]
    step.precision = choose_precision("auto", world.device)
    times = all_in_turn([lambda: step([batch], 1)], repeats=repeats)
    if rank == 0:
        send.send((statistics.median(times[0]), losses))
    distributed.leave()


def training(case: Case, world: distributed.World) -> TrainStep:
    model = detector(case)
    groups = parameter_groups(model, lr=1e-6, weight_decay=0.0)
    return TrainStep(model, make_optimizer("sgd", groups), make_schedule("constant", 2), world=world, seed=0)


def part(batch: Batch, share: slice) -> Batch:
    """Some of the images of a batch."""
    assert batch.targets is not None
    assert batch.targets.boxes is not None
    names = ("boxes", "labels", "crowd", "valid")
    boxes = BoxTargets(*(getattr(batch.targets.boxes, name)[share] for name in names))
    images, sizes, seeds = batch.images[share], batch.sizes[share], batch.seeds[share]
    return Batch(images, sizes, sizes, batch.ids[share], seeds, Targets(boxes=boxes))


if __name__ == "__main__":
    main()
