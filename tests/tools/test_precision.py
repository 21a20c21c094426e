"""bf16 on a CPU that does not run it: refused where the user asks for it, replaced where a checkpoint brings it."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from densekit import precision
from densekit.data.feature_store import FeatureStore
from densekit.engine.checkpoint import load
from densekit.packed import convolves_packed
from tests.tools import runs

REFUSED = "bf16 does not run on this CPU, which has no instructions for bf16 convolutions; use auto or fp32"
HERE = "made in bf16, runs in fp32 here: bf16 does not run on this CPU"


def let_cpu(monkeypatch, *, run_bf16: bool) -> None:
    def probe(dtype: torch.dtype) -> bool:
        return run_bf16 if dtype == torch.bfloat16 else convolves_packed(dtype)

    monkeypatch.setattr(precision, "convolves_packed", probe)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, shapes):
    """A run in bf16 that another machine left after the first of its steps; its config, an image, a bundle."""
    folder = tmp_path_factory.mktemp("elsewhere")
    tree = runs.config_of("classification", shapes, steps=3, accumulate=1, precision="bf16", max_minutes=1e-9)
    config, run = runs.write_config(folder / "run.yaml", tree), folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        let_cpu(patch, run_bf16=True)
        assert runs.call("train", config, "--out", run, "--device", "cpu")[0] == 0
        bad = ["train.optimizer.lr=1e30", "train.schedule.warmup=0", "train.max_minutes=null"]
        assert "not finite" in runs.refused("train", config, "--out", folder / "bad", "--device", "cpu", *bad)
    (bundle,) = (folder / "bad").glob("bundle_*.pt")
    image = next((shapes / "images" / "val").glob("*.jpg"))
    return SimpleNamespace(run=run, best=run / "best.pt", config=config, image=image, bundle=bundle)


@pytest.mark.parametrize(
    ("tool", "given"),
    [
        ("train", ["{config}"]),
        ("train", ["{config}", "--resume"]),
        ("evaluate", ["{best}", "train.precision=bf16"]),
        ("evaluate", ["{best}", "train={{steps: 1, precision: bf16, optimizer: {{lr: 1}}}}"]),
        ("predict", ["{best}", "{image}", "train.precision=bf16"]),
        ("export_features", ["--config", "{config}", "--split", "val"]),
        ("export_features", ["--checkpoint", "{best}", "--split", "val", "train.precision=bf16"]),
        ("export_features", ["--backbone", "resnet8", "--images", "{image.parent}"]),
        ("replay", ["{bundle}", "--precision", "bf16"]),
    ],
)
def test_who_asks_for_bf16_is_refused_before_anything_starts(elsewhere, tmp_path, monkeypatch, tool, given):
    let_cpu(monkeypatch, run_bf16=False)
    out = tmp_path / "out"
    arguments = [text.format(**vars(elsewhere)) for text in given] + ["--device", "cpu"]
    arguments += ["--out", out] if tool in ("train", "predict", "export_features") else []
    arguments += ["--precision", "bf16"] if "--backbone" in given else []
    assert runs.refused(tool, *arguments) == f"error: precision: {REFUSED}\n"
    assert not out.exists()


def test_a_checkpoint_made_in_bf16_is_evaluated_in_fp32(elsewhere, tmp_path, monkeypatch):
    let_cpu(monkeypatch, run_bf16=False)
    numbers = []
    for given in ([], ["train.precision=fp32"], ["train.precision=auto"]):
        file = tmp_path / "numbers.json"
        code, printed = runs.call("evaluate", elsewhere.best, "--json", file, "--device", "cpu", *given)
        assert code == 0
        assert printed.count(HERE) == (not given)
        numbers.append(json.loads(file.read_text()))
    assert numbers[0] == numbers[1]


def test_a_checkpoint_made_in_bf16_is_evaluated_in_bf16_where_the_cpu_runs_it(elsewhere, tmp_path, monkeypatch):
    let_cpu(monkeypatch, run_bf16=True)
    numbers = []
    for given in ([], ["train.precision=fp32"]):
        file = tmp_path / "numbers.json"
        code, printed = runs.call("evaluate", elsewhere.best, "--json", file, "--device", "cpu", *given)
        assert code == 0
        assert "made in" not in printed
        numbers.append(json.loads(file.read_text())["loss"])
    assert numbers[0] != numbers[1]


def test_a_checkpoint_made_in_bf16_predicts_in_fp32(elsewhere, tmp_path, monkeypatch):
    let_cpu(monkeypatch, run_bf16=False)
    code, printed = runs.call("predict", elsewhere.best, elsewhere.image, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 0
    assert printed.count(HERE) == 1
    assert (tmp_path / "out" / "predictions.json").is_file()


@pytest.mark.parametrize(("run_bf16", "used"), [(False, "fp32"), (True, "bf16")])
def test_a_checkpoint_made_in_bf16_gives_features_in_what_the_cpu_runs(
    elsewhere, tmp_path, monkeypatch, run_bf16, used
):
    let_cpu(monkeypatch, run_bf16=run_bf16)
    given = ["--checkpoint", elsewhere.best, "--split", "val", "--levels", "pooled", "--workers", "0"]
    code, printed = runs.call("export_features", *given, "--out", tmp_path / "store", "--device", "cpu")
    assert code == 0
    assert printed.count(HERE) == (not run_bf16)
    assert FeatureStore(tmp_path / "store").manifest["recipe"]["precision"] == used


def test_a_run_begun_in_bf16_goes_on_in_fp32_and_keeps_its_config(elsewhere, tmp_path, monkeypatch):
    let_cpu(monkeypatch, run_bf16=False)
    out = shutil.copytree(elsewhere.run, tmp_path / "run")
    given = [elsewhere.config, "--out", out, "--resume", "--device", "cpu", "train.max_minutes=10"]
    code, printed = runs.call("train", *given)
    assert code == 0
    assert printed.count("the run was in bf16 and goes on in fp32: bits will differ") == 1
    last = load(out / "last.pt")
    assert last["made"]["step"] == 3
    assert last["config"]["train"]["precision"] == "bf16"
    assert last["training"]["precision"] == "fp32"
    joined = tmp_path / "joined.pt"
    assert runs.call("join_head", out / "best.pt", "--out", joined)[0] == 0
    assert load(joined)["config"]["train"]["precision"] == "bf16"


def test_a_step_made_in_bf16_is_replayed_in_fp32(elsewhere, monkeypatch):
    let_cpu(monkeypatch, run_bf16=False)
    code, printed = runs.call("replay", elsewhere.bundle, "--device", "cpu")
    assert code == 0
    assert printed.count(HERE) == 1
    assert "fp32 on cpu" in printed
