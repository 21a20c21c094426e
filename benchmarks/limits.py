"""How far training and inference are from what the hardware can do, and where the rest of the time goes.

    python benchmarks/limits.py [--short] [--device cpu|cuda] [--json FILE]

For Faster R-CNN (ResNet-50-FPN) and U-Net (ResNet-34) at densekit's defaults:

* the multiply-adds of every convolution and matrix product that ran, forward and backward, over the seconds, as a
  fraction of what one large matrix product reaches on this device in the same arithmetic;
* the time of a training step by kind of operation, from PyTorch's profiler;
* for what is bound by memory, the bytes that it must move over the seconds, as a fraction of a large copy's bandwidth
  (above 1 where caches hold what is read again).

The count is checked: the backbone's forward must have the multiply-adds that ``densekit.backbones.describe`` counts.
"""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Callable, Iterable

import detector
import torch
import unet
from common import Action, Table, all_in_turn, arguments, check, device_of, report_tables
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from densekit.backbones.describe import describe
from densekit.model import DenseModel
from densekit.ops.roi_align import roi_align
from densekit.packed import packed
from densekit.precision import DTYPES, choose_precision
from densekit.types import Batch

KINDS = {
    "convolutions": ("conv",),
    "matrix products": ("addmm", "::mm", "::bmm", "linear", "gemm"),
    "RoIAlign": ("embedding_bag", "roi_align"),
    "norms": ("batch_norm",),
    "pooling and upsampling": ("pool", "upsample"),
    "suppression (NMS)": ("nms",),
    "sorting and choosing": ("topk", "sort", "gather", "scatter", "index", "where", "nonzero"),
    "copies, casts, new memory": ("copy_", "cat", "clone", "to_copy", "contiguous", "zero", "fill", "empty", "reorder"),
    "optimiser": ("_fused_", "_foreach_"),
}
"""Kinds of operations by parts of their names; what fits none is elementwise arithmetic, reductions and overhead."""


def main() -> None:
    args = arguments(__doc__).parse_args()
    device = device_of(args)
    cpu = device.type == "cpu"
    repeats = 3 if args.short else 9
    size = (320, 320) if cpu else (800, 1344)
    _, boxes = detector.pair(size, device)
    masks, _ = unet.pair(device)
    models = {
        "Faster R-CNN": (boxes, detector, detector.random_batch(2 if cpu else 8, size, device)),
        "U-Net": (masks, unet, unet.random_batch(4 if cpu else 32, 256 if cpu else 512, device)),
    }
    peak, bandwidth = peak_products(device, repeats), peak_bytes(device, repeats)
    used, tables = [], []
    for name, (model, module, batch) in models.items():
        agreement = check_count(model, batch)
        step, predict = module.our_step(model, batch), module.our_inference(model, batch)
        shape = " x ".join(str(n) for n in batch.images.shape)
        for what, action in (("training step", step), ("inference", predict)):
            used.append([f"{name}, {what}, {shape}", *fraction(action, peak, repeats)])
        tables.append(
            Table(f"{name}, time of a training step by kind of operation", ["kind", "%"], by_kind(step, device))
        )
    columns = ["what", "G multiply-adds", "seconds", "G a second", "of the peak"]
    where = f"{choose_precision('auto', device)}, peak {peak / 1e9:.4g} G a second; {agreement}"
    memory = memory_bound(boxes, models["Faster R-CNN"][2], bandwidth, repeats)
    tables = [Table(f"multiply-adds ({where})", columns, used), *tables, memory]
    report_tables("Limits", tables, args)


def seconds_of(action: Action, repeats: int) -> float:
    return statistics.median(all_in_turn([action], repeats=repeats)[0])


def peak_products(device: torch.device, repeats: int) -> float:
    """Multiply-adds a second of a large square matrix product in the arithmetic of the step: the best run."""
    side = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(2, side, side, device=device).to(DTYPES[choose_precision("auto", device)])
    return side**3 / min(all_in_turn([lambda: a @ b], repeats=3 * repeats, warm_up=3)[0])


def peak_bytes(device: torch.device, repeats: int) -> float:
    """Bytes a second, read and written, of a copy that no cache holds: the best run."""
    source = torch.ones(2**26 if device.type == "cpu" else 2**30, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / min(all_in_turn([lambda: target.copy_(source)], repeats=repeats)[0])


def multiply_adds(action: Action) -> float:
    """Of every convolution and matrix product that runs, also in the backward."""
    mkldnn = torch.ops.mkldnn
    own = dict.fromkeys((mkldnn._convolution_pointwise, mkldnn._convolution_pointwise_), packed_convolution)
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        action()
    return counter.get_total_flops() / 2


def packed_convolution(*given: object, out_shape: torch.Size, **options: object) -> int:
    """Flops of the operators in ``PackedConv2d``.

    Given are shapes: the input and the other part of a sum, where there is one (in place it comes first), then the
    weight [O, C, k, k] and the bias.
    """
    weight = next(shape for shape in reversed(given[:3]) if isinstance(shape, torch.Size) and len(shape) == 4)
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def check_count(model: DenseModel, batch: Batch) -> str:
    shape = model.normalize(batch.images).shape
    images = torch.zeros(shape, device=batch.images.device)
    expected = sum(stage.multiply_adds for stage in describe(model.backbone, shape))
    with torch.no_grad():
        counted = multiply_adds(lambda: model.backbone(images))
    check("multiply-adds of the backbone", counted, expected, atol=0)
    precision = DTYPES[choose_precision("auto", batch.images.device)]
    ready = packed(model.backbone, precision)
    with torch.inference_mode(), torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
        check("multiply-adds of the packed backbone", multiply_adds(lambda: ready(images)), expected, atol=0)
    return "the backbone's are those of describe"


def fraction(action: Action, peak: float, repeats: int) -> list[float]:
    """Billions of multiply-adds, seconds, billions a second, and this over the peak."""
    work, seconds = multiply_adds(action), seconds_of(action, repeats)
    return [work / 1e9, seconds, work / seconds / 1e9, work / seconds / peak]


def by_kind(step: Action, device: torch.device) -> list[list[str | float]]:
    """Percent of the time of a step by kind of operation, the largest first."""
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
        step()
    return shares_of(profiler.key_averages(), gpu)


def shares_of(events: Iterable[FunctionEventAvg], gpu: bool) -> list[list[str | float]]:
    """Percent of the time by kind of operation; a GPU's kernels count for the operators that start them."""
    shares: collections.Counter[str] = collections.Counter()
    for event in events:
        if event.device_type == DeviceType.CPU:  # else a kernel, told again on its own
            shares[kind_of(event.key)] += event.self_device_time_total if gpu else event.self_cpu_time_total
    whole = sum(shares.values())
    return [[kind, round(100 * time / whole, 1)] for kind, time in shares.most_common()]


def kind_of(operation: str) -> str:
    names = (kind for kind, parts in KINDS.items() if any(part in operation for part in parts))
    return next(names, "elementwise, reductions, overhead")


def memory_bound(model: DenseModel, batch: Batch, bandwidth: float, repeats: int) -> Table:
    """What moves many bytes for few multiply-adds: normalising, RoIAlign, the update of the weights."""
    parts: dict[str, tuple[float, Action]] = {
        "normalising the images": (batch.images.numel() * (1 + 4), lambda: model.normalize(batch.images)),
        "RoIAlign of 512 boxes an image": pooling(batch),
        "SGD with momentum": update(model),
    }
    rows = []
    for name, (size, action) in parts.items():
        seconds = seconds_of(action, repeats)
        rows.append([name, size / 1e9, seconds, size / seconds / 1e9, size / seconds / bandwidth])
    title = f"bytes (a large copy moves {bandwidth / 1e9:.4g} GB a second)"
    return Table(title, ["what", "GB to move", "seconds", "GB a second", "of the bandwidth"], rows)


def pooling(batch: Batch) -> tuple[float, Action]:
    """16 cells of 256 channels are read for each of 49 bins of a box, one is written."""
    precision = DTYPES[choose_precision("auto", batch.images.device)]
    height, width = batch.images.shape[2:]
    count, device = len(batch.images), batch.images.device
    maps = [torch.randn(count, 256, height // s, width // s, device=device) for s in (4, 8, 16, 32)]
    laid_out = [m.to(precision, memory_format=torch.channels_last) for m in maps]
    corners = torch.rand(count, 512, 2, device=device) * min(height, width) / 2
    boxes = torch.cat([corners, corners + 8 + corners.flip(1)], -1)
    action: Callable[[], Tensor] = torch.no_grad()(lambda: roi_align(laid_out, boxes, (4, 8, 16, 32)))
    return count * 512 * 49 * 256 * (16 + 1) * precision.itemsize, action


def update(model: nn.Module) -> tuple[float, Action]:
    """Weight, gradient and momentum are read, weight and momentum written."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, fused=True)
    return 5 * 4 * sum(p.numel() for p in model.parameters()), optimizer.step


if __name__ == "__main__":
    main()
