"""evaluate.py on a config whose weights another program trained: no run, no checkpoint of ours."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

from tests.tools import runs

CROP = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images of 48 x 48 under four of ImageNet's classes."""
    root = tmp_path_factory.mktemp("imagenet") / "val"
    random = np.random.default_rng(0)
    wnids = timm.data.ImageNetInfo().label_names()
    for number in range(12):
        place = root / wnids[(1, 7, 400, 999)[number % 4]]
        place.mkdir(parents=True, exist_ok=True)
        image = cv2.resize(random.integers(0, 256, (6, 6, 3), np.uint8), (48, 48), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(place / f"{number}.png"), image)
    return root


def options(folder, weights):
    return [
        *(f"data.{split}.images={folder}" for split in ("train", "val")),
        f"data.eval_transforms=[{{name: CenterCrop, height: {CROP}, width: {CROP}}}]",
        f"model.weights={weights}",
        "model.backbone.name=resnet18",
        "data.workers=0",
        "train.precision=fp32",
        "evaluation.pictures=2",
    ]


def test_weights_of_torchvision_are_measured_on_a_folder_of_classes(folder, tmp_path):
    torch.manual_seed(0)
    net = torchvision.models.resnet18().eval()
    data = torchvision.datasets.ImageFolder(folder)
    rows = [timm.data.ImageNetInfo().label_names().index(name) for name in data.classes]
    preset = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms(crop_size=CROP, resize_size=48)
    images = torch.stack([preset(Image.open(path)) for path, _ in data.samples])
    with torch.inference_mode():
        logits = net(images)[:, rows]
        net.fc.bias[rows] -= logits.mean(0)  # else one class has it all
        logits -= logits.mean(0)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    expected = (logits.argmax(1) == torch.tensor(data.targets)).float().mean().item()
    assert 0 < expected < 1

    code, printed = runs.call(
        *("evaluate", "imagenet_resnet50", *options(folder, tmp_path / "net.pth")),
        *("--json", tmp_path / "n.json", "--pictures", tmp_path / "pictures"),
    )
    assert code == 0, printed
    assert "4 of ImageNet's 1000 classes, by their ids" in printed
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers["top1"] == pytest.approx(expected)
    assert numbers["top5"] == 1.0
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(data.targets), label_smoothing=0.1).item()
    assert numbers["loss"] == pytest.approx(loss, abs=1e-4)
    assert (tmp_path / "pictures" / "confusion.png").is_file()


def test_what_can_not_be_measured_is_told(folder, tmp_path):
    torch.save(torchvision.models.resnet18(num_classes=7).state_dict(), tmp_path / "net.pth")
    line = runs.refused("evaluate", "imagenet_resnet50", *options(folder, tmp_path / "net.pth"))
    assert "fc tells 7 classes, the data set has 4; train on these classes first" in line
    line = runs.refused("evaluate", "imagenet_resnet50", f"data.val.images={folder}")
    assert "add model.weights=FILE, or give a checkpoint" in line
    line = runs.refused("evaluate", "imagenet_resnet51", f"data.val.images={folder}")
    assert "checkpoint imagenet_resnet51 does not exist" in line


def test_a_run_can_start_from_weights_of_other_classes(folder, tmp_path):
    torch.save(torchvision.models.resnet18(num_classes=7).state_dict(), tmp_path / "net.pth")
    more = [
        "data.train_transforms=[]",
        "train.steps=1",
        "train.batch_size=2",
        "train.ema=null",
        "evaluation.pictures=0",
    ]
    more += ["log.tensorboard=false", "train.schedule.warmup=0"]
    arguments = [*options(folder, tmp_path / "net.pth"), *more]
    code, printed = runs.call("train", "imagenet_resnet50", "--out", tmp_path / "run", *arguments)
    assert code == 0, printed
    assert "the head 'thing' starts anew: fc tells 7 classes, the data set has 4" in printed


def test_a_crop_in_evaluation_is_for_classifiers_alone(shapes, checkpoints, tmp_path):
    crop = "data.eval_transforms=[{name: CenterCrop, height: 16, width: 16}]"
    assert runs.call("evaluate", checkpoints["classification"], crop)[0] == 0
    assert "is for classifiers alone" in runs.refused("evaluate", checkpoints["detection"], crop)
    half = "data.eval_transforms=[{name: CenterCrop, height: 16, width: 16, p: 0.5}]"
    assert "set p: 1" in runs.refused("evaluate", checkpoints["classification"], half)


def test_a_segmenter_of_smp_is_measured_too(shapes, tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch")
    classes = len((shapes / "classes.txt").read_text().split())
    net = smp.Unet("resnet18", encoder_weights=None, classes=classes)
    torch.save(net.state_dict(), tmp_path / "unet.pth")
    tree = runs.config_of("segmentation", shapes)
    tree["model"] = {"backbone": {"name": "resnet18"}, "heads": {"main": {"name": "unet"}}}
    config = runs.write_config(tmp_path / "unet.yaml", tree)
    code, printed = runs.call("evaluate", config, f"model.weights={tmp_path}/unet.pth")
    assert code == 0, printed
    assert "all weights from" in printed
