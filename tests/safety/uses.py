"""What is done with each input, the way the tools do it, and what must hold where it is accepted."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from densekit import build
from densekit import config as configs
from densekit.backbones.weights import load_backbone_weights
from densekit.data.feature_store import FeatureStore
from densekit.data.formats.masks.files import MaskCode
from densekit.data.images.read import read_image
from densekit.data.loading.batching import collate
from densekit.doctor.examine import Report, examine
from densekit.doctor.fixes.fix import write_fixed
from densekit.doctor.telling.report import as_json
from densekit.engine.distributed import World
from densekit.engine.run_folder import RunFolder
from densekit.engine.step import TrainStep
from densekit.errors import DensekitError
from densekit.model import DenseModel, build_model
from densekit.registry import BACKBONES, DATASETS
from densekit.types import IGNORE, Batch, Classes
from tests.tools import runs

SECONDS = 60
"""Of processor time; nothing here takes half a second, what takes this long hangs."""

MEMORY = 6 * 2**30
"""Address space that one input may take on top of what the process has."""

WORLD = World(rank=0, size=1, local=1, device=torch.device("cpu"))


class Hang(Exception):
    """An input that was not done with after ``SECONDS``."""


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """An input that takes too long or too much memory raises, instead of taking the machine along."""

    def stop(*_: object) -> None:
        raise Hang(f"not done after {SECONDS} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGPROF, stop)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcome(use: Any, *arguments: Any) -> str:
    """``works``, or ``refused`` by one of our errors in one line; anything else raises."""
    try:
        with limits():
            use(*arguments)
    except DensekitError as error:
        message = str(error)
        assert message.strip(), "an error without a message"
        assert "\n" not in message, f"more than one line: {message!r}"
        assert len(message) < 3000, f"no line to read: {len(message)} characters"
        return "refused"
    return "works"


@functools.lru_cache(maxsize=32)
def _model(task: str, classes: int) -> DenseModel:
    tree = runs.config_of(task, Path("."))
    del tree["model"]["backbone"]["drop_path"]
    config = configs.parse({**tree, "data": {"train": {"name": "none"}}}, "test")
    names = Classes(tuple(f"c{i}" for i in range(classes)), tuple(range(classes)))
    torch.manual_seed(0)
    return build_model(config.model, names)


def _learn(task: str, data: Any, count: int) -> list[Any]:
    """One step forward and backward on the first samples; the losses and gradients are finite."""
    samples = [data.sample(0, i) for i in range(min(len(data), count))]
    batch = collate(samples)
    model = _model(task, len(data.classes)).train()
    model.zero_grad(set_to_none=True)
    losses = model(batch)
    total = torch.stack(list(losses.values())).sum()
    assert torch.isfinite(total), f"accepted, and the loss is {total}"
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    return samples


def train_detector(images: Path, annotations: Path) -> None:
    """Open a COCO file, learn from it, and compare what was learned from with what the file says."""
    data = DATASETS.build(
        "coco", {"images": str(images), "annotations": str(annotations)}, seed=0, training=True, channels=3
    )
    assert len(data) > 0
    samples = _learn("detection", data, 4)
    tree = _strict_json(annotations)
    if tree is None:
        return
    assert len(data) == len(tree["images"])
    names = {int(float(c["id"])): str(c.get("name") or int(float(c["id"]))) for c in tree["categories"]}
    assert dict(zip(data.classes.ids, data.classes.names)) == names
    for image, sample in zip(tree["images"], samples):
        wanted = [_learned(a, image, data.classes) for a in tree["annotations"] if _same(a["image_id"], image["id"])]
        found = [(*map(float, b), int(n)) for b, n in zip(sample.boxes, sample.labels)]
        assert np.allclose(sorted(found), sorted(wanted), atol=1e-3), (found, wanted)


def _same(one: Any, other: Any) -> bool:
    """Ids are the same as they are written, or as numbers."""
    with contextlib.suppress(TypeError, ValueError):
        return one == other or float(one) == float(other)
    return False


def _learned(annotation: dict[str, Any], image: dict[str, Any], classes: Classes) -> tuple[float, ...]:
    if annotation.get("bbox"):
        x, y, width, height = map(float, annotation["bbox"])
    else:
        points = np.concatenate([np.array(p, float).reshape(-1, 2) for p in annotation["segmentation"]])
        (x, y), (width, height) = points.min(0), np.ptp(points, 0)
    limits = [float(image["width"]), float(image["height"])] * 2
    box = [min(max(v, 0), limit) for v, limit in zip((x, y, x + width, y + height), limits)]
    return (*box, classes.ids.index(int(float(annotation["category_id"]))))


def _strict_json(path: Path) -> Any:
    """The file by Python's own parser; None where that is stricter than ours (control characters) or keys repeat."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({k for k, _ in pairs}) < len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        return json.loads(path.read_bytes(), object_pairs_hook=once)
    except ValueError:
        return None


def train_segmenter(images: Path, annotations: Path) -> None:
    """Draw masks from a COCO file and learn from them; values are labels or ignored."""
    options = {"images": str(images), "annotations": str(annotations)}
    data = DATASETS.build("coco_masks", options, seed=0, training=True, channels=3)
    for sample in _learn("segmentation", data, 3):
        assert set(np.unique(sample.mask).tolist()) <= {*range(len(data.classes)), IGNORE}


def read_mask(path: Path, code: MaskCode) -> None:
    """Read a mask file; the labels are those of Pillow's values."""
    labels = code.read(path, 2**20)
    if path.suffix == ".npy":
        values = np.load(path)
    else:
        with Image.open(path) as image:
            values = np.asarray(image if image.mode in ("P", "L", "I", "I;16", "1") else image.convert("RGB"))
    values = values[..., 0] if values.ndim == 3 else values
    table = {**dict(zip(code.classes.ids, range(len(code.classes)))), **dict.fromkeys(code.ignore, IGNORE)}
    assert np.array_equal(labels, np.vectorize(lambda v: table[int(v)], otypes=[int])(values))


def look_at_image(path: Path) -> None:
    """Decode an image file."""
    image = read_image(path, max_pixels=2**22)
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.dtype in (np.uint8, np.float32)
    assert np.isfinite(image).all()


def start_run(path: Path) -> None:
    """Everything that training does with a config before its first step, and one sample of each split."""
    config = configs.load(path)
    assert configs.parse(yaml.safe_load(configs.dump(config)), "dumped") == config
    train_set = build.dataset(config, "train", training=True)
    sets = [train_set]
    if config.data.val:
        sets.append(build.dataset(config, "val", training=False, classes=train_set.classes))
    model, _ = build.model(config, train_set.classes)
    timetable = build.plan(config, [train_set], model)
    build.train_step(config, model, timetable, WORLD)
    for data in sets:
        sample = data.sample(0, 0)
        assert sample.image.shape[2] == config.model.channels


def use_checkpoint(path: Path, whole: dict[str, Any]) -> None:
    """Load a checkpoint as evaluation does; what is accepted is the model that was saved."""
    model, _ = build.from_checkpoint(path)
    assert model.classes == Classes(tuple(whole["classes"]["names"]), tuple(whole["classes"]["ids"]))
    state = model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in whole["model"].items()), "accepted with other weights"


def use_changed_checkpoint(path: Path) -> None:
    """Load a checkpoint whose content someone edited: the model runs, or it is refused."""
    model, _ = build.from_checkpoint(path)
    assert len(model.classes) > 0


def resume(folder: Path, config: str, step: TrainStep, batches: list[Batch]) -> None:
    """Go on with a run, by one step."""
    state, _ = RunFolder(folder, config, resume=True, world=WORLD).resume(step)
    assert state.step >= 0
    result = step(batches, state.step)
    assert all(torch.isfinite(v).all() for v in result.losses.values())


def start_from_weights(path: Path) -> None:
    """Load weights into a backbone; what is accepted is finite."""
    backbone = BACKBONES.build("resnet20", {})
    report = load_backbone_weights(backbone, str(path))
    assert report.loaded
    assert all(math.isfinite(float(v.double().sum())) for v in backbone.state_dict().values())


def read_store(folder: Path) -> None:
    """Read every row of a feature store."""
    store = FeatureStore(folder)
    for row in range(len(store)):
        features = store.row(row)
        for level in features:
            assert torch.isfinite(features[level]).all()


def look_at_mask(path: Path, code: MaskCode) -> None:
    """Read a mask file whose bytes were damaged: whatever comes out are labels."""
    labels = code.read(path, 2**20)
    assert labels.ndim == 2
    assert set(np.unique(labels).tolist()) <= {0, 1, 2, IGNORE}


def examine_and_fix(images: Path, annotations: Path) -> None:
    """The doctor survives the file; what it calls free of errors trains, before and after ``--fix``."""
    original = annotations.read_bytes()
    report = examine(annotations, images, processes=1, shown=False)
    json.dumps(as_json(report), allow_nan=False)
    _trains_if_sound(report, images, annotations)
    target = annotations.with_suffix(".fixed.json")
    write_fixed(report, target, may_remove=1)
    assert annotations.read_bytes() == original
    _trains_if_sound(examine(target, images, processes=1, shown=False), images, target)


def _trains_if_sound(report: Report, images: Path, annotations: Path) -> None:
    if any(d.severity == "error" for d in report.defects):
        return
    try:
        train_detector(images, annotations)
    except DensekitError as error:
        raise AssertionError(f"the doctor finds no error, training does: {error}") from None
