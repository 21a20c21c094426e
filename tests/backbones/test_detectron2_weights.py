"""Weights as detectron2 and Caffe2 keep them: pickles of arrays, other names, and images in another order."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
import torchvision

from densekit.backbones.weights import load_backbone_weights, read_state_dict
from densekit.errors import DensekitError
from densekit.registry import BACKBONES


def as_detectron2(key):
    """As detectron2's own convert-torchvision-to-d2.py names them."""
    if "layer" not in key:
        key = "stem." + key
    for t in (1, 2, 3, 4):
        key = key.replace(f"layer{t}", f"res{t + 1}").replace(f"bn{t}", f"conv{t}.norm")
    return key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def as_caffe2(key):
    """The blob of a parameter, as Detectron's ResNets call it."""
    *place, part, kind = key.replace("downsample.0", "branch1").replace("downsample.1", "branch1_bn").split(".")
    if not place:
        name = "conv1" if part == "conv1" else "res_conv1_bn"
    else:
        for number, letter in enumerate("abc", 1):
            part = part.replace(f"conv{number}", f"branch2{letter}").replace(f"bn{number}", f"branch2{letter}_bn")
        name = f"res{int(place[0][-1]) + 1}_{place[1]}_{part}"
    return f"{name}_{'b' if kind == 'bias' else 's' if name.endswith('_bn') else 'w'}"


def write(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol))
    return str(path)


@pytest.fixture
def peer():
    torch.manual_seed(0)
    return torchvision.models.resnet50().eval()


def last_map(net, images):
    for name, module in net.named_children():
        if name == "avgpool":
            break
        images = module(images)
    return images


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up."])
def test_detectron2s_names_load(name, prefix, tmp_path):
    source, target = BACKBONES.build(name, {}), BACKBONES.build(name, {})
    state = {prefix + as_detectron2(key): value for key, value in source.state_dict().items()}
    torch.save({"model": state}, tmp_path / "w.pth")
    report = load_backbone_weights(target, str(tmp_path / "w.pth"))
    assert not report.missing
    assert not report.unexpected
    assert all(torch.equal(v, target.state_dict()[k]) for k, v in source.state_dict().items() if "batches" not in k)


@pytest.mark.parametrize(("name", "protocol"), [("resnet18", 2), ("resnet50", 4)])
def test_a_pickle_of_detectron2_loads_and_says_what_such_weights_may_want(tmp_path, name, protocol):
    torch.manual_seed(0)
    peer = getattr(torchvision.models, name)().eval()
    arrays = {f"backbone.bottom_up.{as_detectron2(k)}": v.numpy() for k, v in peer.state_dict().items()}
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    path = write(tmp_path / "model_final.pkl", content, protocol)
    net = BACKBONES.build(name, {}).eval()
    report = load_backbone_weights(net, path)
    assert not report.missing
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(net(images)[-1], last_map(peer, images), rtol=1e-4, atol=1e-4)
        line = report.summary()
        assert "learned on BGR images and want model.backbone.bgr=true, model.normalize.std=[0.0039" in line
        report = load_backbone_weights(net, path, bgr=True)
        assert torch.allclose(net(images.flip(1))[-1], last_map(peer, images), rtol=1e-4, atol=1e-4)
    assert "bgr=true" not in report.summary()


def test_caffe2s_blobs_load_and_their_stem_is_turned(peer, tmp_path):
    own = {k: v for k, v in peer.state_dict().items() if "running" not in k and "batches" not in k and "fc" not in k}
    assert as_caffe2("layer1.0.conv1.weight") == "res2_0_branch2a_w"
    assert as_caffe2("layer4.2.bn3.bias") == "res5_2_branch2c_bn_b"
    assert as_caffe2("layer2.0.downsample.1.weight") == "res3_0_branch1_bn_s"
    blobs = {as_caffe2(k): v.numpy() for k, v in own.items()}
    assert len(blobs) == len(own)
    blobs |= {"fc1000_w": peer.fc.weight.detach().numpy(), "conv1_w_momentum": np.zeros(3, "f4")}
    net = BACKBONES.build("resnet50", {}).eval()
    report = load_backbone_weights(net, write(tmp_path / "R-50.pkl", {"blobs": blobs}))
    assert not report.missing
    assert report.unexpected == ("fc1000.weight",)
    assert "the stem was turned from BGR to RGB; MSRA's ResNets also want model.normalize.std=" in report.summary()
    images = torch.randn(1, 3, 64, 64)
    for norm in (m for m in peer.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.eps = 1e-12  # Caffe2's norms scale and shift, and that is all; some versions of torch refuse 0
    with torch.inference_mode():
        assert torch.allclose(net(images.flip(1))[-1], last_map(peer, images), rtol=1e-4, atol=1e-4)


def test_the_stride_can_be_in_the_first_convolution_as_the_paper_has_it(peer):
    """torchvision's network with its strides moved by hand."""
    net = BACKBONES.build("resnet50", {"stride_in_1x1": True}).eval()
    net.load_state_dict({k: v for k, v in peer.state_dict().items() if not k.startswith("fc")})
    moved = torchvision.models.resnet50().eval()
    moved.load_state_dict(peer.state_dict())
    for stage in (moved.layer2, moved.layer3, moved.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(net(images)[-1], last_map(moved, images), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(net(images)[-1], last_map(peer, images), atol=1e-2)
    assert [level.stride for level in net.levels] == [2, 4, 8, 16, 32]
    with pytest.raises(DensekitError, match="resnet18 has no 1x1 convolutions"):
        BACKBONES.build("resnet18", {"stride_in_1x1": True})


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(4, dtype=np.int64),
        np.array(3.5, "f2"),
        np.zeros((0, 3), "f4"),
    ],
    ids=["big-endian", "columns first", "integers", "no dimension", "empty"],
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_arrays_of_any_layout_are_read_as_numpy_reads_them(tmp_path, array, protocol):
    found = read_state_dict(write(tmp_path / "a.pkl", {"model": {"w": array}, "lr": np.float64(0.1)}, protocol))
    assert np.array_equal(found["w"].numpy(), array)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_does_not_run(tmp_path):
    path = write(tmp_path / "w.pkl", {"model": {"w": np.zeros(2)}, "meta": Bomb(tmp_path / "ran")})
    with pytest.raises(DensekitError, match=r"holds \S+mkdir beside tensors and plain values, which could run code"):
        read_state_dict(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["cut", "objects", "text", "list", "shape"])
def test_a_damaged_pickle_is_one_line(tmp_path, kind):
    whole = pickle.dumps({"w": np.arange(4, dtype="f4")}, 2)
    content = {
        "cut": whole[: len(whole) // 2],
        "objects": pickle.dumps({"w": np.array([{}, {}], object)}, 2),
        "text": b"hello",
        "list": pickle.dumps([1, 2], 2),
        "shape": whole.replace(b"K\x04\x85", b"K\x05\x85"),
    }[kind]
    (tmp_path / "w.pkl").write_bytes(content)
    with pytest.raises(DensekitError, match=r"w\.pkl") as error:
        read_state_dict(tmp_path / "w.pkl")
    assert "\n" not in str(error.value)


def test_a_file_of_torch_may_be_called_pkl(tmp_path):
    state = {"conv1.weight": torch.arange(4.0)}
    for zipped in (True, False):
        torch.save({"model": state}, tmp_path / "w.pkl", _use_new_zipfile_serialization=zipped)
        assert torch.equal(read_state_dict(tmp_path / "w.pkl")["conv1.weight"], state["conv1.weight"])


def test_bgr_needs_a_stem_of_three_colours(tmp_path):
    net = BACKBONES.build("resnet20", {"in_channels": 1})
    torch.save(net.state_dict(), tmp_path / "w.pth")
    with pytest.raises(DensekitError, match=r"conv1\.weight is \(16, 1, 3, 3\) and reads no three colours"):
        load_backbone_weights(net, str(tmp_path / "w.pth"), bgr=True)
