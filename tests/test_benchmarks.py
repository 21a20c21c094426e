"""The benchmarks can be asked what they do, stop where numbers differ, and do their sums right; no time is asserted."""

import argparse
import contextlib
import importlib
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

from densekit.features.setup import bare_model
from densekit.types import Batch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common")


@pytest.fixture
def load(monkeypatch):
    """Import a file of the folder as its own script would, and forget it afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_says_what_it_measures_how_to_run_it_and_has_a_short_form(name, load, monkeypatch):
    module = load(name)
    assert f"python benchmarks/{name}.py" in module.__doc__
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 0
    assert module.__doc__.splitlines()[0] in out.getvalue()
    for option in ("--short", "--out" if name == "run_all" else "--json"):
        assert option in out.getvalue(), option


def test_a_difference_between_the_results_stops_a_benchmark(load):
    common = load("common")
    assert "within 0.1" in common.check("boxes", torch.tensor([1.0]), torch.tensor([1.1]), atol=0.2)
    for ours, theirs in (
        (torch.tensor([1.0]), torch.tensor([1.1])),
        (torch.zeros(2), torch.zeros(3)),
        (torch.tensor([float("nan")]), torch.zeros(1)),
        (3, 4),
    ):
        with pytest.raises(SystemExit, match=r"boxes of densekit and of the peer differ by .*: nothing is timed"):
            common.check("boxes", ours, theirs, atol=0.01)


def test_actions_run_in_turn_after_their_warm_up(load):
    ran = []
    times = load("common").all_in_turn([lambda n=n: ran.append(n) for n in "abc"], repeats=2, warm_up=1)
    assert ran == list("abc" * 3)
    assert [len(t) for t in times] == [2, 2, 2]


def test_the_ratio_is_the_median_of_neighbouring_runs(load):
    row = load("common").Row("what", "peer", [1.0, 2.0, 1.0], [3.0, 8.0, 2.0], "agree")
    assert row.ratio == 3.0
    assert row.spread == (2.0, 4.0)


def test_a_report_is_printed_and_written(load, tmp_path, capsys):
    common = load("common")
    args = argparse.Namespace(device="cpu", json=tmp_path / "rows.json")
    common.report("Title", [common.Row("what", "peer", [1.0], [4.0], "agree", goal=3)], args)
    written = json.loads(args.json.read_text())
    assert written["rows"][0]["ratio"] == 4.0
    assert torch.__version__.startswith(written["machine"]["torch"])
    common.report_tables("Title", [common.Table("growth", ["n", "s"], [[1, 0.5]])], args)
    assert json.loads(args.json.read_text())["tables"][0]["rows"] == [[1, 0.5]]
    assert "Title: growth" in capsys.readouterr().out


def test_the_runner_names_the_benchmarks_that_failed(load, monkeypatch, capsys):
    runner = load("run_all")
    monkeypatch.setattr(sys, "argv", ["run_all", "--short", "--only", "unet", "growth"])
    ran = []

    def run(command, cwd):
        ran.append(command)
        return subprocess.CompletedProcess(command, returncode=int("growth" in command[1]))

    monkeypatch.setattr(subprocess, "run", run)
    assert runner.main() == 1
    assert [Path(command[1]).stem for command in ran] == ["unet", "growth"]
    assert all(command[2:] == ["--short"] for command in ran)
    assert "failed: growth" in capsys.readouterr().err


def test_the_runner_skips_a_benchmark_whose_data_are_absent_and_says_so(load, monkeypatch, tmp_path, capsys):
    runner = load("run_all")
    monkeypatch.setenv("DENSEKIT_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["run_all", "--only", "residual_vs_plain"])
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it was run"))
    assert runner.main() == 0
    assert f"skipped: {tmp_path}/mnist/t10k-images-idx3-ubyte.gz is not there" in capsys.readouterr().out


def test_profiled_operations_are_sorted_into_kinds(load):
    limits = load("limits")
    assert limits.kind_of("aten::mkldnn_convolution") == "convolutions"
    assert limits.kind_of("aten::addmm") == "matrix products"
    assert limits.kind_of("aten::_fused_sgd_") == "optimiser"
    assert limits.kind_of("aten::mul").startswith("elementwise")


def test_the_time_of_a_gpu_counts_once_for_the_operators_that_start_its_kernels(load):
    def event(key, kind, device_time, cpu_time):
        times = {"self_device_time_total": device_time, "self_cpu_time_total": cpu_time}
        return SimpleNamespace(key=key, device_type=kind, **times)

    events = [
        event("aten::cudnn_convolution", DeviceType.CPU, 30, 1),
        event("aten::addmm", DeviceType.CPU, 10, 3),
        event("void kernel_of_the_convolution()", DeviceType.CUDA, 30, 0),
        event("void kernel_of_the_product()", DeviceType.CUDA, 10, 0),
    ]
    limits = load("limits")
    assert limits.shares_of(events, gpu=True) == [["convolutions", 75.0], ["matrix products", 25.0]]
    assert limits.shares_of(events, gpu=False) == [["matrix products", 75.0], ["convolutions", 25.0]]


@pytest.mark.parametrize("before", [(False, True), (True, False)])
def test_comparisons_run_without_tf32_which_is_said_and_timings_as_they_were(load, before):
    common, switches = load("common"), (torch.backends.cuda.matmul, torch.backends.cudnn)
    start = [switch.allow_tf32 for switch in switches]
    try:
        for switch, value in zip(switches, before):
            switch.allow_tf32 = value
        with common.whole_float32():
            assert [switch.allow_tf32 for switch in switches] == [False, False]
        assert tuple(switch.allow_tf32 for switch in switches) == before
    finally:
        for switch, value in zip(switches, start):
            switch.allow_tf32 = value
    assert common.compared_on(torch.device("cuda")) == " (TF32 off)"
    assert common.compared_on(torch.device("cpu")) == ""


@pytest.mark.parametrize(("name", "function"), [("detector", "compare"), ("unet", "compare"), ("roi_align", "compare")])
def test_what_is_compared_was_computed_without_tf32(load, monkeypatch, name, function):
    module, seen = load(name), []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)

    def stop(*_, **__):
        seen.append(torch.backends.cudnn.allow_tf32)
        raise InterruptedError

    run = SimpleNamespace(eval=stop)
    monkeypatch.setattr(module, "roi_align", stop, raising=False)
    given = ([], torch.zeros(1), (8, 8)) if name == "roi_align" else (run, run, None)
    with pytest.raises(InterruptedError):
        getattr(module, function)(*given)
    assert seen == [False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peers_roi_align_gets_maps_and_boxes_of_one_type_that_its_kernel_takes(load, dtype):
    module = load("roi_align")
    maps, boxes = module.inputs(1, 2, (64, 64), torch.device("cpu"))
    seen = []
    ours, theirs = module.sides(maps, boxes, (64, 64), dtype)

    class Types(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.torchvision.roi_align.default:
                seen.append({t.dtype for t in args[:2]})
            return func(*args, **(kwargs or {}))

    with Types():
        assert [gradient.dtype for gradient in theirs()] == [torch.float32] * 4
    assert seen == [{torch.float32}] * len(seen)
    assert seen
    assert [gradient.dtype for gradient in ours()] == [dtype] * 4


def test_what_is_timed_and_counted_stays_on_the_device_that_is_asked_for(load, monkeypatch):
    meta = torch.device("meta")
    growth, limits = load("growth"), load("limits")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which meta does not know
    case = growth.Case("resnet18", batch=1, side=64, objects=2, classes=3, proposals=50)
    model, batch = growth.detector(case).to(meta), growth.random_batch(case).to(meta)
    assert growth.our_inference(model, batch)().boxes.device == meta
    assert {loss.device for loss in model.train()(batch).values()} == {meta}
    assert limits.check_count(model.eval(), batch)
    assert limits.pooling(batch)[1]().device == meta


def test_multiply_adds_count_the_backward_too(load):
    layer = torch.nn.Linear(8, 4)
    rows = torch.randn(3, 8, requires_grad=True)
    assert load("limits").multiply_adds(lambda: layer(rows)) == 3 * 8 * 4
    assert load("limits").multiply_adds(lambda: layer(rows).sum().backward()) == 3 * (3 * 8 * 4)


def test_rows_in_mixed_precision_are_left_out_where_the_cpu_does_not_run_bf16_which_is_said(load, capsys, monkeypatch):
    common, cpu = load("common"), torch.device("cpu")
    monkeypatch.setattr(common, "why_not", lambda precision, device: None)
    assert common.with_mixed(1, 2, cpu) == (1, 2)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(common, "why_not", lambda precision, device: f"no {precision} on the {device}")
    assert common.with_mixed(1, 2, cpu) == (1,)
    assert capsys.readouterr().out == "rows in mixed precision are left out: no bf16 on the cpu\n"


def test_multiply_adds_count_every_convolution_of_a_packed_network(load):
    model, _ = bare_model("resnet50", {}, weights=None, mean=[0.5] * 3, std=[0.25] * 3)
    images, sizes = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.full((1, 2), 32)
    batch = Batch(images, sizes, sizes, [0], torch.zeros(1, dtype=torch.int64))
    assert load("limits").check_count(model.eval(), batch)


def test_a_step_queues_few_operators_each_counted_once(load):
    counts = load("operators").count_a_step("faster_rcnn", "resnet18").counts
    # 20 convolutions with their weights scaled, 17 ReLUs, 8 sums and a pooling; norms are folded, their scales kept.
    assert counts["backbone"] == 20 + 20 + 17 + 8 + 1
    assert "anchors" not in counts  # laid out in the first step
    assert sum(counts.values()) <= 620


def test_memory_is_that_of_the_tensors_that_live_at_once(load):
    before = torch.ones(1000, device="meta")
    with load("operators").Counting() as counting:
        one = before + 1
        before.mul_(2)  # was there before
        two = one.double()
        assert (counting.bytes, counting.most_bytes) == (12_000, 12_000)
        view = two.view(10, 100)
        del one, two
        assert counting.bytes == 8_000, "the view keeps its tensor"
        del view
    assert (counting.bytes, counting.most_bytes) == (0, 12_000)


def test_the_torchvision_peer_drops_images_without_usable_boxes_and_groups_by_shape(load, tmp_path):
    peer = load("peers.torchvision_train")
    sizes = [(40, 20), (20, 40), (40, 20), (40, 20)]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": w, "height": h} for i, (w, h) in enumerate(sizes)]
    boxes = {0: [1, 1, 9, 9], 1: [1, 1, 9, 9], 2: [1, 1, 0.5, 9]}
    rows = [{"id": i, "image_id": i, "category_id": 1, "bbox": box, "iscrowd": 0} for i, box in boxes.items()]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = peer.with_boxes(peer.dataset(str(tmp_path), str(tmp_path / "a.json")))
    assert data.indices == [0, 1]
    wide, tall = peer.groups(data)
    assert wide > tall


def test_a_part_of_the_gpus_table_that_fails_costs_no_other_and_late_ones_are_named(
    load, monkeypatch, tmp_path, capsys
):
    table, file = load("gpu_table"), tmp_path / "table.json"

    def fails(place):
        raise RuntimeError("no kernel")

    def counts(place):
        return [table.line("steps", [0.1, 0.2, 0.3], 8, [0.4, 0.4, 0.9], goal="3 x", remark=str(place.gpu))]

    monkeypatch.setattr(table, "PARTS", {"regions": fails, "detectors": counts})
    monkeypatch.setattr(sys, "argv", ["gpu_table", "--device", "cpu", "--json", str(file)])
    assert table.main() == 1
    failed, counted = json.loads(file.read_text())["tables"][0]["rows"]
    assert failed == ["regions", "", "", "", "", "", "failed: no kernel"]
    assert counted[0] == "steps"
    assert counted[1:5] == pytest.approx([200.0, 40.0, 400.0, 3.0])
    monkeypatch.setattr(sys, "argv", ["gpu_table", "--device", "cpu", "--minutes", "-1"])
    assert table.main() == 0
    assert capsys.readouterr().out.count("left out: no time") == 2


def test_torchvisions_side_learns_from_the_same_objects_and_its_finds_keep_their_images(load):
    instances, batch = load("instances"), load("mask_rcnn").with_masks(2, (40, 32), 3)
    boxes = batch.targets.boxes
    boxes.crowd[1, 0], boxes.valid[1, 2] = True, False
    batch.sizes[1] = torch.tensor([36, 30])
    assert [tuple(image.shape) for image in instances.images(batch)] == [(3, 40, 32), (3, 36, 30)]
    whole, part = (instances.targets(batch, image) for image in range(2))
    assert torch.equal(whole["labels"], boxes.labels[0] + 1)
    assert torch.equal(part["boxes"], boxes.boxes[1, 1:2])
    assert part["masks"].shape == (1, 36, 30)
    for mask, (x, y, width, height) in zip(whole["masks"], boxes.masks.cuts[0].tolist()):
        inside = mask[y : y + height, x : x + width]
        assert torch.equal(inside, load("mask_rcnn").ellipse(width, height))
        assert inside.sum() == mask.sum()

    ours = SimpleNamespace(finish=lambda found, batch: found)
    masks = torch.rand(2, 1, 28, 28)
    one = {
        "boxes": torch.rand(2, 4),
        "scores": torch.tensor([0.9, 0.4]),
        "labels": torch.tensor([1, 3]),
        "masks": masks,
    }
    none = {name: value[:0] for name, value in one.items()}
    found = instances.detections([none, one], batch, ours)
    assert found.valid.tolist() == [[False, False], [True, True]]
    assert found.labels[1].tolist() == [0, 2]
    assert torch.equal(found.masks[1], masks[:, 0])
