"""The arithmetic of a run: what this CPU can do, and what is chosen by it."""

from __future__ import annotations

import pytest
import torch

from densekit import precision
from densekit.errors import DensekitError
from densekit.precision import choose_precision, convolves_packed, settle_precision

CPU = torch.device("cpu")


@pytest.fixture
def cpu(monkeypatch):
    """Lets a test say what the CPU can do: run bf16 convolutions, and with units made for them."""

    def has(*, bf16: bool, units: bool = False) -> None:
        monkeypatch.setattr(precision, "convolves_packed", lambda dtype: bf16 or dtype != torch.bfloat16)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: units)

    return has


def test_the_probe_agrees_with_what_onednn_says_of_this_cpu():
    assert convolves_packed(torch.float32) == torch.backends.mkldnn.is_available()
    assert convolves_packed(torch.bfloat16) == torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_a_torch_without_onednn_convolves_nothing_packed(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not convolves_packed.__wrapped__(torch.float32)


def test_auto_takes_bf16_where_the_cpu_has_units_for_it_that_onednn_runs(cpu):
    for bf16, units, chosen in ((True, True, "bf16"), (True, False, "fp32"), (False, True, "fp32")):
        cpu(bf16=bf16, units=units)
        assert choose_precision("auto", CPU) == chosen
    assert choose_precision("auto", torch.device("mps")) == "fp32"


def test_auto_takes_fp16_on_a_gpu_without_bf16(monkeypatch):
    for native, chosen in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert choose_precision("auto", torch.device("cuda")) == chosen


def test_what_was_asked_for_is_taken_or_refused_with_a_remedy(cpu):
    cpu(bf16=True)
    assert choose_precision("fp32", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"
    with pytest.raises(DensekitError, match=r"^precision: fp16 does not train on the CPU; use auto or fp32$"):
        choose_precision("fp16", CPU)
    cpu(bf16=False)
    assert choose_precision("fp32", CPU) == "fp32"
    assert choose_precision("bf16", torch.device("cuda")) == "bf16"
    with pytest.raises(DensekitError, match=r"^precision: bf16 does not run on this CPU, .*; use auto or fp32$"):
        choose_precision("bf16", CPU)


@pytest.mark.parametrize("named", ["bf16", "fp16", "fp32", "auto"])
@pytest.mark.parametrize("bf16", [True, False])
def test_what_a_checkpoint_brings_gives_way_to_auto_where_it_does_not_run_which_is_said(cpu, named, bf16):
    cpu(bf16=bf16, units=bf16)
    fast = "bf16" if bf16 else "fp32"
    fits = named == "fp32" or (named == "bf16" and bf16)
    chosen, lines = settle_precision(named, CPU, asked=False)
    assert chosen == (named if fits else fast)
    said = [] if fits or named == "auto" else [f"made in {named}, runs in {fast} here"]
    assert [line.partition(":")[0] for line in lines] == said
    if said:
        with pytest.raises(DensekitError, match=rf"^precision: {named} .* use auto or fp32$"):
            settle_precision(named, CPU, asked=True)
    if named != "auto":
        assert settle_precision(named, torch.device("cuda"), asked=False) == (named, [])
