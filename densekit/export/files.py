"""Writing exported files, with what densekit has to know of them inside.

A file's notes are JSON: in an ONNX file under the key ``densekit`` of its metadata, in a ``.pt2`` as the extra file
``densekit.json``.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from densekit import __version__
from densekit.backbones.weights import sha256_of
from densekit.errors import DensekitError
from densekit.export.graph import Graph, trace
from densekit.files import whole_file
from densekit.model import DenseModel
from densekit.types import Batch

Format = Literal["onnx", "torch"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
KEY, EXTRA = "densekit", "densekit.json"
Notes = dict[str, Any]


class Written(Protocol):
    """A model that is ready to be written, as often as its notes change."""

    def save(self, path: Path, notes: Notes) -> None:
        """Write it whole or not at all."""
        ...


class WrittenProgram:
    """A ``.pt2``."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.program = program

    def save(self, path: Path, notes: Notes) -> None:
        """Write it whole or not at all."""
        content = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(self.program, content, extra_files={EXTRA: json.dumps(notes)})
        with whole_file(path) as file:
            file.write(content.getbuffer())


class WrittenOnnx:
    """An ONNX file.

    Args:
        proto: an ``onnx.ModelProto``.
    """

    def __init__(self, proto: Any) -> None:
        self.proto = proto

    def save(self, path: Path, notes: Notes) -> None:
        """Write it whole or not at all."""
        kept = [entry for entry in self.proto.metadata_props if entry.key != KEY]
        del self.proto.metadata_props[:]
        self.proto.metadata_props.extend(kept)
        self.proto.metadata_props.add(key=KEY, value=json.dumps(notes))
        with whole_file(path) as file:
            file.write(self.proto.SerializeToString())


def chosen(checkpoint: Path, out: Path | None, form: Format | None) -> tuple[Path, Format]:
    """The file to write and its format, each of which tells the other.

    Raises:
        DensekitError: they contradict one another, or the suffix is none of a format.
    """
    told: Format = "torch" if out is not None and out.suffix == SUFFIXES["torch"] else "onnx"
    form = form or told
    out = out or checkpoint.with_suffix(SUFFIXES[form])
    if out.suffix != SUFFIXES[form]:
        raise DensekitError(f"--out {out}: the suffix of --format {form} is {SUFFIXES[form]}, which tells the format")
    return out, form


def origin(checkpoint: Path, dtype: torch.dtype, precision: str) -> Notes:
    """Notes on what a file was made of, and how."""
    return {
        "checkpoint": {"name": checkpoint.name, "sha256": sha256_of(checkpoint)},
        "input": str(dtype).removeprefix("torch."),
        "precision": precision,
        "densekit": __version__,
        "torch": torch.__version__,
    }


def made(graph: Graph, form: Format, dtype: torch.dtype) -> Written:
    """The graph in a format.

    Raises:
        DensekitError: the model can't be exported, or what ONNX needs is not installed.
    """
    if form == "onnx":
        check_onnx()
    program = trace(graph, dtype)
    return WrittenProgram(program) if form == "torch" else WrittenOnnx(to_onnx(program, graph.names))


def to_onnx(program: torch.export.ExportedProgram, names: list[str]) -> Any:
    """A traced graph as an ``onnx.ModelProto``.

    Raises:
        DensekitError: torch has no ONNX for a part of it.
    """
    from onnxscript import optimizer

    from densekit.export.onnx_operators import translations

    try:
        with _quietly(), torch.no_grad():
            # Constants are folded here; the exporter's own rewriting takes longer than all else, and runtimes do it.
            made = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                verbose=False,
                output_names=names,
                custom_translation_table=translations(),
            )
            assert made is not None
            optimizer.fold_constants(made.model)
            optimizer.remove_unused_nodes(made.model)
            return _anonymous(made.model_proto)
    except Exception as error:  # of many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        line = next((line for line in lines if line.startswith("<class")), lines[0])  # what the exporter's words wrap
        raise DensekitError(f"this model can't be exported to ONNX ({line[:300]}); try --format torch") from error


def _anonymous(proto: Any) -> Any:
    """Without the lines of code that each node came from, which name this machine's folders."""
    for node in proto.graph.node:
        del node.metadata_props[:]
    return proto


def in_int8(written: Written, model: DenseModel, sets: Sequence[Iterable[Batch]], count: int) -> WrittenOnnx:
    """A float32 file with convolutions in 8 bits.

    Args:
        written: ONNX.
        model: that it was made of.
        sets: batches of images that show which values the maps have, of each data set that the model learned from.
        count: most images to look at, an equal part of each set.

    Raises:
        DensekitError: onnxruntime can't do it.
    """
    from densekit.export.int8 import float32_weights, quantised

    assert isinstance(written, WrittenOnnx)
    images = itertools.chain.from_iterable(
        itertools.islice(_alone(batches), count // len(sets) + (number < count % len(sets)))
        for number, batches in enumerate(sets)
    )
    return WrittenOnnx(quantised(written.proto, images, float32_weights(model)))


def _alone(batches: Iterable[Batch]) -> Iterator[Tensor]:
    """Image by image, without padding: [1, C, H, W]."""
    for batch in batches:
        for row, (height, width) in enumerate(batch.numbers(batch.sizes)):
            yield batch.images[row : row + 1, :, :height, :width]


def check_onnx() -> None:
    """Ask for the packages that ONNX needs.

    Raises:
        DensekitError: one is not installed.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError as error:
            raise DensekitError(f"ONNX needs the package {name} ({error}); pip install 'densekit[export]'") from None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's remarks on its own parts."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before):
                logger.setLevel(level)
