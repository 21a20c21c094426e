"""Every head in both formats: minutes, so left out unless asked for (-m long)."""

import pytest
import torch
from torch import Tensor, nn

from densekit.export.files import WrittenOnnx, to_onnx
from densekit.export.graph import Graph, trace
from densekit.export.runners import open_file
from densekit.model import DenseModel
from densekit.registry import HEADS
from densekit.types import Classes, Level
from tests.export.models import DETECTORS, SIZES, detector, images, of_model

pytest.importorskip("onnxscript")
pytestmark = pytest.mark.long

_STEPS = {"decoder_channels": [8] * 5}
OTHERS = {
    "classifier": {},
    "deeplab_v3": {"decoder_channels": 8},
    "deeplab_v3_plus": {"decoder_channels": 8},
    "fpn": {"pyramid_channels": 8, "segmentation_channels": 32},
    "linknet": {},
    "manet": {**_STEPS, "attention_channels": 4},
    "pan": {"decoder_channels": 8},
    "pspnet": {"decoder_channels": 8},
    "unet": _STEPS,
    "unet_plus_plus": _STEPS,
    "upernet": {"decoder_channels": 16},
}


class Five(nn.Module):
    """Five convolutions of stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8 if number else 3, 8, 3, 2, 1) for number in range(5))
        self.levels = tuple(Level(f"c{number}", 8, 2**number) for number in range(1, 6))

    def forward(self, x: Tensor) -> list[Tensor]:
        """One map a level."""
        maps = []
        for conv in self.convs:
            x = conv(x).relu()
            maps.append(x)
        return maps


def model_of(name: str) -> DenseModel:
    if name in DETECTORS:
        return detector(name)
    torch.manual_seed(0)
    backbone = Five()
    head = HEADS.build(name, OTHERS[name], backbone.levels, path="head", num_classes=3)
    classes = Classes(("a", "b", "c"), (1, 2, 3))
    return DenseModel(backbone, {"main": head}, mean=(0.4,), std=(0.2,), classes=classes).eval()


@pytest.mark.parametrize("name", ["classifier", "retinanet"])
def test_half_precision_changes_little(name, tmp_path):
    model = model_of(name)
    graph = Graph(model, half=True)
    program = trace(graph, torch.uint8)
    WrittenOnnx(to_onnx(program, graph.names)).save(tmp_path / "a.onnx", {"format": 1})
    wanted = of_model(Graph(model), images(*SIZES[0]))
    for found in (program.module()(images(*SIZES[0])), open_file(tmp_path / "a.onnx")[0](images(*SIZES[0]))):
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, atol=0.02, rtol=1e-2)
        assert any(not torch.equal(found[key], value) for key, value in wanted.items())


def test_every_head_is_here():
    assert set(HEADS.names()) == {*DETECTORS, *OTHERS}


@pytest.mark.parametrize("name", [*DETECTORS, *OTHERS])
def test_a_head_gives_the_same_from_both_formats(name, tmp_path):
    graph = Graph(model_of(name))
    program = trace(graph, torch.uint8)
    WrittenOnnx(to_onnx(program, graph.names)).save(tmp_path / "a.onnx", {"format": 1})
    module, onnx = program.module(), open_file(tmp_path / "a.onnx")[0]
    for size in SIZES:
        wanted = of_model(graph, images(*size))
        for key, value in wanted.items():
            assert torch.equal(module(images(*size))[key], value), (key, size)
            torch.testing.assert_close(onnx(images(*size))[key], value, atol=2e-3, rtol=1e-4)
