"""Weights of a backbone from files and by name, with a report of what fitted and what did not.

Files are read without running code in them: ``torch.load(weights_only=True)``, safetensors, or pickles of arrays. Their
keys may be torchvision's, timm's, segmentation-models-pytorch's, detectron2's, Caffe2's or densekit's (a backbone alone
or a whole checkpoint): wrappers around the state dict are known, and any prefix before the keys is found by matching.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from densekit import array_pickles, pickles
from densekit.backbones.detectron2 import (
    advice,
    from_caffe2,
    is_caffe2,
    torchvision_name,
    turned,
    with_last_stage,
)
from densekit.backbones.pretrained import is_name, resolve
from densekit.errors import DensekitError

WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "weights", "teacher", "student", "blobs")
"""Keys under which training programs keep the state dict of a checkpoint."""

LEAST_FIT = 0.5
"""A file that gives a smaller fraction of the backbone's tensors than this is another network's."""


@dataclasses.dataclass(frozen=True, slots=True)
class LoadReport:
    """What ``load_backbone_weights`` did. Names are the backbone's own; ``num_batches_tracked`` is not counted.

    Attributes:
        source: what was asked for.
        sha256: of the file that was read.
        loaded: tensors taken from the file.
        missing: tensors that the file lacks; they keep their random start.
        unexpected: tensors of the file that the backbone has no place for (a classifier, heads).
        mismatched: (name, shape in the file, shape in the backbone); they keep their random start.
        folded: the stem's weight, where its input channels were adapted.
        licence: what the publisher says about the weights, where known.
        prefixes: what stands before the keys that were taken, and then before others in the file that would fit too.
        notes: what else to set, for weights that want their images in another way.
    """

    source: str
    sha256: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    folded: str | None = None
    licence: str | None = None
    prefixes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line with counts and first names."""
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        parts = [f"weights {self.source} (sha256 {self.sha256[:12]}): {len(self.loaded)} of {total} tensors loaded"]
        if any(self.prefixes[:1]):
            parts.append(f"found under {self.prefixes[0]}")
        if self.prefixes[1:]:
            parts.append(f"{', '.join(p or 'no prefix' for p in self.prefixes[1:3])} would fit too")
        if self.folded:
            parts.append(f"input channels of {self.folded} adapted")
        parts += _listed("missing", self.missing)
        parts += _listed("of another shape", [f"{n} {a} -> {b}" for n, a, b in self.mismatched])
        parts += _listed("not used", self.unexpected)
        if self.licence:
            parts.append(f"licence {self.licence}")
        return "; ".join([*parts, *self.notes])


def load_backbone_weights(backbone: nn.Module, source: str, *, bgr: bool | None = None) -> LoadReport:
    """Load weights into a backbone.

    Keys are matched after whatever prefix fits the most of them was taken off (``module.encoder_q.``,
    ``backbone.bottom_up.``; of several that fit alike, the first), and with ``_`` and ``.`` held equal (timm renames
    ``stages.0`` to ``stages_0`` in its feature networks). detectron2's and Caffe2's names are understood
    (``detectron2.py``). Where only the stem's input channels differ, its filters are folded as ``fold_channels`` says.
    Nothing is changed unless enough fits.

    Args:
        backbone: any backbone; its ``name`` decides which weights a name stands for.
        source: a ``.pth``, ``.pt`` or ``.safetensors`` file, or ``torchvision/<weights>`` or ``timm/<tag>``, which are
            downloaded once and kept.
        bgr: whether the weights learned on images of blue, green, red, so that the filters of the stem are to be
            turned; None: where they have Caffe2's names.

    Raises:
        DensekitError: the file is missing, damaged, unsafe or holds values that are not finite; the name is unknown or
            can't be downloaded; or less than half of the backbone's tensors (``LEAST_FIT``) are in it.
    """
    name = str(getattr(backbone, "name", type(backbone).__name__))
    path, licence = resolve(name, source) if is_name(source) else (Path(source), None)
    tensors = read_state_dict(path)
    if caffe2 := is_caffe2(tensors):
        tensors, bgr = from_caffe2(tensors), bgr is not False
    found = _match(backbone, with_last_stage(tensors), bgr=bool(bgr))
    fraction = len(found.values) / max(1, len(found.values) + len(found.missing) + len(found.mismatched))
    if fraction < LEAST_FIT:
        raise DensekitError(_does_not_fit(source, name, found))
    state = backbone.state_dict()
    state.update({key: value.to(state[key].dtype) for key, value in found.values.items()})
    for key in found.values:  # in the backbone's own precision, which may hold less than the file's
        if not state[key].isfinite().all():
            raise DensekitError(f"{path}: {key} holds NaN or infinity; the file is damaged, fetch or train it again")
    backbone.load_state_dict(state)
    return LoadReport(
        source, sha256_of(path), tuple(found.values), found.missing, found.unexpected, found.mismatched, found.folded,
        licence, found.prefixes, _notes(found, caffe2=caffe2, bgr=bgr),
    )  # fmt: skip


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a file on the CPU, without running code that it may hold.

    Raises:
        DensekitError: the file is missing, damaged, not safe to read, or holds no tensors.
    """
    path = Path(path)
    if path.is_dir():
        raise DensekitError(f"weights {path} is a folder; give the .pth, .pt or .safetensors file in it")
    if not path.is_file():
        raise DensekitError(
            f"weights {path} do not exist; give a .pth, .pt or .safetensors file, or a name such as "
            f"torchvision/IMAGENET1K_V1"
        )
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)
    tensors = _unwrap(content)
    if not tensors:
        raise DensekitError(f"weights {path} hold no state dict of tensors; save module.state_dict() there")
    return tensors


def fold_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt a stem's filters to another number of input channels.

    For one channel the filters' sum: a grey image then gives what its three-channel copy gave. For N channels the
    filters are repeated in turn and scaled by (old channels) / N, so that the responses keep their size.

    Args:
        weight: [O, C, k, k].
        channels: N.

    Returns:
        [O, N, k, k].
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    old = weight.shape[1]
    turn = torch.arange(channels) % old
    return weight[:, turn] * (old / channels)


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    values: dict[str, Tensor]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    folded: str | None
    prefixes: tuple[str, ...]
    used: tuple[str, ...]


def _match(backbone: nn.Module, tensors: Mapping[str, Tensor], *, bgr: bool) -> _Found:
    own = {key: value for key, value in backbone.state_dict().items() if _counts(key)}
    given, prefixes = _matching_keys(list(own), [key for key in tensors if _counts(key)])
    stem = _stem_key(backbone)
    values, mismatched, folded = {}, [], None
    for key, file_key in given.items():
        tensor, shape = tensors[file_key], own[key].shape
        if key == stem and bgr:
            tensor = turned(tensor, file_key)
        if key == stem and _folds(tensor, own[key]):
            tensor, folded = fold_channels(tensor, shape[1]), key
        if tensor.shape == shape:
            values[key] = tensor
        else:
            mismatched.append((key, tuple(tensor.shape), tuple(shape)))
    missing = tuple(key for key in own if key not in given)
    used = dict.fromkeys(given.values())
    unexpected = tuple(key for key in tensors if _counts(key) and key not in used)
    return _Found(values, missing, unexpected, tuple(mismatched), folded, tuple(prefixes), tuple(used))


def _notes(found: _Found, *, caffe2: bool, bgr: bool | None) -> tuple[str, ...]:
    if caffe2 or any(torchvision_name(key) != key for key in found.used):
        return (advice(caffe2=caffe2, bgr=bgr),)
    return ("the stem was turned from BGR to RGB",) if bgr else ()


def _matching_keys(own: list[str], held: list[str]) -> tuple[dict[str, str], list[str]]:
    """The file's key for each of the backbone's keys that it has, under the prefix that fits the most of them.

    Returns:
        The keys, and the prefix with the others that fit as many.
    """
    shared = _shared_prefix(own)
    canonical = {_dotted(key.removeprefix(shared)): key for key in own}
    assert len(canonical) == len(own), "two keys of the backbone differ in '_' and '.' only"
    found: dict[str, dict[str, str]] = {}
    for key in held:
        for dotted in dict.fromkeys((_dotted(key), _dotted(torchvision_name(key)))):
            for start in [0, *(i + 1 for i, letter in enumerate(dotted) if letter == ".")]:
                if (name := canonical.get(dotted[start:])) is not None:
                    # Names are as long as their dotted form, so the prefix is what stands before.
                    found.setdefault(key[:start], {}).setdefault(name, key)
    most = max((len(keys) for keys in found.values()), default=0)
    best = [prefix for prefix, keys in found.items() if len(keys) == most]
    return (found[best[0]], best) if best else ({}, [])


def _shared_prefix(own: list[str]) -> str:
    """Modules that all keys of the backbone stand in."""
    first = own[0].split(".")
    for depth in range(len(first) - 1, 0, -1):
        prefix = ".".join(first[:depth]) + "."
        if all(key.startswith(prefix) for key in own):
            return prefix
    return ""


def _dotted(key: str) -> str:
    return key.replace("_", ".")


def _counts(key: str) -> bool:
    return not key.endswith("num_batches_tracked")


def _stem_key(backbone: nn.Module) -> str | None:
    """The weight of the first convolution that reads the image."""
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            return f"{name}.weight"
    return None


def _folds(given: Tensor, own: Tensor) -> bool:
    return given.dim() == 4 and given.shape[1] != own.shape[1] and given.shape[::2] == own.shape[::2]


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise DensekitError(_unreadable(path, pickles.why(path, error))) from None


def _load_pickle(path: Path) -> Any:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:  # torch does not compare the checksums that the zip holds
                if (damaged := file.testzip()) is not None:
                    raise zipfile.BadZipFile(f"the checksum of {damaged} differs")
        elif path.suffix == ".pkl" and isinstance(content := array_pickles.load(path), dict):
            return content
        return pickles.load(path)
    except Exception as error:  # garbage makes torch's unpickler fail in any way
        if pickles.foreign(error) is None:
            raise DensekitError(_unreadable(path, pickles.why(path, error))) from None
        raise DensekitError(f"weights {path} can't be read: {pickles.why(path, error)}; {_extract(path)}") from None


def _extract(path: Path) -> str:
    """How to get at the weights of a file that is not safe to read."""
    key = pickles.names_in(path, WRAPPERS)
    if key is None:
        return "save module.state_dict() alone in the program that wrote them"
    target = str(path.with_name(f"{path.stem}_weights.pth"))
    return (
        f"where you trust it, save its weights alone: "
        f"torch.save(torch.load({str(path)!r}, weights_only=False)[{key!r}], {target!r})"
    )


def _unreadable(path: Path, why: str) -> str:
    return f"weights {path} can't be read ({why}); fetch or write them again"


def _unwrap(content: Any) -> dict[str, Tensor]:
    """The state dict inside a checkpoint; an empty one where there is none."""
    while isinstance(content, Mapping):
        tensors = {str(k): t for k, v in content.items() if (t := _as_tensor(v)) is not None}
        if tensors:
            return tensors
        content = next((content[k] for k in WRAPPERS if k in content), None)
    return {}


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return value if isinstance(value, Tensor) else None


def _does_not_fit(source: str, name: str, found: _Found) -> str:
    total = len(found.values) + len(found.missing) + len(found.mismatched)
    parts = _listed("missing", found.missing)
    parts += _listed("of another shape", [f"{n} {a} -> {b}" for n, a, b in found.mismatched])
    parts += _listed("not used", found.unexpected)
    return (
        f"weights {source} hardly fit backbone {name!r}: {len(found.values)} of {total} tensors, at least half must "
        f"({'; '.join(parts)}); choose the network that they were trained for"
    )


def _listed(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"]
