"""The command ``densekit``: the scripts of ``tools/``, and the configs that come with the package.

A script is told in ``tools/`` alone; a wheel holds that folder and ``configs/`` inside the package, a checkout beside
it.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from densekit import __version__
from densekit.console import run, say
from densekit.errors import DensekitError, nearest
from densekit.shipped import configs, folder

Main = Callable[[Sequence[str] | None], int | None]

FIRST = ("train", "evaluate", "predict", "doctor", "export-features")
"""What most people come for; the other commands follow in alphabetical order."""


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command that the first word names, with the words behind it.

    Raises:
        DensekitError: no such command, with the nearest.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else "--help"
    if name in ("--help", "-h"):
        say(_help())
        return 0
    if name == "--version":
        say(f"densekit {__version__}")
        return 0
    if name == "configs":
        return _list_configs(words[1:])
    if name not in (names := _names()):
        raise DensekitError(f"densekit {name}: there is no such command; {nearest(name, [*names, 'configs'])}")
    if name == "train" and words[1:] and Path(words[1]).is_dir():
        words[1:] = _of_folder(words[1], words[2:])
    sys.argv[0] = f"densekit {name}"  # what the script's own help calls itself
    return _script(name)(words[1:])


def _of_folder(folder: str, words: Sequence[str]) -> list[str]:
    """The words for ``train`` on a folder: the config that ``init`` writes beside the run, and what is not for it."""
    overrides = [word for word in words if re.match(r"\w+(\.\w+)+=", word)]
    others = [word for word in words if word not in overrides]
    given, rest = _module("init").make_parser().parse_known_args([folder, *others])
    from densekit.first_config import Wishes, config_of_folder  # imports torch

    wishes = {name: value for name, value in vars(given).items() if name not in ("folder", "out")}
    config = config_of_folder(given.folder, given.out, Wishes(**wishes))
    return [str(config), *rest, *([] if given.out is None else ["--out", str(given.out)]), *overrides]


def _names() -> list[str]:
    """The scripts as commands, those first that most people come for."""
    found = {path.stem.replace("_", "-") for path in folder("tools").glob("*.py")}
    return [name for name in FIRST if name in found] + sorted(found.difference(FIRST))


def _path(name: str) -> Path:
    return folder("tools") / f"{name.replace('-', '_')}.py"


def _script(name: str) -> Main:
    """The ``main`` of a script."""
    found: Main = _module(name).main
    return found


def _module(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"densekit_{name.replace('-', '_')}", _path(name))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _help() -> str:
    """Every command with the first line of what its script says of itself, read without running it."""
    lines = [(name, _first_line(ast.get_docstring(ast.parse(_path(name).read_text("utf-8"))))) for name in _names()]
    lines.append(("configs", "List the configs that come with densekit; their names stand for their paths."))
    width = max(len(name) for name, _ in lines)
    table = "\n".join(f"  {name:{width}}  {text}" for name, text in lines)
    return (
        f"Detectors, segmenters, classifiers and features from any ResNet-family backbone.\n\n{table}\n\n"
        f"densekit COMMAND --help tells more; densekit --version is {__version__}."
    )


def _first_line(text: str | None) -> str:
    return (text or "").split("\n", 1)[0]


def _list_configs(words: Sequence[str]) -> int:
    if words:
        say("usage: densekit configs\n\nList the configs that come with densekit, with one line each.")
        return 0 if words[0] in ("--help", "-h") else 2
    found = configs()
    width = max(len(name) for name in found)
    for name, path in found.items():
        say(f"{name:{width}}  {_first_line(path.read_text('utf-8')).lstrip('# ')}")
    return 0


def command() -> None:
    """What the console command runs."""
    run(main)


if __name__ == "__main__":
    command()
