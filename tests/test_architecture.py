import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "densekit"

# Module or folder -> layer; a module imports lower layers and its own folder. The folders of layer 4 meet in types.py.
LAYERS = {
    "array_pickles": 0,
    "errors": 0,
    "files": 0,
    "machine": 0,
    "pickles": 0,
    "types": 0,
    "instances": 0,
    "config_data": 0,
    "config_file": 0,
    "config": 0,
    "config_train": 0,
    "config_unused": 0,
    "shipped": 0,
    "precision": 0,
    "console": 0,
    "export_options": 1,
    "memory": 0,
    "registry": 1,
    "ops": 1,
    "canvases": 1,
    "calibration": 1,
    "weight_gradients": 2,
    "layers": 3,
    "backbones": 4,
    "heads": 4,
    "data": 4,
    "metrics": 4,
    "original_pixels": 4,
    "packed": 4,
    "set_statistics": 4,
    "model": 5,
    "epochs": 5,
    "class_counts": 6,
    "show": 5,
    "engine": 6,
    "infer": 7,
    "whole_weights": 7,
    "training": 7,
    "export": 8,
    "features": 8,
    "data_sets": 8,
    "frozen_heads": 8,
    "build": 9,
    "added_head": 10,
    "joined_heads": 11,
    "inputs": 10,
    "measured": 10,
    "comparison": 11,
    "calibrate": 11,
    "run_report": 12,
    "predictor": 10,
    "learning_sets": 11,
    "run": 13,
    "checked_sets": 12,
    "forecast": 12,
    "doctor": 10,
    "first_config": 11,
    "__main__": 12,
}


def _imports(path: Path) -> set[str]:
    """Names of densekit's modules and folders that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "densekit" else [node.module]
            found |= set(names)
    return {name.split(".")[1] for name in found if name.startswith("densekit.")}


def _unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts != ("__init__.py",))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_lower_layers_and_its_own_folder_only(path):
    own = _unit(path)
    assert own in LAYERS, f"give {own} a layer in this test"
    for other in _imports(path) - {own, "__version__"}:
        lower = LAYERS[other] < LAYERS[own]
        assert lower or (LAYERS[own] == 0 and LAYERS[other] == 0), f"{path.name} imports densekit.{other}"


def test_the_config_is_checked_without_importing_torch():
    code = "import sys, densekit.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("tool", sorted((ROOT / "tools").glob("*.py")), ids=lambda p: p.name)
def test_a_tool_is_a_short_story_and_explains_itself(tool):
    text = tool.read_text()
    assert len(text.splitlines()) <= 130
    done = subprocess.run([sys.executable, str(tool), "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    assert "usage:" in done.stdout
    assert tool.name in ast.get_docstring(ast.parse(text))
