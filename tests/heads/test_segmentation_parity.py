"""Every decoder against segmentation-models-pytorch's own models: same weights, same logits."""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from densekit.heads.segmentation import from_smp, is_smp
from densekit.model import DenseModel
from densekit.registry import BACKBONES, HEADS
from densekit.types import Classes, DensekitError, Level
from tests.filled import fill

MODELS = {
    "unet": smp.Unet,
    "unet_plus_plus": smp.UnetPlusPlus,
    "manet": smp.MAnet,
    "linknet": smp.Linknet,
    "fpn": smp.FPN,
    "pspnet": smp.PSPNet,
    "pan": smp.PAN,
    "deeplab_v3": smp.DeepLabV3,
    "deeplab_v3_plus": smp.DeepLabV3Plus,
    "upernet": smp.UPerNet,
}


class SmpEncoder(nn.Module):
    """Any of smp's encoders as a backbone: what ``levels`` asks for, and nothing else."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        size = 128
        maps = encoder.eval()(torch.zeros(1, 3, size, size))[1:]
        self.levels = tuple(Level(f"c{i + 1}", m.shape[1], size // m.shape[2]) for i, m in enumerate(maps))

    def forward(self, images):
        return self.encoder(images)[1:]


def make_smp(name, encoder="resnet18", **options):
    """smp's model, with values in norms and biases too that a wrong mapping would show."""
    with torch.device("meta"):
        model = MODELS[name](encoder, encoder_weights=None, classes=3, **options)
    return fill(model).eval()


def dense_model(backbone, head):
    classes = Classes(("a", "b", "c"), (0, 1, 2))
    return DenseModel(backbone, {"masks": head}, mean=[0.0], std=[1.0], classes=classes, channels_last=False).eval()


def images(height=64, width=96):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("encoder", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d"])
def test_smp_unet_checkpoints_load_and_give_its_logits(encoder):
    if encoder not in BACKBONES.names():
        pytest.skip(f"backbone {encoder} is not there yet")
    theirs = make_smp("unet", encoder)
    with torch.device("meta"):  # every weight is theirs
        backbone = BACKBONES.build(encoder, {})
        model = dense_model(backbone, HEADS.build("unet", {}, backbone.levels, num_classes=3))
    expected_only = {"mean", "std"}
    result = model.load_state_dict(from_smp(theirs.state_dict()), strict=False, assign=True)
    assert set(result.missing_keys) <= expected_only
    assert not result.unexpected_keys
    with torch.inference_mode():
        want = theirs(images())
        got = model.head().logits(model.backbone(images()))
    scale = float(want.abs().max())
    assert scale > 0.01
    torch.testing.assert_close(got / scale, want / scale, atol=1e-5, rtol=0)


SIZES = {"pan": (128, 160)}
"""Its pyramid of pools takes no smaller ones."""

DILATED = {"deeplab_v3": {"output_stride": 8}, "deeplab_v3_plus": {"output_stride": 16}, "pan": {"output_stride": 16}}


@pytest.mark.parametrize("name", MODELS)
def test_smp_checkpoints_of_every_decoder_give_their_logits_on_our_backbone(name):
    theirs = make_smp(name)
    options = {**DILATED[name], "dilate_first_block": True} if name in DILATED else {}
    backbone = BACKBONES.build("resnet18", options)
    model = dense_model(backbone, HEADS.build(name, {}, backbone.levels, num_classes=3))
    assert is_smp(theirs.state_dict())
    assert not is_smp(model.state_dict())
    result = model.load_state_dict(from_smp(theirs.state_dict()), strict=False)
    # PSPNet takes no more than c3, and smp's encoder ends there.
    unused = ("mean", "std", *(("backbone.layer3", "backbone.layer4") if name == "pspnet" else ()))
    assert all(key.startswith(unused) for key in result.missing_keys)
    x = images(*SIZES.get(name, (64, 96)))
    with torch.inference_mode():
        want, got = theirs(x), model.head().logits(model.backbone(x))
    scale = float(want.abs().max())
    torch.testing.assert_close(got / scale, want / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_each_decoder_gives_smps_logits_with_smps_weights(name):
    """smp's own encoder is the backbone here, so that its dilations (DeepLab, PAN) are the same too."""
    theirs = make_smp(name)
    backbone = SmpEncoder(theirs.encoder)
    head = HEADS.build(name, {}, backbone.levels, num_classes=3)
    model = dense_model(backbone, head)
    state = {k.removeprefix("heads.masks."): v for k, v in from_smp(theirs.state_dict()).items() if "heads." in k}
    head.load_state_dict(state)
    x = images(*SIZES.get(name, (64, 96)))
    with torch.inference_mode():
        want, got = theirs(x), model.head().logits(model.backbone(x))
    scale = float(want.abs().max())
    assert scale > 0.01
    torch.testing.assert_close(got / scale, want / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("unet", {"decoder_attention_type": "scse"}, {"attention": "scse"}),
        ("unet", {"decoder_interpolation": "bilinear"}, {"interpolation": "bilinear"}),
        ("unet", {"decoder_channels": (64, 32, 32, 16, 8)}, {"decoder_channels": [64, 32, 32, 16, 8]}),
        ("unet_plus_plus", {"decoder_attention_type": "scse"}, {"attention": "scse"}),
        ("manet", {"decoder_pab_channels": 32}, {"attention_channels": 32}),
        ("fpn", {"decoder_merge_policy": "cat"}, {"merge": "cat"}),
        ("pan", {"encoder_output_stride": 32}, {}),
        ("deeplab_v3", {"encoder_output_stride": 16, "decoder_aspp_separable": True}, {"separable": True}),
        ("deeplab_v3_plus", {"encoder_output_stride": 8, "decoder_atrous_rates": (2, 4, 6)}, {"rates": [2, 4, 6]}),
        ("upernet", {"decoder_channels": 64}, {"decoder_channels": 64}),
    ],
)
def test_decoder_options_mean_what_smps_mean(name, theirs, ours):
    peer = make_smp(name, **theirs)
    backbone = SmpEncoder(peer.encoder)
    head = HEADS.build(name, ours, backbone.levels, num_classes=3).eval()
    head.load_state_dict(
        {k.removeprefix("heads.masks."): v for k, v in from_smp(peer.state_dict()).items() if "heads." in k}
    )
    # PAN at stride 32 halves its map three times.
    x = images(256, 256) if name == "pan" else images()
    with torch.inference_mode():
        want, got = peer(x), head.logits(backbone(x))
    scale = float(want.abs().max())
    torch.testing.assert_close(got / scale, want / scale, atol=1e-5, rtol=0)


def test_old_deeplab_checkpoints_are_understood():
    state = make_smp("deeplab_v3").state_dict()
    old = {
        k.replace("decoder.aspp.", "decoder.0.").replace("decoder.conv.", "decoder.1.").replace(
            "decoder.bn.", "decoder.2."
        ): v
        for k, v in state.items()
    }  # fmt: skip
    assert from_smp(old).keys() == from_smp(state).keys()


def test_data_parallel_prefixes_and_the_image_classifier_are_stripped():
    state = make_smp("unet", aux_params={"classes": 4}).state_dict()
    renamed = from_smp({f"module.{k}": v for k, v in state.items()}, head="seg")
    assert not any("classification" in k or "module" in k for k in renamed)
    assert "heads.seg.classifier.weight" in renamed
    assert "backbone.layer1.0.conv1.weight" in renamed


def test_weights_of_something_else_are_refused():
    with pytest.raises(DensekitError, match=r"conv1\.weight"):
        from_smp({"conv1.weight": torch.zeros(1)})
