import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from densekit.registry import BACKBONES, DATASETS, HEADS

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
    if "tools/" in line
]


def test_the_readme_has_no_gaps():
    assert "@@" not in TEXT
    assert "TODO" not in TEXT


def test_the_readmes_table_of_backbones_is_the_registrys():
    spec = importlib.util.spec_from_file_location("list_parts", ROOT / "tools/list_parts.py")
    list_parts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(list_parts)
    from densekit.backbones.describe import family_table
    from densekit.backbones.resnet import VARIANTS

    table = re.search(r"<!-- begin own backbones.*?-->\n(.*?)<!-- end own backbones -->", TEXT, re.S).group(1)
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.strip().splitlines()[2:]]
    assert rows == [[str(cell) for cell in row] for row in family_table()]
    assert [row[0] for row in rows] == [v.name for v in VARIANTS]


@pytest.mark.parametrize("registry", [HEADS, DATASETS], ids=lambda r: r.kind)
def test_the_readme_names_every_head_and_data_set(registry):
    assert [name for name in registry.names() if f"`{name}`" not in TEXT] == []


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_of_the_readme_names_files_that_exist_and_options_that_its_tool_has(command):
    tool = next(word for word in command if word.startswith("tools/"))
    source = (ROOT / tool).read_text()
    for word in command[command.index(tool) + 1 :]:
        if word.startswith("configs/"):
            assert (ROOT / word).is_file()
        if word.startswith("--") and word != "--help":
            assert f'"{word}"' in source, f"{tool} has no {word}"


def test_the_readmes_backbone_names_are_known():
    for name in re.findall(r"--backbone (\S+)", TEXT):
        assert name in BACKBONES.names()
