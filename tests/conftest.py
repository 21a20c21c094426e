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
