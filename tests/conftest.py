"""Settings that every test shares."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not Path("/dev/nvidiactl").exists():  # kernels for GPUs run on the CPU then, under Triton's interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is imported, by whichever test

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
if "DENSEKIT_DATA" not in os.environ and _SHARED.is_dir():
    os.environ["DENSEKIT_DATA"] = str(_SHARED)


SLOW_FILES = (
    "tools/test_export_model.py",
    "tools/test_kill.py",
    "tools/test_train.py",
    "engine/test_host_waits.py",
    "backbones/test_contract.py",
    "tools/test_segmentation.py",
    "features/test_export.py",
    "features/test_heads.py",
    "heads/test_segmentation_parity.py",
    "heads/test_faster_rcnn_torchvision.py",
    "backbones/test_resnet_options.py",
    "tools/test_predict.py",
    "engine/test_as_on_a_gpu.py",
    "safety/test_mutations.py",
    "test_packed.py",
    "heads/test_dense_torchvision.py",
    "heads/test_segmentation.py",
    "test_command.py",
    "backbones/test_timm.py",
    "backbones/test_resnet_parity.py",
    "tools/test_instances.py",
    "test_readme.py",
    "heads/test_faster_rcnn.py",
    "doctor/test_repairs.py",
    "doctor/test_fix.py",
    "test_configs.py",
    "tools/test_first_start.py",
)
TOGETHER = {
    "exports": (
        "tests/export/test_detectors.py",
        "tests/export/test_onnx_operators.py",
        "tests/tools/test_export_model.py",
        "tests/tools/test_joint_export.py",
    ),
    "forks": (
        "tests/backbones/test_timm.py",
        "tests/features/test_export.py",
        "tests/heads/test_segmentation_ranks.py",
        "tests/infer/test_sliding_window.py",
        "tests/test_layers.py",
        "tests/tools/test_predict.py",
        "tests/tools/test_train.py",
    ),
}
"""What a first export looks up, and a server to fork from (``tests/tools/runs.py``), take a process ten seconds."""


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_xdist_make_scheduler(config, log):
    """File by file, but those of ``TOGETHER`` in one process."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    groups = {file: group for group, files in TOGETHER.items() for file in files}

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return groups.get(file, file)

    return Scheduling(config, log)


def pytest_collection_modifyitems(items):
    """Files that take longest first: at the end of a run they would have a core alone."""
    place = {name: number for number, name in enumerate(SLOW_FILES)}
    root = Path(__file__).parent
    items.sort(key=lambda item: place.get(item.path.relative_to(root).as_posix(), len(place)))


def pytest_make_parametrize_id(config, val, argname):
    """Bytes are numbered: as a name they are unreadable, and compressed ones may hold the time."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def _no_determinism_left_over():
    """Training asks torch for deterministic operators, for the whole process: the next test starts without."""
    yield
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_deterministic_debug_mode("default")  # the other call imports the compiler


@pytest.fixture
def real_data():
    """Folder of the real data sets; the test skips where it is absent."""
    folder = Path(os.environ.get("DENSEKIT_DATA", "data"))
    if not folder.is_dir():
        pytest.skip(f"real data sets are not at {folder}; set DENSEKIT_DATA to run this test")
    return folder


@pytest.fixture(scope="module")
def narrow_resnet18():
    """Under the name ``resnet18`` that network with an eighth of its channels: the same levels, norms and options.

    A run of it writes checkpoints of megabytes, not of hundreds.
    """
    from densekit.backbones.resnet import VARIANTS, ResNet
    from densekit.registry import BACKBONES

    assert BACKBONES.names()  # registers them all, which would undo what follows
    narrow = dataclasses.replace(next(v for v in VARIANTS if v.name == "resnet18"), widths=(8, 16, 32, 64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES._builders, narrow.name, functools.partial(ResNet, narrow))
        yield


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The ways that a GPU takes."""
    import torch

    from densekit.heads.mask_rcnn import mask
    from densekit.ops import deterministic, instance_masks, nms, roi_align

    here, there = torch.device("cpu"), torch.device("meta")
    method, pooling, replaces = nms.best_method, roi_align.best_method, deterministic.replaces
    known = instance_masks.values_are_known
    assert method(there) != method(here)
    assert pooling(there) != pooling(here)
    assert known(there) != known(here)
    monkeypatch.setattr(nms, "best_method", lambda _: method(there))
    monkeypatch.setattr(roi_align, "best_method", lambda _: pooling(there))
    monkeypatch.setattr(deterministic, "replaces", lambda _: replaces(there))
    for module in (instance_masks, mask):
        monkeypatch.setattr(module, "values_are_known", lambda _: known(there))
