"""The tests' own names: pytest-xdist needs the same ones in each of its processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ELSEWHERE = """
import sys, time
import pytest

now = time.time
time.time = lambda: now() + 86_400.5

class Told:
    def pytest_collection_finish(self, session):
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            file.writelines(repr(item.nodeid) + "\\n" for item in session.items)

plain = ["--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist"]  # names alone, no value of an assertion
sys.exit(pytest.main(["--collect-only", *plain, *sys.argv[2:]], [Told()]))
"""


@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="pytest-xdist compares the ids of its processes itself")
def test_ids_are_the_same_in_another_process_on_another_day(request, tmp_path):
    files = list(dict.fromkeys(str(item.path) for item in request.session.items))
    ids = [repr(item.nodeid) for item in request.session.items]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    changed = {"PYTHONHASHSEED": "12345", "TMPDIR": str(scratch)}
    marked = ["-m", request.config.option.markexpr, *(["-k", k] if (k := request.config.option.keyword) else [])]
    told = tmp_path / "ids.txt"
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(told), *marked, *files],
        env={**os.environ, **changed},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = set(ids)  # this session may run a part of a file
    assert [name for name in told.read_text("utf-8").splitlines() if name in wanted] == ids
