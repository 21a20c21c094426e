"""The first weights of a whole model: from a densekit checkpoint, or from what others save of theirs.

Classifiers of torchvision and timm, detectors of torchvision and detectron2, and smp's segmenters are known by their
keys.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from densekit.backbones.detectron2 import advice, from_caffe2, is_caffe2, torchvision_name, turned
from densekit.backbones.weights import LoadReport, load_backbone_weights, read_state_dict
from densekit.engine import checkpoint
from densekit.errors import DensekitError
from densekit.heads.classifier import Classifier
from densekit.heads.dense.torchvision import from_torchvision_dense, is_torchvision_dense
from densekit.heads.faster_rcnn.detectron2 import from_detectron2, is_detectron2_detector
from densekit.heads.faster_rcnn.head import FasterRCNN
from densekit.heads.faster_rcnn.torchvision import from_torchvision, is_torchvision_detector, select_classes
from densekit.heads.segmentation.smp_weights import from_smp, is_smp
from densekit.model import DenseModel
from densekit.types import Classes

_WNID = re.compile(r"n\d{8}")
_IMAGENET = 1000


def load_whole(
    model: DenseModel,
    source: str,
    *,
    match_names: Collection[str] = (),
    measured: bool = False,
    bgr: bool | None = None,
) -> list[str]:
    """Start a model from a file; lines that say what was taken from it.

    Every weight must fit, but for whole heads that a densekit checkpoint lacks, which start anew, and for a classifier
    of torchvision or timm: there the backbone takes what fits, and the head starts anew where the file's last layer is
    of other classes.

    Args:
        model: newly built.
        source: the file.
        match_names: heads whose classes need the same names only, whatever their ids and order.
        measured: the model is measured as it is, without a training: nothing may start anew.
        bgr: whether a detector of detectron2 learned on images of blue, green, red; None: nothing is known.

    Raises:
        DensekitError: weights of another model, or of other classes.
    """
    state = read_state_dict(source)
    lines = _load(model, source, state, match_names, measured, bgr)
    if model.statistics is not None and not _of_sets(state):
        model.statistics.begin()
    return lines


def _load(
    model: DenseModel,
    source: str,
    state: dict[str, Tensor],
    match_names: Collection[str],
    measured: bool,
    bgr: bool | None,
) -> list[str]:
    if model.task == "classification" and not any(key.startswith("heads.") for key in state):
        return _load_classifier(model, source, state, measured)
    detectron2 = is_detectron2_detector(state)
    translated = _of_detectron2(model, state, bgr=bool(bgr)) if detectron2 else _translated(model, state)
    told = f"all weights from {source}"
    if translated is None:
        content = checkpoint.load(source)
        known = [head for head in model.heads if any(key.startswith(f"heads.{head}.") for key in state)]
        _check_heads(model, content, source)
        _check_statistics(model, content, source)
        new = [] if measured or not known else [head for head in model.heads if head not in known]
        for head, classes in checkpoint.classes_by_head(content, known or model.heads, source).items():
            _check_classes(classes, model.classes_of(head), source, head in match_names)
        translated = {**_of_sets(model.state_dict()), **content["model"], **_started(model, new)}
        if new:
            told = f"backbone, {', '.join(known)} from {source}; new: {', '.join(new)}"
    checkpoint.load_weights(model, translated, source)
    return [told, *([advice(caffe2=False, bgr=bgr)] if detectron2 else [])]


def _started(model: DenseModel, heads: Sequence[str]) -> dict[str, Tensor]:
    """The first weights of new heads, which follow from the seed."""
    own = tuple(f"heads.{head}." for head in heads)
    return {key: value for key, value in model.state_dict().items() if key.startswith(own)}


def _check_heads(model: DenseModel, content: Mapping[str, Any], source: str) -> None:
    held = list(content["config"]["model"]["heads"])
    if not set(held) & set(model.heads):
        raise DensekitError(
            f"model.weights: {source} has the head {', '.join(held)}, and the model {', '.join(model.heads)}; name a "
            f"head as there, or give it as model.backbone.weights to take its backbone alone"
        )


def _of_sets(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The statistics of batch norm for each data set but the first."""
    return {key: value for key, value in state.items() if key.startswith("statistics.")}


def _check_statistics(model: DenseModel, content: Mapping[str, Any], source: str) -> None:
    held, own = list(content["config"]["data"]), [] if model.statistics is None else list(model.statistics.sets)
    if _of_sets(content["model"]) and held != own:
        raise DensekitError(
            f"model.weights: {source} has batch norm statistics of each of its data sets {', '.join(held)}; set "
            f"train.norm_statistics=each and name the data sets so, or give it as model.backbone.weights to take its "
            f"backbone alone, with the statistics of {held[0]}"
        )


def _check_classes(learned: Classes, own: Classes, source: str, match_names: bool) -> None:
    difference = learned.difference(own)
    if difference and not (match_names and learned.names == own.names):
        raise DensekitError(
            f"model.weights: the data set's classes are not those that {source} learned: {difference}; set "
            f"match_names=true in their data where the names are the same; to keep its backbone alone give it as "
            f"model.backbone.weights"
        )


def _translated(model: DenseModel, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Another library's state dict in our keys; None where it is not one of those that are known."""
    head = next(iter(model.heads))
    if is_torchvision_detector(state):
        if len(state["roi_heads.box_predictor.cls_score.bias"]) != len(model.classes) + 1:
            state = select_classes(state, model.classes.ids)
        found = from_torchvision(state, head=head)
    elif is_torchvision_dense(state):
        found = from_torchvision_dense(state, head=head, ids=model.classes.ids)
    elif is_smp(state):
        found = from_smp(state, head=head)
    else:
        return None
    return {**_own(model), **found}


def _own(model: DenseModel) -> dict[str, Tensor]:
    """What other libraries do not keep: our normalisation, counters that frozen norms drop, statistics of data sets."""
    state = model.state_dict()
    kept = {k: v for k, v in state.items() if k in ("mean", "std") or k.endswith("num_batches_tracked")}
    return {**kept, **_of_sets(state)}


def _of_detectron2(model: DenseModel, state: dict[str, Tensor], *, bgr: bool) -> dict[str, Tensor]:
    detector = model.head()
    if not isinstance(detector, FasterRCNN):
        raise DensekitError(
            f"model.weights: a two-stage detector of detectron2, but the head {next(iter(model.heads))!r} is none; use "
            f"faster_rcnn, mask_rcnn or a cascade, or give it as model.backbone.weights"
        )
    found = from_detectron2(
        {torchvision_name(key): value for key, value in state.items()},
        head=next(iter(model.heads)),
        classes=len(model.classes),
        sizes=detector.rpn.anchors.sizes,
        pool_size=detector.roi.pool_size,
    )
    stem = "backbone.conv1.weight"
    if bgr and stem in found:
        found[stem] = turned(found[stem], stem)
    return {**_own(model), **found}


def _load_classifier(model: DenseModel, source: str, state: dict[str, Tensor], measured: bool) -> list[str]:
    report = load_backbone_weights(model.backbone, source)
    state = from_caffe2(state) if is_caffe2(state) else state
    head = model.head()
    taken = _last_layer(report, state, head, model.classes) if isinstance(head, Classifier) else "it is no classifier"
    if isinstance(taken, str) and measured:
        raise DensekitError(f"{source} can't be measured as it is: {taken}; {_WITHOUT}")
    if isinstance(taken, str):
        return [report.summary(), f"the head {next(iter(model.heads))!r} starts anew: {taken}"]
    assert isinstance(head, Classifier)
    with torch.no_grad():
        head.fc.weight.copy_(taken.weight)
        head.fc.bias.copy_(taken.bias)
    for name, value in head.fc.named_parameters():
        if not value.isfinite().all():
            raise DensekitError(f"{source}: {taken.name}.{name} holds NaN or infinity; the file is damaged")
    return [report.summary(), f"the head {next(iter(model.heads))!r} is {taken.name} of it: {taken.order}"]


_WITHOUT = "train on these classes first, or give the network and the data set that it was trained for"


class _Layer(NamedTuple):
    """The last layer of a file: weight [K, C], bias [K]; its name, and how its classes were found."""

    weight: Tensor
    bias: Tensor
    name: str
    order: str


def _last_layer(report: LoadReport, state: dict[str, Tensor], head: Classifier, classes: Classes) -> _Layer | str:
    """The layer for the head, or why it can't be taken."""
    layers = (key for key in report.unexpected if key.endswith(".weight") and _is_last(state, key))
    name = next(layers, "").removesuffix(".weight")
    if not name:
        return "the file holds no layer that tells classes"
    weight, bias = state[f"{name}.weight"].flatten(1), state[f"{name}.bias"]
    lost = [*report.missing, *(key for key, _, _ in report.mismatched)]
    between = [key for key in report.unexpected if key not in (f"{name}.weight", f"{name}.bias")]
    if lost:
        return f"{name} stands behind {lost[0]}, which did not come from the file"
    if between:
        return f"{name} stands behind {between[0]}, which the backbone does not have"
    if weight.shape[1] != head.fc.in_features:
        return f"{name} looks at {weight.shape[1]} channels and the head at {head.fc.in_features}"
    rows, order = _rows(classes.names, len(weight))
    if rows is None:
        return f"{name} tells {len(weight)} classes, the data set has {len(classes)}"
    return _Layer(weight[rows], bias[rows], name, order)


def _is_last(state: dict[str, Tensor], key: str) -> bool:
    weight, bias = state[key], state.get(key.removesuffix("weight") + "bias")
    flat = weight.dim() == 2 or (weight.dim() == 4 and weight.shape[2:] == (1, 1))
    return flat and bias is not None and bias.shape == weight.shape[:1]


def _rows(names: Sequence[str], held: int) -> tuple[list[int] | None, str]:
    """Which of a layer's rows the classes are, and in words; None where they can't be told.

    ImageNet's own names and plain numbers say it themselves; other classes come in their order.
    """
    numbers = {int(name) for name in names if name.isascii() and name.isdecimal()}
    if held == _IMAGENET and all(_WNID.fullmatch(name) for name in names):
        import timm.data

        known = {wnid: row for row, wnid in enumerate(timm.data.ImageNetInfo().label_names())}
        if all(name in known for name in names):
            return [known[name] for name in names], f"{len(names)} of ImageNet's 1000 classes, by their ids"
    if len(names) == held and numbers == set(range(held)):
        return [int(name) for name in names], f"{held} classes, by their numbers"
    if len(names) == held:
        return list(range(held)), f"{held} classes in their order, {names[0]!r} first and {names[-1]!r} last"
    return None, ""
