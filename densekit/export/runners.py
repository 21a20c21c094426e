"""Running exported files: images in, tensors by name out."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from densekit.errors import DensekitError
from densekit.export.files import EXTRA, KEY, SUFFIXES, Notes, check_onnx


class Runner(Protocol):
    """A file that was opened."""

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Raw images of one size, on any device, to the outputs of ``Graph``, on the same one."""
        ...


class ProgramRunner:
    """A ``.pt2``."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self._program = program
        self._modules: dict[torch.device, Any] = {torch.device("cpu"): program.module()}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """See ``Runner``."""
        module = self._modules.get(images.device)
        if module is None:
            from torch.export.passes import move_to_device_pass

            module = self._modules[images.device] = move_to_device_pass(self._program, images.device).module()
        with torch.autocast(images.device.type, enabled=False):  # its arithmetic is in the graph
            found: dict[str, Tensor] = module(images)
        return found


class OnnxRunner:
    """An ONNX file, run by onnxruntime: on a CUDA GPU where its package can, else on the CPU."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name
        self._names = [output.name for output in session.get_outputs()]

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """See ``Runner``."""
        values = self._session.run(None, {self._input: images.contiguous().cpu().numpy()})
        return {name: torch.from_numpy(value).to(images.device) for name, value in zip(self._names, values)}


def is_exported(path: Path) -> bool:
    """Whether a file is an exported model, by its suffix."""
    return path.suffix in SUFFIXES.values()


def open_file(path: Path) -> tuple[Runner, Notes]:
    """Open an exported file.

    Raises:
        DensekitError: there is none, it is damaged, or densekit did not write it.
    """
    if not path.is_file():
        raise DensekitError(f"exported model {path} does not exist; tools/export_model.py writes one")
    runner, notes = (_open_onnx if path.suffix == SUFFIXES["onnx"] else _open_program)(path)
    if not notes:
        raise DensekitError(f"{path} was not exported by densekit: it has no notes of it; export it with export_model")
    return runner, json.loads(notes)


def _open_onnx(path: Path) -> tuple[Runner, str]:
    check_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    wanted = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if _has(name)]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
    except Exception as error:  # of onnxruntime's own kinds
        line = str(error).strip().splitlines()[0]
        raise DensekitError(f"{path} is damaged, or no ONNX file that onnxruntime runs ({line[:300]})") from None
    return OnnxRunner(session), session.get_modelmeta().custom_metadata_map.get(KEY, "")


def _has(provider: str) -> bool:
    import onnxruntime

    return provider in onnxruntime.get_available_providers()


def _open_program(path: Path) -> tuple[Runner, str]:
    import densekit.ops.roi_align  # noqa: F401  # registers the operators that the graph holds

    if not zipfile.is_zipfile(path):
        raise DensekitError(f"{path} is damaged, or no exported program; export it again")
    extra = {EXTRA: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
        return ProgramRunner(program), extra[EXTRA]
    except Exception as error:  # of many kinds
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DensekitError(f"{path} can't be loaded by torch {torch.__version__} ({line[:300]})") from None
