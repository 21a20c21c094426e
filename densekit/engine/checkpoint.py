"""Checkpoints: written whole, checked when read, never running code that they hold.

A checkpoint is torch's own zip file of plain types. Every record of the zip has a checksum (CRC-32), which is compared
before anything is loaded. ``last.pt`` is what a run goes on from; the one before it stays as ``last.previous.pt``.
"""

from __future__ import annotations

import os
import reprlib
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from densekit import pickles
from densekit.errors import DensekitError
from densekit.files import explain_os_error, whole_file
from densekit.types import Classes

_OURS = (
    "give a best.pt or last.pt of a run folder (another program's weights are named in a config: model.weights, or "
    "model.backbone.weights)"
)

FORMAT = 1
"""Rises when a checkpoint of an older densekit can no longer be read as it is."""


def save(path: Path, content: dict[str, Any], keep_previous: bool = False) -> None:
    """Write a checkpoint whole or not at all.

    Args:
        path: the file.
        content: tensors, numbers, strings, lists and dicts.
        keep_previous: the file that stands there becomes ``<stem>.previous.pt``.

    Raises:
        DensekitError: full disk or no permission; the checkpoints on disk are as they were.
    """
    with whole_file(path) as file:
        try:
            torch.save({"format": FORMAT, **content}, file)
        except RuntimeError as error:  # torch hides the OSError of a full disk behind its own
            if (lost := _lost_worker(error)) is not None:
                raise lost from None
            raise DensekitError(
                f"{path} could not be written: {pickles.first_line(error)}; is the disk full? Free some space and run "
                f"again with --resume (the old checkpoint is whole)"
            ) from None
        file.flush()
        os.fsync(file.fileno())
        if keep_previous and path.exists():
            _keep(path)


def _lost_worker(error: BaseException | None) -> BaseException | None:
    """The error of a loader worker that died, which a signal handler raises wherever the process happens to be.

    In the middle of a file torch's writer answers it with an error of its own.
    """
    while error is not None and "DataLoader worker" not in str(error):
        error = error.__context__
    return error


def previous(path: Path) -> Path:
    """Where the checkpoint before this one is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _keep(path: Path) -> None:
    """Give the old file a second name; the first one goes to the new file by the rename that follows."""
    kept, temporary = previous(path), path.with_name(f".{path.stem}.link.tmp")
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # a file system without links: one moment without the first name, never without the content
            os.replace(path, kept)
            return
        os.replace(temporary, kept)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DensekitError(explain_os_error(error, kept)) from None


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU, checksum first.

    Raises:
        DensekitError: missing, damaged, not a densekit checkpoint, or of a newer format.
    """
    path = Path(path)
    if path.is_dir():
        best = path / "best.pt"
        raise DensekitError(f"checkpoint {path} is a folder; give {best if best.is_file() else 'a best.pt of a run'}")
    if not path.is_file():
        raise DensekitError(f"checkpoint {path} does not exist; give a best.pt or last.pt of a run folder")
    if path.suffix in (".onnx", ".pt2"):
        raise DensekitError(
            f"{path} is an exported model, which only predicts; give the checkpoint that it was made of"
        )
    _verify(path)
    try:
        content = pickles.load(path)
    except Exception as error:  # a pickle made by someone else can raise anything
        raise DensekitError(
            f"checkpoint {path} can't be loaded without running code in it ({pickles.why(path, error)}); {_OURS}"
        ) from None
    if not isinstance(content, dict) or not {"format", "config", "classes", "model"} <= content.keys():
        raise DensekitError(f"{path} is not a densekit checkpoint; {_OURS}")
    if not isinstance(content["format"], int) or content["format"] > FORMAT:
        raise DensekitError(
            f"checkpoint {path} has format {reprlib.repr(content['format'])}, this densekit reads up to {FORMAT}; "
            f"update densekit"
        )
    return content


def load_last(path: Path) -> tuple[dict[str, Any], str | None]:
    """Read ``last.pt``, or the one before it where it is damaged; also a line that says so.

    Raises:
        DensekitError: neither can be read.
    """
    try:
        return load(path), None
    except DensekitError as error:
        if not previous(path).is_file():
            raise
        damage = str(error)
    try:
        content = load(previous(path))
    except DensekitError as error:
        raise DensekitError(f"{damage}; and the one before it can't be used either: {error}") from None
    return content, f"{damage}; going on from {previous(path).name} (step {_step(content)}) instead"


def _step(content: dict[str, Any]) -> Any:
    made = content.get("made")
    return made.get("step", "unknown") if isinstance(made, dict) else "unknown"


def _verify(path: Path) -> None:
    """Compare every record with its checksum, in small pieces."""
    try:
        with zipfile.ZipFile(path) as file:
            # torch never compresses; a small file that unpacks into gigabytes is an attack.
            packed = next((i.filename for i in file.infolist() if i.compress_type != zipfile.ZIP_STORED), None)
            damaged = None if packed else file.testzip()
    except Exception as error:  # whatever a flipped bit makes zipfile and its helpers raise
        raise DensekitError(
            f"checkpoint {path} is damaged or not a checkpoint ({pickles.why(path, error)}); use last.previous.pt or "
            f"best.pt"
        ) from None
    if packed is not None:
        raise DensekitError(f"checkpoint {path} is damaged or not one (its record {packed} is compressed); {_OURS}")
    if damaged is not None:
        raise DensekitError(
            f"checkpoint {path} is damaged (checksum of {damaged} differs); use last.previous.pt or best.pt"
        )


def with_classes(classes: Mapping[str, Classes]) -> dict[str, Any]:
    """The class names and ids of each head as plain types, for a checkpoint; ``classes`` are those of the first."""
    held = {head: {"names": list(own.names), "ids": list(own.ids)} for head, own in classes.items()}
    return {"classes": next(iter(held.values())), "classes_by_head": held}


def classes_of(content: dict[str, Any], path: str | Path) -> Classes:
    """The class names and ids of the first head that a checkpoint carries.

    Raises:
        DensekitError: they are not there or not of the right form.
    """
    return _classes(content["classes"], path)


def classes_by_head(content: dict[str, Any], heads: Iterable[str], path: str | Path) -> dict[str, Classes]:
    """The class names and ids of each head that a checkpoint carries.

    Args:
        content: of the checkpoint; an older one has one list of classes for all heads.
        heads: of its config.
        path: of the checkpoint, for messages.

    Raises:
        DensekitError: they are not there or not of the right form.
    """
    held = content.get("classes_by_head", dict.fromkeys(heads, content["classes"]))
    if not isinstance(held, dict) or any(head not in held for head in heads):
        raise DensekitError(f"checkpoint {path} does not hold the classes of each head; train again or mend it")
    return {head: _classes(held[head], path) for head in heads}


def _classes(held: Any, path: str | Path) -> Classes:
    try:
        return Classes(tuple(str(n) for n in held["names"]), tuple(int(i) for i in held["ids"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DensekitError(f"checkpoint {path} holds no valid class list ({error}); train again or mend it") from None


def load_weights(model: torch.nn.Module, state: Any, source: str | Path) -> None:
    """Load a whole model's weights; every key and shape must fit.

    Raises:
        DensekitError: another model's weights, with the first keys that differ.
    """
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise DensekitError(f"{source} holds no state dict of tensors; give a checkpoint of this model")
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [k for k in own if k in state and own[k].shape != state[k].shape]
    problems = [f"{len(k)} {w} such as {k[0]}" for w, k in (("missing", missing), ("unexpected", unexpected)) if k]
    problems += [f"{k} is {tuple(state[k].shape)}, the model has {tuple(own[k].shape)}" for k in shapes[:1]]
    if problems:
        raise DensekitError(
            f"{source} is a checkpoint of another model: {'; '.join(problems)}; use the config it was trained with"
        )
    model.load_state_dict(state)
