"""ONNX files whose convolutions compute in 8 bits, by onnxruntime's static quantisation."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from densekit.errors import DensekitError
from densekit.model import DenseModel


def quantised(proto: Any, images: Iterable[Tensor], exact: Sequence[str]) -> Any:
    """Convolutions with 8-bit weights, a scale an output channel, between 8-bit maps; all else stays float32.

    Weights keep 7 bits, since products of two 8-bit numbers overflow the 16 bits that AVX2 adds them in.

    Args:
        proto: an ``onnx.ModelProto``.
        images: [1, C, H, W] each, as the file takes them: they show which values the maps have.
        exact: beginnings of the names of weights whose convolutions stay float32.

    Returns:
        Another ``onnx.ModelProto``.

    Raises:
        DensekitError: there are no images, or onnxruntime can't quantise the model.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self.left: Iterator[Tensor] = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.left, None)
            return None if image is None else {proto.graph.input[0].name: image.contiguous().numpy()}

    level = logging.root.level
    with tempfile.TemporaryDirectory() as folder:
        plain, folded, result = (Path(folder) / f"{name}.onnx" for name in ("plain", "folded", "result"))
        onnx.save(proto, plain)
        try:
            logging.root.setLevel(logging.ERROR)  # it logs to the root
            quant_pre_process(str(plain), str(folded), skip_symbolic_shape=True)
            quantize_static(
                str(folded),
                str(result),
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=_nodes_with(onnx.load(folded), exact),
            )
        except Exception as error:  # of many kinds
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DensekitError(f"onnxruntime can't quantise this model ({line[:300]}); leave --int8 out") from error
        finally:
            logging.root.setLevel(level)
        return onnx.load(result)


def _nodes_with(proto: Any, beginnings: Sequence[str]) -> list[str]:
    return [node.name for node in proto.graph.node if any(name.startswith(tuple(beginnings)) for name in node.input)]


def float32_weights(model: DenseModel) -> list[str]:
    """Beginnings of the names, in a traced graph, of weights that compute in float32 in mixed precision too.

    They are those of the last layers: coarse deltas move boxes by pixels, coarse scores tie.
    """
    kept: list[str] = []
    for path, module in model.named_modules():
        kept += [f"model.{path}.{part}." for part in getattr(module, "float32_parts", ())]
        if hasattr(module, "classifier"):
            kept.append(f"model.{path}.classifier.")
    return kept
