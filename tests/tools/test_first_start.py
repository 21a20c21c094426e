"""The first start of a run: masks of 0 and 255, a start that failed, the command that examines the data."""

from __future__ import annotations

import copy
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from densekit.__main__ import main as command
from densekit.engine.run_folder import RunFolder
from tests.tools import runs

ROOT = Path(__file__).resolve().parents[2]


def masks_of(folder, values, count=4):
    """Images and masks with a square of each value beside 0."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        mask = np.zeros((32, 48), np.uint8)
        for i, value in enumerate(values):
            mask[8:20, 4 + 14 * i : 16 + 14 * i] = value
        cv2.imwrite(str(folder / "masks" / f"{number}.png"), mask)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), random.integers(0, 255, (32, 48, 3), np.uint8))
    return folder


def config(folder, classes, **options):
    tree = runs.config_of("segmentation", folder, steps=1)
    part = {"name": "masks", "images": f"{folder}/images", "masks": f"{folder}/masks", "classes": classes, **options}
    tree["data"].update(train=part, val=copy.deepcopy(part))
    return runs.write_config(folder / "run.yaml", tree)


def test_masks_of_0_and_255_with_a_list_of_classes_are_refused_with_the_remedy(tmp_path):
    data = masks_of(tmp_path / "data", [255])
    path = config(data, ["background", "nucleus"])
    line = runs.refused("train", path, "--out", tmp_path / "run")
    assert "no pixel is of class 'nucleus', while 9.4% are 255" in line  # 12 x 12 of 32 x 48
    assert "classes: {background: 0, nucleus: 255}" in line
    assert not (tmp_path / "run").exists()
    code, said = runs.call("doctor", path)
    assert code == 4
    assert "classes: {background: 0, object: 255}" in said
    assert runs.call("train", config(data, {"background": 0, "nucleus": 255}), "--out", tmp_path / "run")[0] == 0


def test_a_class_that_255_stands_for_beside_others_is_refused_unless_255_is_said_to_be_ignored(tmp_path):
    data = masks_of(tmp_path / "data", [1, 255])
    path = config(data, ["background", "cell", "nucleus"])
    line = runs.refused("train", path, "--out", tmp_path / "run")
    assert "classes: {background: 0, cell: 1, nucleus: 255}" in line
    assert "ignore: [255]" in line
    code, said = runs.call("doctor", path)
    assert code == 4
    assert "error: mask_255_ignored" in said
    path = config(data, ["background", "cell", "nucleus"], ignore=[255])
    assert runs.call("train", path, "--out", tmp_path / "run")[0] == 0
    assert "mask_255_ignored" not in runs.call("doctor", path)[1]


def test_a_class_in_one_mask_of_many_is_found_before_anything_is_refused(tmp_path):
    data = masks_of(tmp_path / "data", [255], count=60)
    mask = np.zeros((32, 48), np.uint8)
    mask[4:9, 4:9] = 1
    cv2.imwrite(str(data / "masks/7.png"), mask)  # none of the 24 that are looked at first
    assert runs.call("train", config(data, ["background", "nucleus"]), "--out", tmp_path / "run")[0] == 0


def test_a_run_that_failed_before_its_first_step_leaves_its_folder_to_the_next(tmp_path, shapes, monkeypatch):
    path = runs.write_config(tmp_path / "run.yaml", runs.config_of("classification", shapes, steps=1))
    out = tmp_path / "run"

    def fails(*_):
        raise RuntimeError("something outside")

    monkeypatch.setattr(RunFolder, "resume", fails)
    with pytest.raises(RuntimeError, match="something outside"):
        runs.call("train", path, "--out", out)
    assert (out / "config.yaml").exists()
    monkeypatch.undo()
    code, said = runs.call("train", path, "--out", out, "seed=5")  # nor is another value a reason to refuse it
    assert code == 0, said
    assert "seed: 5" in (out / "config.yaml").read_text()
    assert "holds another run" in runs.refused("train", path, "--out", out)


@pytest.mark.parametrize("task", ["detection", "segmentation", "classification"])
def test_the_doctors_command_that_a_run_prints_works_when_pasted(tmp_path, shapes, task):
    path = runs.write_config(tmp_path / "my run.yaml", runs.config_of(task, shapes, steps=1))
    code, said = runs.call("train", path, "--out", tmp_path / "my run")
    assert code == 0, said
    (line,) = [line for line in said.splitlines() if "all checks: " in line]
    words = shlex.split(line.split("all checks: ")[1])
    assert words == ["python", "-m", "densekit", "doctor", str(tmp_path / "my run/config.yaml")]
    assert command(words[3:]) in (0, 3)
    if task == "detection":  # as a process once; what it reads takes its time, its help does not
        done = subprocess.run([sys.executable, *words[1:4], "--help"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "usage: densekit doctor" in done.stdout


def test_other_channels_than_the_models_name_the_key_that_sets_them(tmp_path):
    data = masks_of(tmp_path / "data", [1])
    for number in range(4):
        np.save(data / "images" / f"{number}.npy", np.zeros((32, 48, 5), np.uint8))
        (data / "images" / f"{number}.png").unlink()
    line = runs.refused("train", config(data, ["background", "cell"]), "--out", tmp_path / "run")
    assert "set model.channels=5" in line


def test_a_config_that_no_run_wrote_is_not_written_over(tmp_path, shapes):
    path = runs.write_config(tmp_path / "config.yaml", runs.config_of("classification", shapes, steps=1))
    before = (tmp_path / "config.yaml").read_bytes()
    assert "holds another run" in runs.refused("train", path, "--out", tmp_path)
    assert (tmp_path / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("task", ["detection", "segmentation", "classification"])
def test_the_first_three_batches_are_drawn_once_and_the_curves_at_the_end(tmp_path, shapes, task):
    path = runs.write_config(tmp_path / "run.yaml", runs.config_of(task, shapes, steps=5, max_minutes=1e-9))
    out = tmp_path / "run"
    assert runs.call("train", path, "--out", out)[0] == 0  # out of time after its first step
    pictures = {p.name: p.read_bytes() for p in out.glob("train_batch_*")}
    assert list(pictures) == ["train_batch_0.jpg"]
    assert cv2.imread(str(out / "train_batch_0.jpg")).std() > 10
    (out / "train_batch_0.jpg").write_bytes(b"as it was")
    assert runs.call("train", path, "--out", out, "--resume", "train.max_minutes=9")[0] == 0
    assert sorted(p.name for p in out.glob("train_batch_*")) == [f"train_batch_{i}.jpg" for i in range(3)]
    assert (out / "train_batch_0.jpg").read_bytes() == b"as it was"
    curves = cv2.imread(str(out / "curves.png"))
    assert curves.shape == (3 * 360, 820, 3)  # losses, validation, learning rate


def test_images_and_masks_in_one_folder_train_and_pass_the_doctor(tmp_path):
    data = masks_of(tmp_path / "data", [1])
    for number in range(4):
        (data / "images" / f"{number}.png").rename(data / f"{number}.png")
        (data / "masks" / f"{number}.png").rename(data / f"{number}_mask.png")
    path = config(data, ["background", "cell"], images=str(data), masks=str(data))
    code, said = runs.call("train", path, "--out", tmp_path / "run")
    assert code == 0, said
    said = runs.call("doctor", path)[1]
    assert "4 images" in said
    assert "mask_" not in said.replace("_mask.png", "")
