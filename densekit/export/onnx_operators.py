"""Operators that torch's exporter does not know, densekit's own first, in ONNX's standard ones.

B images, n boxes an image, G groups, L levels, R regions, C channels, P side of a pooled patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnxscript import opset18 as op

FLOAT, INT64, BOOL = 1, 7, 9


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operators and what stands for them, for ``torch.onnx.export``."""
    return {
        torch.ops.densekit.greedy_nms.default: greedy_nms,
        torch.ops.densekit.roi_align.default: roi_align,
        torch.ops.aten.sort.stable: sort,
        torch.ops.aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d,
        torch.ops.aten._adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    }


def greedy_nms(boxes: Any, valid: Any, groups: Any, parts: Sequence[int], threshold: float) -> Any:
    """``ops.nms.greedy_nms``: [B, n, 4] boxes, [B, n] bool, [B, n] integers or None -> [B, n] bool.

    ONNX's ``NonMaxSuppression`` suppresses each class by itself, so groups and parts are its classes; and it takes the
    best score first, so places in descending order stand for the scores.
    """
    shape = op.Shape(valid)  # [B, n]
    count = op.Gather(shape, _integers(1), axis=0)
    places = op.Range(_integer(0), op.Squeeze(count), _integer(1))  # [n]
    rank = op.Cast(op.Sub(count, places), to=FLOAT)
    scores = op.Where(valid, op.Unsqueeze(rank, _integers(0)), op.Constant(value_float=-1.0))
    own = op.Cast(valid, to=INT64) if groups is None else groups
    classes = _integer(2) if groups is None else op.Add(op.ReduceMax(own, keepdims=0), _integer(1))
    if len(parts) > 1:
        own = op.Add(op.Mul(own, _integer(len(parts))), _part_of(places, parts))
        classes = op.Mul(classes, _integer(len(parts)))
    each = op.Reshape(op.Range(_integer(0), classes, _integer(1)), _integers(1, -1, 1))  # [1, G, 1]
    mine = op.Equal(op.Unsqueeze(own, _integers(1)), each)  # [B, G, n]
    chosen = op.NonMaxSuppression(
        boxes,
        op.Where(mine, op.Unsqueeze(scores, _integers(1)), op.Constant(value_float=-1.0)),
        count,
        op.Constant(value_floats=[_as_float32(threshold, grouped=groups is not None)]),
        op.Constant(value_floats=[0.0]),
    )  # [kept, 3]: image, class, place
    kept = op.ConstantOfShape(shape, value=_scalar(np.array([0], np.int64)))
    where = op.Gather(chosen, _integers(0, 2), axis=1)
    ones = op.Expand(_integers(1), op.Slice(op.Shape(chosen), _integers(0), _integers(1)))
    return op.Cast(op.ScatterND(kept, where, ones), to=BOOL)


def _as_float32(threshold: float, *, grouped: bool) -> float:
    """The float32 that decides as densekit's kernel does.

    That compares float32 overlaps with a float64, and exceeding it means exceeding the float32 below; overlaps of
    groups are float64, of which the nearest float32 takes what lies on the threshold as the kernel does.
    """
    nearest = np.float32(threshold)
    return float(nearest if grouped or float(nearest) <= threshold else np.nextafter(nearest, np.float32(-1)))


def _part_of(places: Any, parts: Sequence[int]) -> Any:
    """[n] which part each place belongs to."""
    ends = [sum(parts[: number + 1]) for number in range(len(parts) - 1)]
    behind = op.GreaterOrEqual(op.Unsqueeze(places, _integers(1)), op.Constant(value_ints=ends))
    return op.ReduceSum(op.Cast(behind, to=INT64), _integers(1), keepdims=0)


def roi_align(
    maps: Sequence[Any],
    boxes: Any,
    images: Any,
    levels: Any,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Any:
    """``ops.roi_align``: [R, 4] boxes, [R] images, [R] levels -> [R, C, P, P].

    Each level pools its own boxes; then the patches go back to the places of theirs.
    """
    pooled, places = [], []
    mode = "half_pixel" if aligned else "output_half_pixel"
    for level, (features, stride) in enumerate(zip(maps, strides)):
        here = op.Squeeze(op.NonZero(op.Equal(levels, _integer(level))), _integers(0))
        pooled.append(
            op.RoiAlign(
                features,
                op.Gather(boxes, here, axis=0),
                op.Gather(images, here, axis=0),
                coordinate_transformation_mode=mode,
                output_height=output_size,
                output_width=output_size,
                sampling_ratio=sampling_ratio,
                spatial_scale=1.0 / stride,
            )
        )
        places.append(here)
    if len(pooled) == 1:
        return pooled[0]
    order = op.Concat(*places, axis=0)
    numbers = op.Range(_integer(0), op.Squeeze(op.Shape(order)), _integer(1))
    return op.Gather(op.Concat(*pooled, axis=0), op.ScatterElements(numbers, order, numbers, axis=0), axis=0)


def sort(values: Any, *, stable: bool = False, dim: int = -1, descending: bool = False) -> Any:
    """``torch.sort(stable=True)``: ONNX's ``TopK`` of all; of equal values it takes the first place first, too."""
    length = op.Gather(op.Shape(values), _integers(dim), axis=0)
    return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)


def adaptive_avg_pool2d(values: Any, output_size: Sequence[int]) -> Any:
    """[B, C, H, W] -> [B, C, h, w]: products with what each pixel counts in each mean, for maps of any size."""
    rows, columns = (_shares(values, axis, count) for axis, count in zip((2, 3), output_size))
    return op.MatMul(op.MatMul(rows, values), op.Transpose(columns, perm=[1, 0]))


def _shares(values: Any, axis: int, count: int) -> Any:
    """[count, side]: one over the number of pixels, for those of each mean; neighbouring means may share some."""
    side = op.Gather(op.Shape(values), _integers(axis), axis=0)
    before, behind = (op.Reshape(_integers(*range(i, count + i)), _integers(-1, 1)) for i in (0, 1))
    start = op.Div(op.Mul(before, side), _integer(count))
    end = op.Div(op.Add(op.Mul(behind, side), _integer(count - 1)), _integer(count))
    places = op.Range(_integer(0), op.Squeeze(side), _integer(1))
    inside = op.And(op.GreaterOrEqual(places, start), op.Less(places, end))
    return op.Div(op.Cast(inside, to=FLOAT), op.Cast(op.Sub(end, start), to=FLOAT))


def _integer(value: int) -> Any:
    return op.Constant(value_int=value)


def _integers(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _scalar(value: Any) -> Any:
    import onnx

    return onnx.numpy_helper.from_array(value)
