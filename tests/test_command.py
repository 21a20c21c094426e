"""The command ``densekit``: from a checkout, and from a wheel that was installed elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import densekit
from densekit.__main__ import main
from densekit.errors import DensekitError
from densekit.shipped import configs

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {path.stem.replace("_", "-") for path in (ROOT / "tools").glob("*.py")}


def test_help_lists_every_script_with_its_first_line_and_those_that_most_people_want_first(capsys):
    assert main([]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [line[0] for line in lines][:5] == ["train", "evaluate", "predict", "doctor", "export-features"]
    assert {line[0] for line in lines} == TOOLS | {"configs"}
    assert all(len(line) > 3 for line in lines)


def test_every_command_has_the_help_of_its_script(capsys):
    for name in sorted(TOOLS):
        with pytest.raises(SystemExit) as left:
            main([name, "--help"])
        assert left.value.code == 0
        assert f"usage: densekit {name}" in capsys.readouterr().out


def test_help_of_training_imports_neither_torch_nor_the_schema():
    code = (
        "import sys\nfrom densekit.__main__ import main\n"
        "try: main(['train', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"densekit {densekit.__version__}"


def test_an_unknown_command_names_the_nearest():
    with pytest.raises(DensekitError, match="densekit trian: there is no such command; did you mean 'train'"):
        main(["trian"])


def test_the_configs_that_come_along_are_listed_with_a_line_each_and_found_by_name(capsys):
    assert main(["configs"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in lines] == [path.stem for path in sorted((ROOT / "configs").rglob("*.yaml"))]
    assert densekit.load_config("faster_rcnn_r18_shapes") == densekit.load_config(configs()["faster_rcnn_r18_shapes"])


def test_a_config_that_is_not_there_is_an_error_with_the_nearest_name():
    with pytest.raises(DensekitError, match=r"config mnits does not exist; .* did you mean 'mnist'"):
        densekit.load_config("mnits")


def test_the_wheel_names_every_folder_of_the_package():
    named = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "densekit").rglob("__init__.py")}
    assert set(named) == folders | {"densekit.tools", "densekit.configs"}


STORY = """
import densekit
from pathlib import Path
from densekit.__main__ import main
from densekit.shipped import configs

site = Path(densekit.__file__).parents[1]
assert site == Path({site!r}), site
assert all(site in path.parents for path in configs().values()), configs()
small = ["model.heads.boxes.box_head_width=32", "model.heads.boxes.channels=16", "train.precision=fp32",
         "train.epochs=null", "train.steps=1", "train.batch_size=2", "data.workers=0",
         "evaluation.pictures=0", "log.tensorboard=false",
         "train.schedule.warmup=0", "data.train_transforms=[]"]
assert main(["generate-shapes", "data/shapes", "--train", "4", "--val", "2", "--test", "2", "--size", "64"]) == 0
assert main(["train", "faster_rcnn_r18_shapes", "--out", "runs/cells", "--device", "cpu", *small]) == 0
assert main(["predict", "runs/cells/best.pt", "data/shapes/images/test", "--out", "out", "--device", "cpu"]) == 0
assert main(["export-features", "--checkpoint", "runs/cells/best.pt", "--images", "data/shapes/images/test",
             "--levels", "p2", "--out", "store", "--device", "cpu"]) == 0
"""


def test_an_installed_wheel_trains_predicts_and_exports_outside_the_checkout(tmp_path):
    source, site, work = tmp_path / "source", tmp_path / "site", tmp_path / "work"
    for name in ("densekit", "tools", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    work.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
               "--no-compile", "--disable-pip-version-check"]  # fmt: skip
    built = subprocess.run([*install, "--target", site, source], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    story = STORY.format(site=str(site))
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{story}"],
                          cwd=work, capture_output=True, text=True, env=elsewhere())  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (work / "runs/cells/best.pt").is_file()
    assert (work / "out/predictions.json").is_file()
    assert (work / "store/manifest.json").is_file()
    script = site / "bin" / "densekit"
    assert "densekit.__main__" in script.read_text()


def elsewhere() -> dict[str, str]:
    """The environment without a path to the checkout."""

    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
