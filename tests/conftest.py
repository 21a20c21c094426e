"""Settings that every test shares."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
if "DENSEKIT_DATA" not in os.environ and _SHARED.is_dir():
    os.environ["DENSEKIT_DATA"] = str(_SHARED)


SLOW_FILES = (
    "engine/test_host_waits.py",
    "tools/test_train.py",
    "features/test_export.py",
    "tools/test_kill.py",
    "test_configs.py",
    "heads/test_segmentation_parity.py",
    "test_packed.py",
    "engine/test_as_on_a_gpu.py",
    "test_ids.py",
    "test_readme.py",
)


def pytest_collection_modifyitems(items):
    """Files that wait for other processes first: at the end of a run they would have the cores alone."""
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
