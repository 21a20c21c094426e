"""Descriptions agree with what the networks do."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from densekit.backbones import resnet
from densekit.backbones.describe import describe, family_table
from densekit.backbones.resnet import VARIANTS
from densekit.errors import DensekitError
from densekit.registry import BACKBONES

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def test_resnet18_has_the_numbers_of_its_paper():
    with torch.device("meta"):
        stages = describe(BACKBONES.build("resnet18", {}))
    assert [s.name for s in stages] == ["c1", "c2", "c3", "c4", "c5"]
    assert stages[-1].shape == (1, 512, 7, 7)
    assert stages[0].multiply_adds == 112 * 112 * 64 * 3 * 49
    # He et al. 2015, table 1.
    assert sum(s.multiply_adds for s in stages) == pytest.approx(1.8e9, rel=0.02)
    assert [s.receptive_field for s in stages] == [7, 43, 99, 211, 435]


@pytest.mark.parametrize("name", ["resnet20", "plain20", "pyconvresnet50_k135", "timm/resnet10t"])
def test_stages_share_out_all_parameters(name):
    with torch.device("meta"):
        net = BACKBONES.build(name, {})
    assert sum(s.parameters for s in describe(net)) == sum(p.numel() for p in net.parameters())


def test_a_frozen_norm_hides_no_multiply_adds():
    batch, frozen = (describe(BACKBONES.build("resnet20", {"norm": norm})) for norm in ("batch", "frozen"))
    assert [s.multiply_adds for s in batch] == [s.multiply_adds for s in frozen]


@pytest.mark.parametrize(("options", "side"), [({}, 128), ({"output_stride": 8, "stem": "7x7"}, 352)])
def test_the_receptive_field_is_the_square_that_the_gradient_reaches(options, side):
    net = BACKBONES.build("resnet20", options).eval()
    for parameter in net.parameters():
        parameter.data.abs_()  # nothing cancels
    stages = describe(net, (1, 3, side, side))
    images = torch.rand(1, 3, side, side, requires_grad=True)
    for stage, m in zip(stages, net(images), strict=True):
        middle = m.shape[-1] // 2
        (gradient,) = torch.autograd.grad(m[0, :, middle, middle].sum(), images, retain_graph=True)
        rows = gradient[0].abs().sum((0, 2)).nonzero()
        assert int(rows.max() - rows.min()) + 1 == stage.receptive_field


def test_pooling_over_the_image_makes_the_field_the_whole_image():
    with torch.device("meta"):
        fields = [s.receptive_field for s in describe(BACKBONES.build("timm/seresnext26d_32x4d", {}))]
    assert fields[0] is not None
    assert fields[1:] == [None] * 4


def test_describing_leaves_the_network_as_it_was():
    net: nn.Module = BACKBONES.build("resnet20", {"frozen_stages": 1})
    describe(net)
    assert net.training
    assert not net.conv1.weight.requires_grad
    assert net.conv1.weight.device.type == "cpu"


def test_the_family_table_has_a_row_for_each_variant(monkeypatch):  # of all of them: tests/test_readme.py
    some = [v for v in VARIANTS if v.name in ("resnet20", "resnet50")]
    monkeypatch.setattr(resnet, "VARIANTS", some)
    rows = family_table((1, 3, 32, 32))
    assert [row[0] for row in rows] == [v.name for v in some]
    assert ["resnet50", "32 x 32", "23.51"] in [row[:3] for row in rows]


def tool(name: str) -> object:
    return runpy.run_path(str(TOOLS / f"{name}.py"))["main"]


def test_the_describe_tool_prints_a_table_and_json(capsys):
    main = tool("describe")
    assert main(["resnet20", "--input", "2x1x32x32", "norm=group"]) == 0
    assert "2 x 64 x 8 x 8" in capsys.readouterr().out
    main(["resnet20", "--input", "1x3x32x32", "--json"])
    stages = json.loads(capsys.readouterr().out)
    assert [s["channels"] for s in stages] == [16, 16, 32, 64]
    assert stages[0]["shape"] == [1, 16, 32, 32]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet51"], "there is no backbone 'resnet51'"),
        (["resnet18", "--input", "224"], "--input: '224' is not a shape; write images x channels x height x width"),
        (["resnet18", "norm"], "'norm' is not of the form option=value"),
        (["resnet18", "norms=batch"], "has no such option; did you mean 'norm'"),
    ],
)
def test_mistakes_at_the_describe_tool_are_one_line(arguments, message):
    with pytest.raises(DensekitError, match=message):
        tool("describe")(arguments)


@pytest.mark.parametrize("markdown", [False, True])
def test_list_parts_names_every_part_and_option(markdown, capsys, monkeypatch):
    from densekit.registry import DATASETS, HEADS

    row = ["resnet18", "224 x 224", "11.18", "1.81", "c1 64/2"]
    monkeypatch.setattr("densekit.backbones.describe.family_table", lambda: [row])
    assert tool("list_parts")(["--markdown"] if markdown else []) == 0
    text = capsys.readouterr().out
    for registry in (BACKBONES, HEADS, DATASETS):
        for name in registry.names():
            assert name in text
    assert "frozen_stages: int = 0" in text
    data_sets, transforms = text[text.index("Data sets") :].split("Transforms")
    assert "transforms" not in data_sets
    assert "max_pixels" not in data_sets
    for name in ("Resize", "ScaleJitter", "ContrastStretch", "Affine", "OneOf", "CopyPaste", "Mosaic", "MixUp"):
        assert name in transforms
    assert not [name for name in ("Normalize", "CenterCrop3D", "TextImage") if name in transforms]
    assert "low: float = 0.5" in transforms
    channels = text[text.index("Heads") : text.index("Data sets")]
    assert "channels: int = 256" in channels
    assert ("| resnet18 | 224 x 224 | 11.18 |" in text) is markdown
