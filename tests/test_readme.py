import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from densekit.registry import BACKBONES, DATASETS, HEADS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
    if "tools/" in line
]


def test_no_page_has_gaps():
    assert "@@" not in TEXT
    assert "TODO" not in TEXT


def test_the_readme_is_a_screen_or_two_and_leads_to_every_page():
    front = PAGES[0].read_text()
    assert len(front.splitlines()) <= 70
    assert [page.name for page in PAGES[1:] if f"](docs/{page.name})" not in front] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_of_a_page_are_there(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    assert [t for t in targets if "://" not in t and not (page.parent / t).exists()] == []


def test_the_table_of_backbones_is_the_registrys():
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
def test_the_pages_name_every_head_and_data_set(registry):
    assert [name for name in registry.names() if f"`{name}`" not in TEXT] == []


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_of_the_pages_names_files_that_exist_and_options_that_its_tool_has(command):
    tool = next(word for word in command if word.startswith("tools/"))
    source = (ROOT / tool).read_text()
    for word in command[command.index(tool) + 1 :]:
        if word.startswith("configs/"):
            assert (ROOT / word).is_file()
        if word.startswith("--") and word != "--help":
            assert f'"{word}"' in source, f"{tool} has no {word}"


def test_backbone_names_of_the_pages_are_known():
    for name in re.findall(r"--backbone (\S+)", TEXT):
        assert name in BACKBONES.names()


def test_the_python_of_the_pages_runs(
    monkeypatch,
):  # what needs a trained checkpoint runs in tests/tools/test_predictor.py
    monkeypatch.chdir(ROOT)
    blocks = [b for b in re.findall(r"```python\n(.*?)```", TEXT, re.S) if not re.search(r"\.pt\b|FeatureStore\(", b)]
    assert blocks
    for block in blocks:
        exec(compile(block, "docs", "exec"), {"__name__": "example"})
