"""Inputs that were valid until something happened to them: each one trains, or gives one of our errors.

Never another exception, a hang, gigabytes, or a silent result that is not what the file says (``uses.py`` compares).
The short version runs with the suite; ``pytest -m long tests/safety`` tries 10,000 and prints how long it took.
"""

from __future__ import annotations

import collections
import functools
import io
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save as save_tensors

from densekit import build
from densekit import config as configs
from densekit.data.formats.masks.files import MaskCode
from densekit.engine import checkpoint
from densekit.engine.run_folder import RunFolder, RunState
from densekit.registry import BACKBONES
from densekit.types import Classes
from tests.features.conftest import make_export, make_network, run_export, write_images
from tests.safety import uses
from tests.safety.mutate import CHANGES, DAMAGES, changed, damaged
from tests.tools import runs

SHORT = 25
LONG = {
    "coco_tree": 2000,
    "coco_bytes": 1000,
    "coco_masks_tree": 1000,
    "doctor_tree": 1000,
    "mask_values": 500,
    "mask_bytes": 700,
    "image_bytes": 1000,
    "config_tree": 800,
    "config_bytes": 400,
    "checkpoint_bytes": 300,
    "checkpoint_tree": 300,
    "resume_tree": 200,
    "weights_tree": 200,
    "weights_bytes": 300,
    "store_tree": 300,
}
"""Mutations of each kind in the long version: 10,000."""

CODE = MaskCode(Classes(("ground", "cell", "wall"), (0, 1, 4)))
NUMBERS = iter(range(10**9))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Valid inputs of every kind."""
    out = tmp_path_factory.mktemp("safety")
    runs.make_data(out / "data")
    tree = json.loads((out / "data" / "annotations" / "train.json").read_text())
    kept = [image["id"] for image in tree["images"][:3]]
    tree["images"] = tree["images"][:3]
    tree["annotations"] = [a for a in tree["annotations"] if a["image_id"] in kept]
    assert tree["annotations"]
    (out / "coco.json").write_text(json.dumps(tree))
    _write_run(out)
    write_images(out / "pictures", 4)
    run_export(make_export(make_network(), out / "pictures"), out / "store")
    return out


def _write_run(out: Path) -> None:
    """A config, a checkpoint to evaluate, and a run to go on with."""
    tree = runs.config_of("classification", out / "data")
    (out / "config.yaml").write_text(yaml.safe_dump(runs.config_of("detection", out / "data")))
    config = configs.parse(tree, "test")
    data = build.dataset(config, "train", training=True)
    model, _ = build.model(config, data.classes)
    step = build.train_step(config, model, build.plan(config, [data], model), uses.WORLD)
    batch = next(iter(build.train_batches(config, data, uses.WORLD, start=0)))
    step([batch, batch], 0)
    run = RunFolder(out / "run", configs.dump(config), resume=False, world=uses.WORLD)
    run.save_last(step, RunState(step=1))
    run._lock.close()
    (out / "classify.yaml").write_text(configs.dump(config))


def new(folder: Path, suffix: str) -> Path:
    return folder / f"mutated-{next(NUMBERS)}{suffix}"


def coco_tree(folder, data):
    path = new(folder, ".json")
    path.write_text(json.dumps(changed(json.loads((folder / "coco.json").read_text()), data.draw(CHANGES))))
    return uses.train_detector, folder / "data" / "images", path


def coco_bytes(folder, data):
    path = new(folder, ".json")
    path.write_bytes(damaged((folder / "coco.json").read_bytes(), data.draw(DAMAGES)))
    return uses.train_detector, folder / "data" / "images", path


def coco_masks_tree(folder, data):
    _, images, path = coco_tree(folder, data)
    return uses.train_segmenter, images, path


def doctor_tree(folder, data):
    return uses.examine_and_fix, *coco_tree(folder, data)[1:]


def mask_values(folder, data):
    """Masks of any values, modes and sizes."""
    shape = data.draw(st.sampled_from([(1, 1), (5, 7), (7, 5), (0, 3), (3, 4, 3), (3, 4, 1), (2, 3, 4, 3)]))
    kind = data.draw(st.sampled_from(["uint8", "uint16", "int64", "float32", "bool", "int8"]))
    values = data.draw(st.lists(st.sampled_from([0, 1, 4, 255, 2, 254, 256, -1, 65536, 0.5]), min_size=1, max_size=4))
    with np.errstate(invalid="ignore"):
        array = np.resize(np.array(values, np.float64), shape).astype(kind)
    if data.draw(st.booleans()) and array.ndim == 2 and array.size and kind in ("uint8", "uint16", "bool"):
        path = new(folder, data.draw(st.sampled_from([".png", ".tif"])))
        image = Image.fromarray(array)
        image = image.convert("P") if kind == "uint8" and data.draw(st.booleans()) else image
        image.save(path)
    else:
        path = new(folder, ".npy")
        np.save(path, array)
    return uses.read_mask, path, CODE


def mask_bytes(folder, data):
    image = Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10, 12) % 2 * 4)
    image = image.convert("P") if data.draw(st.booleans()) else image
    form, suffix = data.draw(st.sampled_from([("PNG", ".png"), ("TIFF", ".tif"), ("BMP", ".bmp"), ("npy", ".npy")]))
    return uses.look_at_mask, _damaged_image(folder, data, image, form, suffix), CODE


def image_bytes(folder, data):
    random = np.random.default_rng(0)
    image = Image.fromarray(np.repeat(np.repeat(random.integers(0, 256, (6, 5, 3), np.uint8), 4, 0), 4, 1))
    mode = data.draw(st.sampled_from(["RGB", "L", "P", "RGB"]))
    form, suffix = data.draw(
        st.sampled_from(
            [("JPEG", ".jpg"), ("PNG", ".png"), ("TIFF", ".tif"), ("WEBP", ".webp"), ("BMP", ".bmp"), ("npy", ".npy")]
        )
    )
    image = image.convert("L" if mode == "P" and form in ("JPEG", "WEBP") else mode)
    return uses.look_at_image, _damaged_image(folder, data, image, form, suffix)


def _damaged_image(folder, data, image, form, suffix):
    buffer = io.BytesIO()
    if form == "npy":
        np.save(buffer, np.asarray(image))
    else:
        image.save(buffer, form)
    path = new(folder, suffix)
    path.write_bytes(damaged(buffer.getvalue(), data.draw(DAMAGES)))
    return path


def config_tree(folder, data):
    path = new(folder, ".yaml")
    tree = changed(yaml.safe_load((folder / "config.yaml").read_text()), data.draw(CHANGES))
    path.write_text(yaml.safe_dump(tree))
    return uses.start_run, path


def config_bytes(folder, data):
    path = new(folder, ".yaml")
    path.write_bytes(damaged((folder / "config.yaml").read_bytes(), data.draw(DAMAGES)))
    return uses.start_run, path


@functools.cache
def _sound(folder):
    """The checkpoint before any change, read once: it is copied where it is changed."""
    return checkpoint.load(folder / "run" / "last.pt")


def checkpoint_bytes(folder, data):
    path = new(folder, ".pt")
    path.write_bytes(damaged((folder / "run" / "last.pt").read_bytes(), data.draw(DAMAGES)))
    return uses.use_checkpoint, path, _sound(folder)


def checkpoint_tree(folder, data):
    path = new(folder, ".pt")
    content = {name: value for name, value in _sound(folder).items() if name != "training"}
    torch.save(changed(content, data.draw(CHANGES)), path)
    return uses.use_changed_checkpoint, path


@functools.cache
def _stopped_run(folder):
    """Config, training step and batches of the run to go on with; each resumption loads everything anew."""
    config = configs.load(folder / "classify.yaml")
    data = build.dataset(config, "train", training=True)
    model, _ = build.model(config, data.classes)
    step = build.train_step(config, model, build.plan(config, [data], model), uses.WORLD)
    batch = next(iter(build.train_batches(config, data, uses.WORLD, start=0)))
    return configs.dump(config), step, [batch, batch]


def resume_tree(folder, data):
    config, step, batches = _stopped_run(folder)
    run = new(folder, "")
    run.mkdir()
    (run / "config.yaml").write_text(config)
    content = _sound(folder)
    torch.save({**content, "training": changed(content["training"], data.draw(CHANGES))}, run / "last.pt")
    return uses.resume, run, config, step, batches


def weights_tree(folder, data):
    """A state dict that lost keys, and whose tensors changed values, shapes or types."""
    path = new(folder, ".pth")
    state = BACKBONES.build("resnet20", {}).state_dict()
    state = dict(list(state.items())[int(data.draw(st.floats(0, 1)) ** 3 * len(state)) :])
    for name in data.draw(st.lists(st.sampled_from(sorted(state)), max_size=3, unique=True)) if state else []:
        change = data.draw(st.sampled_from(["nan", "flat", "half", "int", "none", "huge"]))
        tensor = state[name].double()
        state[name] = {
            "nan": tensor * torch.nan,
            "flat": tensor.reshape(-1),
            "half": tensor.half(),
            "int": tensor.long(),
            "none": None,
            "huge": tensor + 1e300,
        }[change]
    torch.save(state, path)
    return uses.start_from_weights, path


def weights_bytes(folder, data):
    state = {k: v.contiguous() for k, v in BACKBONES.build("resnet20", {}).state_dict().items()}
    if data.draw(st.booleans()):
        path, content = new(folder, ".safetensors"), save_tensors(state)
    else:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        path, content = new(folder, ".pth"), buffer.getvalue()
    path.write_bytes(damaged(content, data.draw(DAMAGES)))
    return uses.start_from_weights, path


def store_tree(folder, data):
    store = new(folder, "")
    store.mkdir()
    (store / "shards").symlink_to(folder / "store" / "shards")
    index = (folder / "store" / "index.safetensors").read_bytes()
    manifest = json.loads((folder / "store" / "manifest.json").read_text())
    if data.draw(st.booleans()):
        manifest = changed(manifest, data.draw(CHANGES))
    else:
        index = damaged(index, data.draw(DAMAGES))
    (store / "manifest.json").write_text(json.dumps(manifest))
    (store / "index.safetensors").write_bytes(index)
    return uses.read_store, store


MUTATIONS: dict[str, Callable] = {kind: globals()[kind] for kind in LONG}


def try_many(folder: Path, kind: str, count: int) -> collections.Counter:
    outcomes: collections.Counter = collections.Counter()

    @seed(0)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def each_is_used_or_refused(data):
        use, *arguments = MUTATIONS[kind](folder, data)
        outcomes[uses.outcome(use, *arguments)] += 1
        for path in folder.glob("mutated-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    each_is_used_or_refused()
    return outcomes


@pytest.mark.parametrize("kind", MUTATIONS)
def test_a_mutated_input_is_used_as_it_says_or_refused_in_one_line(folder, kind):
    outcomes = try_many(folder, kind, SHORT)
    assert outcomes["refused"] > 0, "no mutation did any harm: the test tries nothing"


@pytest.mark.long
def test_ten_thousand_mutated_inputs(folder, capsys):
    start, total = time.perf_counter(), collections.Counter()
    for kind, count in LONG.items():
        began = time.perf_counter()
        outcomes = try_many(folder, kind, count)
        total += outcomes
        with capsys.disabled():
            print(f"{kind}: {dict(outcomes)} in {time.perf_counter() - began:.0f} s")
    with capsys.disabled():
        print(f"{sum(total.values())} mutated inputs, {dict(total)}, in {time.perf_counter() - start:.0f} s")
    assert sum(total.values()) >= 10_000
