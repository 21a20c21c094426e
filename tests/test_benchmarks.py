"""The benchmarks can be asked what they do, stop where numbers differ, and do their sums right; no time is asserted."""

import argparse
import contextlib
import importlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


def test_multiply_adds_count_the_backward_too(load):
    layer = torch.nn.Linear(8, 4)
    rows = torch.randn(3, 8, requires_grad=True)
    assert load("limits").multiply_adds(lambda: layer(rows)) == 3 * 8 * 4
    assert load("limits").multiply_adds(lambda: layer(rows).sum().backward()) == 3 * (3 * 8 * 4)


def test_multiply_adds_count_every_convolution_of_a_packed_network(load):
    model, _ = bare_model("resnet50", {}, weights=None, mean=[0.5] * 3, std=[0.25] * 3)
    images, sizes = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.full((1, 2), 32)
    batch = Batch(images, sizes, sizes, [0], torch.zeros(1, dtype=torch.int64))
    assert load("limits").check_count(model.eval(), batch)


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
