"""Small runs of the tools for tests: tiny data, tiny models, and processes that start in a moment and can be killed."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from densekit.config_data import named_sets
from densekit.errors import DensekitError

TOOLS = Path(__file__).resolve().parents[2] / "tools"

# Small, and with everything that could make a resumed run differ: batch norm, stochastic depth, mixed
# augmentation, averaged weights, accumulation, a schedule with warm-up, early stopping that counts.
_COMMON = {
    "seed": 3,
    "train": {
        "steps": 9,
        "batch_size": 4,
        "accumulate": 2,
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "cosine", "warmup": 3},
        "clip": 5.0,
        "ema": 0.9,
        "save_every": 1,
        "precision": "fp32",
    },
    "evaluation": {"every": 1, "batch_size": 2, "patience": 50, "pictures": 0},
    "log": {"every": 1, "tensorboard": False},
}
_TRANSFORMS = [{"name": "HorizontalFlip", "p": 0.5}, {"name": "RandomBrightnessContrast", "p": 0.5}]


def config_of(task: str, data: Path, **train: Any) -> dict[str, Any]:
    """A run's config for a task of ``_HEADS`` on the data that ``make_data`` made."""
    tree = json.loads(json.dumps(_COMMON))
    tree["train"].update(train)
    heads = {"boxes": "detection", "masks": "segmentation"} if task == "joint" else {"main": task}
    tree["model"] = {
        "backbone": {"name": "resnet8", "drop_path": 0.2},
        "heads": {head: _HEADS[own] for head, own in heads.items()},
    }
    sets = {head: _set(own, data) for head, own in heads.items()}
    tree["data"] = sets.get("main", {f"of_{head}": {**one, "heads": [head]} for head, one in sets.items()})
    return json.loads(json.dumps(tree))  # nothing stands in it twice


def _set(task: str, data: Path) -> dict[str, Any]:
    return {
        **{split: _data(task, data, split) for split in ("train", "val")},
        "train_transforms": [*_TRANSFORMS, *_MIXED.get(task, ())],
        "workers": 0,
        **({"sampling": {"name": "class_balanced"}} if task == "instances" else {}),
    }


_BOXES = {
    "neck": "c5",
    "anchor_sizes": [[8, 16]],
    "box_head_width": 32,
    "pool_size": 3,
    "samples": 32,
    "rpn_samples": 32,
    "rpn_before_nms": [64, 64],
    "rpn_after_nms": [32, 32],
}
_HEADS: dict[str, dict[str, Any]] = {
    "detection": {"name": "faster_rcnn", **_BOXES},
    "instances": {"name": "mask_rcnn", **_BOXES, "mask_convs": 1, "mask_channels": 16, "mask_pool_size": 4},
    "segmentation": {"name": "unet", "decoder_channels": [16, 16, 8, 8]},
    "classification": {"name": "classifier", "dropout": 0.2, "mixup": 0.2},
}


_MIXED: dict[str, list[dict[str, Any]]] = {
    "instances": [{"name": "CopyPaste", "until": 0.8}, {"name": "MixUp"}],
    "segmentation": [{"name": "CopyPaste"}],
}


def _data(task: str, data: Path, split: str) -> dict[str, Any]:
    if task in ("detection", "instances"):
        return {"name": "coco", "images": f"{data}/images", "annotations": f"{data}/annotations/{split}.json"}
    if task == "segmentation":
        return {
            "name": "masks",
            "images": f"{data}/images/{split}",
            "masks": f"{data}/masks/{split}",
            "classes": f"{data}/classes.txt",
        }
    return {"name": "image_folder", "images": f"{data}/folders/{split}"}


def make_data(folder: Path) -> Path:
    """Generated shapes, 32 pixels and more: 13 images to train on, 5 to evaluate on; also sorted into class folders."""
    from densekit.data.formats.shapes import generate_shapes

    generate_shapes(folder, train=13, val=5, test=2, size=32, objects=3)
    for split in ("train", "val"):
        for number, image in enumerate(sorted((folder / "images" / split).glob("*.jpg"))):
            place = folder / "folders" / split / ("even" if number % 2 == 0 else "odd") / image.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(image.read_bytes())
    return folder


def write_config(path: Path, tree: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def load_tool(name: str) -> Any:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(name: str, *arguments: object) -> tuple[int, str]:
    """Run a tool in this process; its exit code and all that it printed, the error line last."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code = load_tool(name).main([str(a) for a in arguments]) or 0
        except DensekitError as error:
            print(f"error: {error}")
            code = 2
        except SystemExit as error:  # argparse
            code = int(error.code or 0)
    return code, printed.getvalue()


def refused(name: str, *arguments: object) -> str:
    """The one line in which a tool refuses its input."""
    code, printed = call(name, *arguments)
    assert code == 2, printed
    line = printed[printed.index("error: ") :]
    assert line.count("\n") == 1, f"more than one line: {line}"
    assert "Traceback" not in printed
    return line


# Processes. A fork of a process that has imported everything starts in a moment; it is a process like any other.


def _warm() -> Any:
    context = multiprocessing.get_context("forkserver")
    # Python 3.11 does not hand sys.path on to the fork server, and an import that fails there fails in silence.
    given = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([given] if given else [])])
    context.set_forkserver_preload(["warm"])
    multiprocessing.forkserver.ensure_running()
    del os.environ["PYTHONPATH"]
    if given:
        os.environ["PYTHONPATH"] = given
    return context


def apart(work: Callable[..., Any], *arguments: object, ranks: int = 1, timeout: float = 240) -> list[Any]:
    """What a function gives in processes of its own, one a rank, each with everything imported when it starts.

    Args:
        work: a module's function, called with the rank and the arguments; what it gives is small.
        arguments: for it.
        ranks: processes, side by side.
        timeout: seconds for each.
    """
    ends, processes = [], []
    for rank in range(ranks):
        receive, send = multiprocessing.Pipe(duplex=False)
        processes.append(_warm().Process(target=_tell, args=(send, work, rank, arguments)))
        processes[-1].start()
        send.close()
        ends.append(receive)
    codes = finish(processes, timeout)  # what they tell is small: it waits in the pipe
    told = [end.recv() for end, code in zip(ends, codes) if code >= 0]  # one that was killed tells nothing
    assert codes == [0] * ranks, f"ended with {codes}: {told}"
    return told


def _tell(end: Any, work: Callable[..., Any], rank: int, arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    try:
        end.send(work(rank, *arguments))
    except BaseException:
        end.send(traceback.format_exc())
        raise


def start(
    name: str, arguments: list[object], output: Path, *, ranks: int = 1, die_at: int | None = None
) -> list[multiprocessing.Process]:
    """Start a tool as a process a rank.

    Args:
        name: of the tool.
        arguments: for it.
        output: file that takes what it prints.
        ranks: processes; as ``torchrun`` would start them.
        die_at: kill -9 at this call, counted from 1, of the functions that write files.
    """
    given = [str(a) for a in arguments]
    port = meeting_port() if ranks > 1 else 0
    processes = [
        _warm().Process(target=_run, args=(name, given, str(output), rank, ranks, port, die_at))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def finish(processes: list[multiprocessing.Process], timeout: float = 240) -> list[int]:
    """Wait for the end; exit codes."""
    end = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.1, end - time.monotonic()))
        if process.exitcode is None:
            kill(processes)
            raise AssertionError(f"a process hung for {timeout} s")
    return [process.exitcode for process in processes]


def kill(processes: list[multiprocessing.Process]) -> None:
    """kill -9, all ranks, as ``torchrun`` does when one has died."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join()


def children(pid: int) -> list[int]:
    """Process ids of the children of a process."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _run(name: str, arguments: list[str], output: str, rank: int, ranks: int, port: int, die_at: int | None) -> None:
    with open(output, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(ranks),
            LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(ranks),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            TORCHELASTIC_USE_AGENT_STORE="True",
        )
    if die_at is not None and rank == 0:
        _die_at(die_at)
    sys.argv = [name, *arguments]
    from densekit import console

    console.run(load_tool(name).main)


def _die_at(call_number: int) -> None:
    """Kill this process when it writes: before or after the n-th fsync, link or rename, or halfway in a checkpoint."""
    calls = iter(range(1, 10**9))
    halfway = call_number % 2

    def deadly(function: Any) -> Any:
        def wrapper(*args: Any, **options: Any) -> Any:
            if next(calls) != call_number:
                return function(*args, **options)
            if halfway:
                function(*args, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        return wrapper

    for function in ("fsync", "link", "replace", "chmod"):
        setattr(os, function, deadly(getattr(os, function)))
    real_save = torch.save

    def save(content: Any, file: Any) -> None:
        if next(calls) == call_number:
            whole = io.BytesIO()
            real_save(content, whole)
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        real_save(content, file)

    torch.save = save


_MEETINGS: list[torch.distributed.TCPStore] = []


def meeting_port() -> int:
    """The port of a store in this process where ranks meet, as ``torchrun`` has one: nobody else can take it."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    _MEETINGS.append(store)
    return store.port


# What a run leaves.


def assert_same_run(one: Path, other: Path) -> None:
    """Bit-identical weights, optimiser, average, state and metrics; seconds, dates and the commands may differ."""
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    for name in ("last.pt", "best.pt"):
        first, second = (torch.load(folder / name, weights_only=True) for folder in (one, other))
        for content in (first, second):
            for its_own in ("seconds", "time", "command"):
                del content["made"][its_own]
            content.get("training", {}).get("state", {}).pop("seconds", None)
            for data in named_sets(content["config"]["data"]).values():
                del data["workers"]
        _assert_same(first, second, name)


def _assert_same(one: Any, other: Any, path: str) -> None:
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert one.shape == other.shape, path
        # Bits, so that NaN equals NaN and 0 differs from -0.
        assert one.numpy().tobytes() == other.numpy().tobytes(), f"{path} differs"
    elif isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            _assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for number, (a, b) in enumerate(zip(one, other)):
            _assert_same(a, b, f"{path}.{number}")
    else:
        assert one == other, f"{path}: {one} and {other}"
