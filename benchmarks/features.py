"""Features of ResNet-50 over a folder of JPEGs, to disk, against a plain timm loop with a DataLoader.

    python benchmarks/features.py [--short] [--device cpu|cuda] [--json FILE] [--images N]

The same weights, images and size (224 x 224) on both sides, from the files to the files:

* the peer decodes with Pillow in worker processes, a core each, resizes and normalises by timm's own transform, runs
  timm's network in fp32 and saves one array;
* densekit runs its export as the tool does: decoding, network and disk at once, arithmetic ``auto``, float16 stored.

Before anything is timed, densekit's plain path (fp32, float32 stored) must give what timm's network makes of the same
pixels, and all of the fast path, decoding and resizing included, must give vectors that stand to one another as the
peer's do. The last table shows densekit alone: in fp32, in the fast arithmetic, and with JPEGs decoded at a fraction of
their size as well (``--reduced``; slightly other pixels, so it has to be asked for), with the seconds of each stage.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch
import torch.utils.data
from common import (
    Row,
    Table,
    arguments,
    check,
    compared_on,
    device_of,
    in_turn,
    report,
    report_tables,
    whole_float32,
)
from PIL import Image
from torch import Tensor, nn

from densekit import machine
from densekit.features import FeatureStore
from densekit.features.export import Exporter, Times
from densekit.features.setup import Export, bare_model, plain_source
from densekit.features.shards import ShardFolder
from densekit.model import DenseModel
from densekit.precision import choose_precision

SIZE, FILE_SIZE = 224, (480, 640)
BATCH, THEIR_BATCH = 8, 32  # the default of tools/export_features.py, and what users of a loader take
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESIZE = [{"name": "Resize", "height": SIZE, "width": SIZE}]
LEVELS = {"pooled vectors": "pooled", "c5 maps": "c5"}
LEAST_CORRELATION = 0.95
"""Of the centred vectors of both sides: Pillow's bicubic filter and our averaging give slightly different pixels."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, help="how many (512; 64 with --short)")
    args = parser.parse_args()
    count, device = args.images or (64 if args.short else 512), device_of(args)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "images", count)
        ours, theirs = pair(folder / "images", device)
        rows, tables = [], []
        for title, level in LEVELS.items():
            job = Job(ours, folder, level)
            peer = their_loop(theirs, folder, level, device)
            agreement = compare(job, theirs, peer(), level)
            times = in_turn(job.run, peer, repeats=3 if args.short else 5)
            rows.append(Row(f"{title}, {count} JPEGs", "timm fp32, DataLoader", *times, agreement, goal(device)))
            if not (args.short and tables):
                tables.append(alone(ours, folder, level, title))
        report(f"Features of ResNet-50 at {SIZE} x {SIZE}", rows, args)
        report_tables("densekit's export", tables, argparse.Namespace(**{**vars(args), "json": None}))


def goal(device: torch.device) -> float | None:
    return 5.0 if device.type == "cpu" else None


def generate(folder: Path, count: int) -> None:
    """Photographs of a kind: smooth colours, shapes with edges, noise of a sensor; about 80 KB each."""
    folder.mkdir()
    random = np.random.default_rng(0)
    height, width = FILE_SIZE
    for index in range(count):
        image = cv2.resize(random.integers(0, 256, (5, 6, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(40):
            centre = (int(random.integers(width)), int(random.integers(height)))
            colour = tuple(int(v) for v in random.integers(0, 256, 3))
            cv2.circle(image, centre, int(random.integers(4, 60)), colour, -1, cv2.LINE_AA)
        noisy = image + random.normal(0, 3, image.shape)
        cv2.imwrite(str(folder / f"{index:06d}.jpg"), noisy.clip(0, 255).astype(np.uint8))


def pair(images: Path, device: torch.device) -> tuple[DenseModel, nn.Module]:
    """Both networks with the same weights, their norms settled on the images: untouched ones let the values explode.

    The shortcuts carry most of the signal, as in a trained network; else random weights make any rounding large.
    """
    ours, _ = bare_model("resnet50", {}, weights=None, mean=MEAN, std=STD)
    pixels = torch.stack([decoded(path) for path in sorted(images.iterdir())[:32]])
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    for block in (m for m in ours.modules() if hasattr(m, "last_norm")):
        nn.init.constant_(block.last_norm.weight, 0.25)
    with torch.no_grad():
        ours.backbone.train()(ours.normalize(pixels))
    theirs = timm.create_model("resnet50", num_classes=0)
    theirs.load_state_dict(ours.backbone.state_dict())
    return ours.eval().to(device), theirs.eval().to(device)


def decoded(path: Path) -> Tensor:
    """[3, 224, 224] uint8, as densekit's plain path reads an image."""
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return torch.from_numpy(cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)).permute(2, 0, 1)


class Job:
    """densekit's export of one level to a new folder, again and again."""

    def __init__(self, model: DenseModel, folder: Path, level: str, **options: Any) -> None:
        self.model, self.folder, self.level = model, folder, level
        self.reduced, self.options = options.pop("reduced", False), options

    def run(self) -> Times:
        """Export; what the stages took."""
        out = self.folder / "store"
        shutil.rmtree(out, ignore_errors=True)
        device = self.model.mean.device
        source = plain_source(self.folder / "images", None, None, specs=RESIZE, channels=3, reduced=self.reduced)
        options = {"precision": choose_precision("auto", device), "batch_size": BATCH, **self.options}
        export = Export(self.model, source, [self.level], ["none"], RESIZE, **options)
        store = ShardFolder(out, export.recipe())
        times = Exporter(source, export.extractor(), store, workers=cores()).run(store.missing(0, 1))
        store.finish({"weights": None, "sha256": None})
        return times

    def result(self) -> Tensor:
        """Export, and read all of it: [N, ...] float32, in the order of the names."""
        self.run()
        store = FeatureStore(self.folder / "store")
        names = sorted(path.name for path in (self.folder / "images").iterdir())
        return torch.stack([store[name][self.level].float() for name in names])


def cores() -> int:
    return min(8, machine.cores())


class Photos(torch.utils.data.Dataset[Tensor]):
    """The peer's data set: Pillow and timm's transform for evaluation, at plain resizing to the size."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.iterdir())
        self.transform = timm.data.create_transform(
            (3, SIZE, SIZE), interpolation="bicubic", mean=MEAN, std=STD, crop_pct=1.0, crop_mode="squash"
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            pixels: Tensor = self.transform(image.convert("RGB"))
        return pixels


def their_loop(model: nn.Module, folder: Path, level: str, device: torch.device) -> Callable[[], Tensor]:
    """The loop that one writes by hand."""

    @torch.inference_mode()
    def run() -> Tensor:
        loader = torch.utils.data.DataLoader(Photos(folder / "images"), batch_size=THEIR_BATCH, num_workers=cores())
        network = model.forward_features if level == "c5" else model
        features = torch.cat([network(batch.to(device)).cpu() for batch in loader])
        np.save(folder / "theirs.npy", features.numpy())
        return features

    return run


def compare(job: Job, theirs: nn.Module, peer: Tensor, level: str) -> str:
    """Stop where the plain path differs from timm's network, or the fast path's vectors are not the peer's."""
    device = job.model.mean.device
    paths = sorted((job.folder / "images").iterdir())[:8]
    pixels = torch.stack([decoded(path) for path in paths]).to(device)
    with torch.inference_mode(), whole_float32():
        plain = Job(job.model, job.folder, level, precision="fp32", dtype="float32").result()
        normal = job.model.normalize(pixels).contiguous()
        expected = (theirs.forward_features if level == "c5" else theirs)(normal).cpu()
    same = check("fp32 features of the same pixels", plain[: len(paths)], expected, atol=1e-4, rtol=1e-4)
    found = correlation(job.result(), peer)
    check("correlation", min(found, LEAST_CORRELATION), LEAST_CORRELATION, atol=0)
    return f"{same}{compared_on(device)}; all of the fast path: correlation {found:.3f}"


def correlation(a: Tensor, b: Tensor) -> float:
    """Of two sets of vectors, what all images have in common taken out."""
    a, b = (v.flatten(1).double() - v.flatten(1).double().mean(0) for v in (a, b))
    return float((a * b).sum() / (a.norm() * b.norm()))


def alone(model: DenseModel, folder: Path, level: str, title: str) -> Table:
    """The export's own ways, once each."""
    fast = choose_precision("auto", model.mean.device)
    rows: list[list[str | float]] = []
    for precision, reduced in dict.fromkeys((("fp32", False), (fast, False), (fast, True))):
        times = Job(model, folder, level, precision=precision, reduced=reduced).run()
        name = f"{precision}, JPEGs decoded {'reduced' if reduced else 'whole'}"
        rows.append([name, times.images / times.total, times.total, *times.stages().values()])
    columns = ["way", "images/s", "all s", "decode s", "network s", "disk s"]
    return Table(title, columns, rows)


if __name__ == "__main__":
    main()
