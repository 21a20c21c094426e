"""Functions stay short enough to be read at a glance."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for folder in ("densekit", "tools") for path in (ROOT / folder).rglob("*.py"))
MOST = 60


def functions(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("folder", ["densekit", "tools"])
def test_no_function_is_longer_than_60_lines(folder):
    files = [path for path in FILES if path.relative_to(ROOT).parts[0] == folder]
    assert len(files) > 5
    long = {f"{path.relative_to(ROOT)}: {name}": n for path in files for name, n in functions(path) if n > MOST}
    assert long == {}
