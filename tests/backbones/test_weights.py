"""Weights from files and by name: layouts, reports, folded stems, and what is refused."""

from __future__ import annotations

import copy
import hashlib
import os
import urllib.error
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from densekit.backbones import pretrained
from densekit.backbones.weights import fold_channels, load_backbone_weights
from densekit.errors import DensekitError
from densekit.registry import BACKBONES


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(0)
    return BACKBONES.build("resnet20", {})


@pytest.fixture
def target() -> nn.Module:
    torch.manual_seed(1)
    return BACKBONES.build("resnet20", {})


def same(a: nn.Module, b: nn.Module) -> bool:
    x = torch.randn(1, 3, 32, 32)
    return all(torch.equal(m, n) for m, n in zip(a.eval()(x), b.eval()(x), strict=True))


@pytest.mark.parametrize(
    "prefix",
    [
        *("", "module.", "encoder.", "backbone.", "encoder.model.", "model.", "module.backbone.body."),
        *("module.encoder_q.", "model.encoder.", "backbone.bottom_up.", "a_b.c.d_e.module.trunk."),
    ],
)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_layouts_of_others_are_understood(prefix, wrapper, source, target, tmp_path):
    state = {prefix + key: value for key, value in source.state_dict().items()}
    state["decoder.conv.weight"] = torch.zeros(1)
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pth")
    report = load_backbone_weights(target, str(tmp_path / "w.pth"))
    assert same(source, target)
    assert not report.missing
    assert (f"found under {prefix};" in report.summary() + ";") == bool(prefix)
    assert report.unexpected == ("decoder.conv.weight",)
    assert len(report.loaded) == len([k for k in source.state_dict() if "num_batches" not in k])


def test_a_densekit_checkpoint_gives_its_backbone(source, target, tmp_path):
    model = {f"backbone.{k}": v for k, v in source.state_dict().items()}
    model |= {"heads.digit.fc.weight": torch.zeros(10, 64), "mean": torch.zeros(1, 3, 1, 1)}
    content = {"format": 1, "config": {"seed": 0}, "classes": {"names": ["a"], "ids": [0]}, "model": model}
    torch.save(content, tmp_path / "best.pt")
    report = load_backbone_weights(target, str(tmp_path / "best.pt"))
    assert same(source, target)
    assert report.unexpected == ("heads.digit.fc.weight", "mean")


def test_safetensors_and_the_files_hash(source, target, tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(source.state_dict(), path)
    report = load_backbone_weights(target, str(path))
    assert same(source, target)
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_smp_encoders_load(tmp_path):
    import segmentation_models_pytorch as smp

    unet = smp.Unet("resnet18", encoder_weights=None)
    torch.save(unet.state_dict(), tmp_path / "unet.pth")
    net = BACKBONES.build("resnet18", {})
    report = load_backbone_weights(net, str(tmp_path / "unet.pth"))
    assert not report.missing
    assert torch.equal(net.layer4[1].conv2.weight, unet.encoder.layer4[1].conv2.weight)


@pytest.mark.parametrize("name", ["resnet10t", "resnetv2_18", "regnetx_002", "tresnet_m"])
def test_timms_own_files_load_into_its_feature_networks(name, tmp_path):
    with torch.device("meta"):
        whole = timm.create_model(name, pretrained=False)
        net = BACKBONES.build(f"timm/{name}", {})
    whole, net = whole.to_empty(device="cpu"), net.to_empty(device="cpu")
    for value in [*whole.state_dict().values(), *net.state_dict().values()]:
        value.fill_(0.5 if value is not None else 0)
    safetensors.torch.save_file({k: v.contiguous() for k, v in whole.state_dict().items()}, tmp_path / "m.safetensors")
    report = load_backbone_weights(net, str(tmp_path / "m.safetensors"))
    assert not report.missing
    assert not report.mismatched
    assert all("fc" in key or "norm" in key for key in report.unexpected)


@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_batch_norm_weights_serve_other_norms(norm, source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "w.pth")
    net = BACKBONES.build("resnet20", {"norm": norm})
    report = load_backbone_weights(net, str(tmp_path / "w.pth"))
    assert not report.missing
    assert bool(report.unexpected) is (norm == "group")
    assert torch.equal(net.conv1.weight, source.conv1.weight)


def test_the_shared_imagenet_weights_lack_layer4(real_data):
    file = real_data / "weights" / "resnet18_imagenet_to_layer3.pth"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    report = load_backbone_weights(BACKBONES.build("resnet18", {}), str(file))
    assert len(report.loaded) == 80
    assert len(report.missing) == 20
    assert all(key.startswith("layer4.") and ".downsample" not in key for key in report.missing)
    assert report.unexpected == ("fc.weight", "fc.bias")
    assert "80 of 100 tensors loaded; 20 missing (layer4.0.conv1.weight, " in report.summary()
    assert "\n" not in report.summary()


def test_a_grey_image_gives_the_folded_stem_what_its_copy_gives_the_whole_one(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "w.pth")
    grey = BACKBONES.build("resnet20", {"in_channels": 1})
    report = load_backbone_weights(grey, str(tmp_path / "w.pth"))
    assert report.folded == "conv1.weight"
    assert "input channels of conv1.weight adapted" in report.summary()
    x = torch.randn(1, 1, 32, 32)
    for a, b in zip(grey.eval()(x), source.eval()(x.expand(-1, 3, -1, -1)), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("channels", [2, 3, 4, 8])
def test_folded_filters_repeat_in_turn_and_keep_the_size_of_the_response(channels):
    weight = torch.rand(4, 3, 3, 3)
    folded = fold_channels(weight, channels)
    assert folded.shape == (4, channels, 3, 3)
    assert torch.allclose(folded[:, channels - 1], weight[:, (channels - 1) % 3] * 3 / channels)
    assert torch.allclose(fold_channels(weight[:, :1], channels).sum(1, keepdim=True), weight[:, :1])


def test_a_file_of_another_network_is_refused_and_changes_nothing(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "w.pth")
    net = BACKBONES.build("resnet18", {})
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(DensekitError, match=r"hardly fit backbone 'resnet18': \d+ of 100 tensors, at least") as error:
        load_backbone_weights(net, str(tmp_path / "w.pth"))
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_half_of_the_tensors_are_enough_and_the_report_names_the_rest(source, target, tmp_path):
    state = {k: v for k, v in source.state_dict().items() if not k.startswith("layer3.2")}
    state["layer3.0.conv1.weight"] = torch.zeros(8, 32, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    report = load_backbone_weights(target, str(tmp_path / "w.pth"))
    assert set(report.missing) == {k for k in source.state_dict() if k.startswith("layer3.2") and "num" not in k}
    assert report.mismatched == (("layer3.0.conv1.weight", (8, 32, 3, 3), (64, 32, 3, 3)),)


def test_values_that_are_not_finite_are_refused(source, target, tmp_path):
    state = copy.deepcopy(source.state_dict())
    state["layer1.0.conv1.weight"][0] = float("nan")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(DensekitError, match=r"layer1\.0\.conv1\.weight holds NaN or infinity"):
        load_backbone_weights(target, str(tmp_path / "w.pth"))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_does_not_run(target, tmp_path):
    torch.save({"conv1.weight": Bomb(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(DensekitError, match="could run code when read"):
        load_backbone_weights(target, str(tmp_path / "w.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_damaged_files_are_one_line_errors(damage, suffix, source, target, tmp_path):
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(source.state_dict(), path)
    else:
        safetensors.torch.save_file(source.state_dict(), path)
    data = bytearray(path.read_bytes())
    if damage == "flip" and suffix == "safetensors":
        data[3] ^= 0xFF  # the length of the header; safetensors has no checksum over the values
    elif damage == "flip":
        data[len(data) // 2] ^= 0xFF
    path.write_bytes({"cut": data[: len(data) // 2], "flip": data, "empty": b"", "text": b"hello\n" * 100}[damage])
    with pytest.raises(DensekitError, match=r"weights .*w.* (can't be read|are damaged)") as error:
        load_backbone_weights(target, str(path))
    assert "\n" not in str(error.value)


def test_a_file_without_tensors_and_a_missing_file_are_errors(target, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(DensekitError, match="hold no state dict of tensors"):
        load_backbone_weights(target, str(tmp_path / "w.pth"))
    with pytest.raises(DensekitError, match=r"absent\.pth do not exist"):
        load_backbone_weights(target, str(tmp_path / "absent.pth"))


@pytest.fixture
def no_internet(monkeypatch, tmp_path):
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("no_internet")
@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet18", "torchvision/IMAGENET1K_V1", "could not be downloaded from .*; connect to the internet, or fetch"),
        ("resnet18", "torchvision/IMAGENET1K_V7", "has no weights 'IMAGENET1K_V7' for 'resnet18'; did you mean"),
        ("resnet20", "torchvision/IMAGENET1K_V1", "torchvision has no network 'resnet20'"),
        ("resnet18", "timm/a1_in1k", "could not be downloaded .* connect to the internet"),
        ("resnet18", "timm/a1_in2k", "timm has no weights 'resnet18.a1_in2k'; did you mean 'resnet18.a1_in1k'"),
        ("resnet20", "timm/a1_in1k", "timm has no weights 'resnet20.a1_in1k'"),
    ],
)
def test_names_that_are_unknown_or_out_of_reach_are_one_line_errors(name, weights, message):
    with torch.device("meta"):
        net = BACKBONES.build(name, {})
    with pytest.raises(DensekitError, match=message) as error:
        load_backbone_weights(net, weights)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("no_internet")
def test_torchvisions_cache_serves_without_the_internet(tmp_path):
    net, other = BACKBONES.build("resnet18", {}), BACKBONES.build("resnet18", {})
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(net.state_dict(), tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    report = load_backbone_weights(other, "torchvision/IMAGENET1K_V1")
    assert len(report.loaded) == 100
    assert torch.equal(net.layer4[0].conv1.weight, other.layer4[0].conv1.weight)


@pytest.mark.parametrize("name", ["timm/fb_swsl_ig1b_ft_in1k", "timm/resnet18.fb_swsl_ig1b_ft_in1k"])
def test_timms_cache_serves_and_the_licence_is_told(name, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a: asked.append(a) or str(tmp_path / "m"))
    path, licence = pretrained.resolve("resnet18", name)
    assert path == tmp_path / "m"
    assert asked == [("timm/resnet18.fb_swsl_ig1b_ft_in1k", "model.safetensors")]
    assert licence == "cc-by-nc-4.0"


def test_of_two_copies_the_first_is_taken_and_the_other_named(source, target, tmp_path):
    state = {f"module.encoder_q.{key}": value for key, value in source.state_dict().items()}
    state |= {f"module.encoder_k.{key}": torch.zeros_like(value) for key, value in source.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    report = load_backbone_weights(target, str(tmp_path / "w.pth"))
    assert same(source, target)
    assert "found under module.encoder_q.; module.encoder_k. would fit too" in report.summary()


def test_a_teacher_beside_a_student_is_taken(source, target, tmp_path):
    teacher = {f"module.backbone.{key}": value for key, value in source.state_dict().items()}
    student = {key: torch.zeros_like(value) for key, value in teacher.items()}
    torch.save({"student": student, "teacher": teacher, "epoch": 3}, tmp_path / "w.pth")
    load_backbone_weights(target, str(tmp_path / "w.pth"))
    assert same(source, target)
