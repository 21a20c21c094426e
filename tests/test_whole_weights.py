"""Classifiers of torchvision, timm and Caffe2 as whole models: their logits, their classes, and what starts anew."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision

from densekit import build
from densekit.config import parse
from densekit.errors import DensekitError
from densekit.types import Batch, Classes

IMAGES = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def model_of(backbone, weights, names, *, measured=False, **head):
    tree = {
        "model": {
            "backbone": {"name": backbone},
            "heads": {"thing": {"name": "classifier", **head}},
            "weights": str(weights),
        },
        "data": {"train": {"name": "image_folder"}},
        "train": {"epochs": 1, "optimizer": {"lr": 1e-3}},
    }
    classes = Classes(tuple(names), tuple(range(len(names))))
    return build.model(parse(tree, "test"), classes, measured=measured)


def probabilities(model, images=IMAGES):
    sizes = torch.tensor([images.shape[2:]] * len(images))
    batch = Batch(images, sizes, sizes, list(range(len(images))), torch.zeros(len(images), dtype=torch.int64))
    with torch.inference_mode():
        return model.eval().predict(batch).probabilities


def peer(net, images=IMAGES):
    """A peer's logits, with some statistics in its norms first."""
    net.eval()
    x = torchvision.transforms.functional.normalize(images / 255, MEAN, STD)
    with torch.inference_mode():
        return net(x)


def stirred(net):
    """Random statistics too, for norms that start at 0 and 1 would hide a mistake."""
    torch.manual_seed(1)
    for name, value in net.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(2, 4)
        elif name.endswith("fc.weight"):
            value *= 40  # else all logits are nearly the same
    return net


@pytest.mark.parametrize(
    ("backbone", "net"),
    [
        ("resnet18", lambda: torchvision.models.resnet18(num_classes=12)),
        ("resnet50", lambda: torchvision.models.resnet50(num_classes=12)),
        ("resnet18", lambda: timm.create_model("resnet18", num_classes=12)),
        ("timm/resnet10t", lambda: timm.create_model("resnet10t", num_classes=12)),
        ("timm/regnetx_002", lambda: timm.create_model("regnetx_002", num_classes=12)),
    ],
    ids=["torchvision resnet18", "torchvision resnet50", "timm resnet18", "timm resnet10t", "timm regnetx_002"],
)
def test_a_classifier_of_torchvision_or_timm_gives_its_own_logits(backbone, net, tmp_path):
    net = stirred(net())
    torch.save(net.state_dict(), tmp_path / "net.pth")
    model, report = model_of(backbone, tmp_path / "net.pth", [f"class {i:02}" for i in range(12)], measured=True)
    expected = peer(net)
    assert expected.std(1).min() > 0.1, "nothing to tell apart"
    found = probabilities(model)
    assert (found.log() - expected.log_softmax(1)).abs().max() < 1e-4
    assert "is fc of it" in report[1] or "is head.fc of it" in report[1]


def test_classes_that_name_themselves_are_found_in_any_order(tmp_path):
    net = stirred(torchvision.models.resnet18())
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "net.pth")
    wnids = timm.data.ImageNetInfo().label_names()
    rows = [999, 3, 500]
    model, report = model_of("resnet18", tmp_path / "net.pth", [wnids[r] for r in rows])
    assert (probabilities(model) - peer(net)[:, rows].softmax(1)).abs().max() < 1e-5
    assert "3 of ImageNet's 1000 classes" in report[1]

    small = stirred(torchvision.models.resnet18(num_classes=11))
    torch.save(small.state_dict(), tmp_path / "small.pth")
    numbers = sorted(str(i) for i in range(11))  # "10" stands behind "1"
    model, _ = model_of("resnet18", tmp_path / "small.pth", numbers)
    expected = peer(small).softmax(1)[:, [int(n) for n in numbers]]
    assert (probabilities(model) - expected).abs().max() < 1e-5


def test_a_head_that_can_not_be_taken_starts_anew_and_says_why(tmp_path):
    net = torchvision.models.resnet18(num_classes=12)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    model, report = model_of("resnet18", tmp_path / "net.pth", "abc")
    assert torch.equal(model.backbone.layer4[1].conv2.weight, net.layer4[1].conv2.weight)
    assert report[1] == "the head 'thing' starts anew: fc tells 12 classes, the data set has 3"
    with pytest.raises(DensekitError, match="measured as it is: fc tells 12 classes, the data set has 3; train"):
        model_of("resnet18", tmp_path / "net.pth", "abc", measured=True)

    names = [str(i) for i in range(12)]
    _, report = model_of("resnet18", tmp_path / "net.pth", names, level="c4")
    assert "fc looks at 512 channels and the head at 256" in report[1]
    lacking = {k: v for k, v in net.state_dict().items() if not k.startswith("layer4.1")}
    torch.save(lacking, tmp_path / "lacking.pth")
    _, report = model_of("resnet18", tmp_path / "lacking.pth", names)
    assert "fc stands behind layer4.1.conv1.weight, which did not come from the file" in report[1]
    convnext = timm.create_model("convnext_atto", num_classes=12)
    torch.save(convnext.state_dict(), tmp_path / "convnext.pth")
    _, report = model_of("timm/convnext_atto", tmp_path / "convnext.pth", names)
    assert "head.fc stands behind head.norm.weight, which the backbone does not have" in report[1]
    torch.save({k: v for k, v in net.state_dict().items() if not k.startswith("fc")}, tmp_path / "bare.pth")
    assert "no layer that tells classes" in model_of("resnet18", tmp_path / "bare.pth", names)[1][1]


def test_a_last_layer_with_nan_is_refused(tmp_path):
    state = torchvision.models.resnet18(num_classes=3).state_dict()
    state["fc.weight"][1, 1] = torch.nan
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(DensekitError, match=r"net\.pth: fc\.weight holds NaN"):
        model_of("resnet18", tmp_path / "net.pth", "abc")
