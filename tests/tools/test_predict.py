"""Predictions on files as they come: bad ones, odd names, a stop in the middle; what is finished is never lost."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from densekit import console
from densekit.infer import predict, result_files
from densekit.model import DenseModel
from tests.tools import runs

TASKS = ("detection", "segmentation", "classification")


@pytest.fixture
def photos(tmp_path):
    """Five good images; the third of them is followed by a page of HTML under a name in the middle."""
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in "abcde":
        Image.fromarray(random.integers(0, 256, (32, 40, 3)).astype(np.uint8)).save(folder / f"{name}.png")
    return folder


def predicted(checkpoint, *arguments, code=0):
    found, printed = runs.call("predict", checkpoint, *arguments)
    assert found == code, printed
    return printed


def content(out):
    """images.json, predictions.json, and the rows of predictions.csv."""
    images, rows = (json.loads((out / f"{name}.json").read_text()) for name in ("images", "predictions"))
    with (out / "predictions.csv").open(newline="") as file:
        return images, rows, list(csv.DictReader(file))


# Bad files.


@pytest.mark.parametrize(("task", "batch"), [("detection", 8), ("segmentation", 1), ("classification", 8)])
def test_a_bad_file_is_named_and_costs_nothing_but_itself(checkpoints, photos, tmp_path, task, batch):
    expected, out = tmp_path / "expected", tmp_path / "out"
    predicted(checkpoints[task], photos, "--out", expected, "--batch", batch)
    (photos / "bb.jpg").write_bytes(b"<html>404</html>")
    (photos / "z.png").write_bytes((photos / "a.png").read_bytes()[:-40])
    (photos / "zz.jpg").symlink_to("nowhere.jpg")
    printed = predicted(checkpoints[task], photos, "--out", out, "--batch", batch, code=console.SKIPPED)
    assert "3 of 8 images were skipped" in printed
    skipped = (out / "skipped.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in skipped] == [str(photos / n) for n in ("bb.jpg", "z.png", "zz.jpg")]
    images = json.loads((out / "images.json").read_text())
    assert [(i["id"], os.path.basename(i["file_name"])) for i in images] == [
        (1, "a.png"), (2, "b.png"), (4, "c.png"), (5, "d.png"), (6, "e.png")
    ]  # fmt: skip
    if task == "segmentation":
        assert {p.name for p in (out / "masks").iterdir()} == {f"{name}.png" for name in "abcde"}
        return
    (_, rows, table), (_, good, good_table) = content(out), content(expected)
    assert table == good_table
    assert [r["image_id"] for r in rows] == [{1: 1, 2: 2, 3: 4, 4: 5, 5: 6}[r["image_id"]] for r in good]


def test_a_list_of_bad_files_of_an_earlier_prediction_is_taken_away(checkpoints, photos, tmp_path):
    (photos / "z.jpg").write_bytes(b"no image")
    predicted(checkpoints["classification"], photos, "--out", tmp_path / "out", code=console.SKIPPED)
    (photos / "z.jpg").unlink()
    assert "skipped" not in predicted(checkpoints["classification"], photos, "--out", tmp_path / "out")
    assert not (tmp_path / "out/skipped.txt").exists()


def test_where_no_file_is_good_the_results_of_an_earlier_prediction_stay(checkpoints, photos, tmp_path):
    out, bad = tmp_path / "out", tmp_path / "bad.jpg"
    predicted(checkpoints["classification"], photos, "--out", out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    bad.write_bytes(b"no image")
    line = runs.refused("predict", checkpoints["classification"], bad, "--out", out)
    assert "not one image could be read; the first: " in line
    assert str(bad) in line
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_the_first_bad_file_stops_where_the_command_line_says_so(checkpoints, photos, tmp_path):
    (photos / "cc.jpg").write_bytes(b"no image")
    arguments = (photos, "--out", tmp_path / "out", "--batch", 1, "data.on_bad_image=error")
    assert "cc.jpg" in runs.refused("predict", checkpoints["classification"], *arguments)
    assert [i["id"] for i in content(tmp_path / "out")[0]] == [1, 2, 3]


def test_images_too_large_for_memory_together_are_predicted_alone_and_skipped_where_that_fails_too(
    checkpoints, photos, tmp_path, monkeypatch
):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(photos / "large.png")
    real = DenseModel.predict_all

    def small_memory(self, batch, *arguments, **options):
        if batch.sizes.prod(1).sum() > 4000:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(self, batch, *arguments, **options)

    expected = tmp_path / "expected"
    predicted(checkpoints["classification"], *sorted(photos.glob("?.png")), "--out", expected, "--batch", 1)
    monkeypatch.setattr(DenseModel, "predict_all", small_memory)
    printed = predicted(checkpoints["classification"], photos, "--out", tmp_path / "out", code=console.SKIPPED)
    assert "large.png: out of memory on this image of 64 x 64 alone" in printed
    for row, own in zip(content(tmp_path / "out")[2], content(expected)[2], strict=True):
        assert row["file"] == own["file"]
        assert float(row["even"]) == pytest.approx(float(own["even"]), abs=1e-5)


def test_numbers_that_are_not_finite_never_reach_the_json(checkpoints, photos, tmp_path, monkeypatch):
    real = DenseModel.predict_all

    def with_nan(self, batch, *arguments, **options):
        (found,) = real(self, batch, *arguments, **options).values()
        found.probabilities[1] = torch.nan
        return {"main": found}

    monkeypatch.setattr(DenseModel, "predict_all", with_nan)
    predicted(checkpoints["classification"], photos, "--out", tmp_path / "out", code=console.SKIPPED)
    assert "b.png: the model's numbers are not finite" in (tmp_path / "out/skipped.txt").read_text()
    text = (tmp_path / "out/predictions.json").read_text()
    assert len(json.loads(text, parse_constant=pytest.fail)) == 4


# Names.


def odd_names(folder):
    """Names that are not UTF-8, that look like their escapes, or that hold control characters."""
    names = [b"caf\xe9", b"caf\xe8", b"caf\\xe9", b"line\nbreak", b"\x1b[31mred", "caf\u00e9".encode(), b"x" * 240]
    for name in names:
        shutil.copy(folder / "a.png", os.fsencode(folder) + b"/" + name + b".png")
    return names


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
@pytest.mark.parametrize("task", TASKS)
def test_names_that_are_no_utf_8_are_written_escaped_and_stay_distinct(checkpoints, photos, tmp_path, task):
    names = odd_names(photos)
    printed = predicted(checkpoints[task], photos, "--out", tmp_path / "out")
    printed.encode()
    images = json.loads((tmp_path / "out/images.json").read_bytes().decode("ascii"))
    files = [i["file_name"].encode() for i in images]
    assert len(set(files)) == len(files) == len(names) + 5
    folder = os.fsencode(photos)
    assert folder + rb"/caf\xe9.png" in files
    assert folder + rb"/caf\\xe9.png" in files
    assert folder + rb"/line\x0abreak.png" in files
    assert folder + "/caf\u00e9.png".encode() in files
    if task != "classification":
        outputs = [i["output"] for i in images]
        assert len({o.casefold() for o in outputs}) == len(outputs)
        assert {p.stem for p in (tmp_path / "out/pictures").iterdir()} == set(outputs)
    if task != "segmentation":
        _, rows, table = content(tmp_path / "out")
        named = {i["id"]: i["file_name"] for i in images}
        assert [row["file"] for row in table] == [named[row["image_id"]] for row in rows]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_a_bad_file_with_such_a_name_is_told_in_one_line(checkpoints, photos, tmp_path, monkeypatch):
    (photos / os.fsdecode(b"z\xe9\n.png")).write_bytes(b"no image")
    out, terminal = tmp_path / "out", io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "argv", ["predict", str(checkpoints["classification"]), str(photos), "--out", str(out)])
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with pytest.raises(SystemExit):
        console.run(runs.load_tool("predict").main)
    terminal.flush()
    lines = terminal.buffer.getvalue().decode("ascii").splitlines()
    assert ended == [console.SKIPPED]
    assert sum(r"z\xe9\x0a.png: " in line for line in lines) == 1
    assert (out / "skipped.txt").read_text().count("\n") == 1


def test_files_of_one_name_in_two_folders_keep_their_own_outputs(checkpoints, photos, tmp_path):
    (tmp_path / "more").mkdir()
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(tmp_path / "more/A.png")
    predicted(checkpoints["segmentation"], photos / "a.png", tmp_path / "more", "--out", tmp_path / "out")
    entries = json.loads((tmp_path / "out/images.json").read_text())
    for entry in entries:
        with (
            Image.open(tmp_path / "out/masks" / f"{entry['output']}.png") as mask,
            Image.open(entry["file_name"]) as image,
        ):
            assert mask.size == image.size
    assert len({e["output"].lower() for e in entries}) == 2


# What is listed.


def test_hidden_files_are_passed_over_and_other_endings_counted(checkpoints, photos, tmp_path):
    for name in ("._a.png", ".DS_Store", "notes.txt", "x.heic", "y.HEIC", "z.svg", "noending"):
        (photos / name).write_bytes(b"no image")
    (photos / ".thumbnails").mkdir()
    shutil.copy(photos / "a.png", photos / ".thumbnails/a.png")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(photos / "f.jfif", "JPEG")
    printed = predicted(checkpoints["classification"], photos, "--out", tmp_path / "out")
    (line,) = [line for line in printed.splitlines() if "left out" in line]
    assert line.startswith("left out: 2 .heic, 1 without an ending, 1 .svg;")
    assert [os.path.basename(i["file_name"]) for i in content(tmp_path / "out")[0]] == [
        "a.png", "b.png", "c.png", "d.png", "e.png", "f.jfif"
    ]  # fmt: skip


def test_a_hidden_file_that_is_named_is_taken(checkpoints, photos, tmp_path):
    shutil.copy(photos / "a.png", photos / ".a.png")
    predicted(checkpoints["classification"], photos / ".a.png", "--out", tmp_path / "out")
    assert len(content(tmp_path / "out")[0]) == 1


def test_ordinary_input_is_as_quiet_as_ever(checkpoints, photos, tmp_path):
    (photos / "labels.txt").write_text("a b c d e")
    printed = predicted(checkpoints["detection"], photos, "--out", tmp_path / "out")
    lines = [line for line in printed.splitlines() if not line.startswith("predicting ")]
    assert len(lines) == 1, lines


# The end, however it comes.


def test_a_full_disk_is_told_in_one_line_and_leaves_whole_files(checkpoints, photos, tmp_path, monkeypatch):
    out, real = tmp_path / "out", os.fsync
    monkeypatch.setattr(result_files, "PUBLISH_SECONDS", 0)
    monkeypatch.setattr(result_files, "PUBLISH_SHARE", 1e9)

    def full(handle):
        where = os.readlink(f"/proc/self/fd/{handle}")
        if "/.d.jpg." in where or ((out / "pictures/c.jpg").exists() and "/.predictions" in where):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    line = runs.refused("predict", checkpoints["detection"], photos, "--out", out, "--batch", 1)
    assert "the disk is full; free some space" in line
    images, rows, table = content(out)
    assert [i["id"] for i in images] == [1, 2]
    assert len(rows) == len(table)
    assert {r["image_id"] for r in rows} == {1, 2}
    assert not list(out.rglob(".*.tmp"))


def test_a_stop_ends_after_the_batch_and_keeps_what_is_finished(checkpoints, photos, tmp_path, monkeypatch):
    real, calls = predict.BatchPredictor.__call__, []

    def called(self, batch, *arguments, **options):
        calls.append(batch)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, batch, *arguments, **options)

    monkeypatch.setattr(predict.BatchPredictor, "__call__", called)
    arguments = (photos, "--out", tmp_path / "out", "--batch", 2)
    printed = predicted(checkpoints["detection"], *arguments, code=console.INTERRUPTED)
    assert "stopped: 4 of 5 images are done" in printed
    images, rows, _ = content(tmp_path / "out")
    assert [i["id"] for i in images] == [1, 2, 3, 4]
    assert {r["image_id"] for r in rows} == {1, 2, 3, 4}


def test_a_killed_prediction_leaves_whole_files_and_the_next_one_clears_up(checkpoints, photos, tmp_path):
    for number in range(100):
        shutil.copy(photos / "a.png", photos / f"n{number:03d}.png")
    out = tmp_path / "out"
    arguments = [checkpoints["detection"], photos, "--out", out, "--batch", 1]
    process = runs.start("predict", arguments, tmp_path / "log")
    end = time.monotonic() + 60
    while process[0].is_alive() and len(list((out / "pictures").glob("*.jpg"))) < 10:
        assert time.monotonic() < end, (tmp_path / "log").read_text()
        time.sleep(0.005)
    runs.kill(process)
    images, rows, table = content(out)
    assert [i["id"] for i in images] == list(range(1, len(images) + 1))
    assert len(rows) == len(table)
    assert {i["id"] for i in images} <= {r["image_id"] for r in rows} | {0}
    for picture in (out / "pictures").glob("*.jpg"):
        Image.open(picture).load()
    (out / "pictures/.n000.jpg.abc.tmp").write_bytes(b"half")
    predicted(checkpoints["detection"], photos / "a.png", "--out", out)
    assert not list(out.rglob(".*.tmp"))


def test_two_predictions_do_not_write_to_one_folder(checkpoints, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    import fcntl

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with (out / ".lock").open("w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            os.write(writer, b"1")
            time.sleep(60)
        os._exit(0)
    try:
        os.read(reader, 1)
        line = runs.refused("predict", checkpoints["detection"], photos, "--out", out)
        assert f"{out}: another process writes there" in line
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_folder_that_can_not_be_written_is_named_before_anything_is_predicted(checkpoints, photos, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "is a file; give a folder" in runs.refused(
        "predict", checkpoints["detection"], photos, "--out", tmp_path / "file"
    )
    if os.path.isdir("/sys/kernel"):
        line = runs.refused("predict", checkpoints["detection"], photos, "--out", "/sys/kernel/densekit")
        assert "choose a folder that you may write to" in line
