"""Nothing here needs what only Linux has."""

from __future__ import annotations

import ast
import builtins
import ctypes
import functools
import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

from densekit import machine
from densekit.engine.distributed import keep_freed_memory
from densekit.ops import nms
from tests import systems

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def sources():
    """Each file of the package and the tools, parsed."""
    paths = sorted([*(ROOT / "densekit").rglob("*.py"), *(ROOT / "tools").glob("*.py")])
    return [(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))) for path in paths]


def test_modules_that_windows_lacks_are_imported_where_they_are_needed_not_with_the_file():
    found = [
        f"{path}:{node.lineno}"
        for path, tree in sources()
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name in systems.MODULES
    ]
    assert found == []


def test_calls_that_windows_lacks_stand_in_one_file():
    found = {
        f"{path}: os.{node.attr}"
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
        if node.attr in systems.CALLS
    }
    assert found == {"densekit/machine.py: os.sched_getaffinity", "densekit/machine.py: os.sysconf"}


def is_text_without_encoding(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in ("open", "fdopen", "read_text", "write_text") or any(k.arg == "encoding" for k in call.keywords):
        return False
    if name == "read_text":
        return not call.args
    if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in ("os", "Image", "gzip", "zipfile"):
        return False  # these open descriptors, pictures and archives
    if isinstance(call.func, ast.Name) and call.func.id == "write_text":
        return False  # densekit.files.write_text, UTF-8 always
    modes = [*call.args, *(k.value for k in call.keywords if k.arg == "mode")]
    return not any(isinstance(a, ast.Constant) and isinstance(a.value, str) and "b" in a.value for a in modes)


def test_text_files_are_utf8_whatever_the_system_is_set_to():
    found = [
        f"{path}:{node.lineno}: {ast.unparse(node)}"
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and is_text_without_encoding(node)
    ]
    assert found == []


def test_cores_are_counted_where_affinity_is_not_known(monkeypatch):
    assert machine.cores() >= 1
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores() == 1


@pytest.mark.parametrize(("platform", "methods"), [("win32", ["spawn"]), ("darwin", ["spawn", "fork", "forkserver"])])
def test_windows_and_macos_start_processes_anew(monkeypatch, platform, methods):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: methods)
    assert machine.forking() is None


def test_linux_copies_processes(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["fork", "spawn"])
    assert machine.forking().get_start_method() == "fork"


def test_memory_is_what_the_system_tells(monkeypatch):
    resource = pytest.importorskip("resource")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert machine.memory_in_use() > 0.01
    monkeypatch.setattr(machine, "_STATUS", Path("no such file"))
    for platform, unit in (("linux", 2**20), ("darwin", 2**30)):
        monkeypatch.setattr(sys, "platform", platform)
        assert machine.memory_in_use() >= most / unit
    monkeypatch.setitem(sys.modules, "resource", None)
    assert machine.memory_in_use() is None


@pytest.mark.parametrize(("platform", "asked"), [("darwin", "1"), ("linux", None)])
def test_what_the_gpu_of_a_mac_lacks_runs_on_its_cpu(monkeypatch, platform, asked):
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "as before")  # so that it is put back
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK")
    monkeypatch.setattr(sys, "platform", platform)
    runpy.run_path(str(ROOT / "densekit" / "__init__.py"))
    assert os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == asked


@pytest.mark.parametrize("lacks", ["a library by that name", "a library that loads"])
def test_torchvision_brings_its_kernels_where_its_library_is_not_found(monkeypatch, lacks):
    imported, real = [], builtins.__import__

    def recorded(name, *args, **options):
        imported.append(name)
        return real(name, *args, **options)

    def refused(path):
        raise OSError(f"{path}: undefined symbol")

    if lacks == "a library that loads":
        monkeypatch.setattr(torch.ops, "load_library", refused)
    else:
        monkeypatch.setattr(Path, "glob", lambda path, pattern: iter(()))
    monkeypatch.setattr(builtins, "__import__", recorded)
    nms._load_kernels()
    assert "torchvision" in imported


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_other_c_libraries_are_left_alone(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("a C library was looked for"))
    keep_freed_memory()


def test_a_c_library_without_that_setting_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    keep_freed_memory()
