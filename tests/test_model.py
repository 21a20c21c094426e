import dataclasses

import pytest
import torch
from torchvision.models import detection

from densekit import build
from densekit.config import parse
from densekit.errors import DensekitError
from densekit.model import DenseModel, build_model
from densekit.registry import BACKBONES, HEADS
from densekit.types import Batch, BoxTargets, Classes, Targets

CLASSES = Classes(("cat", "dog"), (17, 90))
TISSUE = Classes(("rest", "gland", "duct"), (3, 5, 200))
SMALL_DETECTOR = {"name": "faster_rcnn", "channels": 16, "box_head_width": 16}


def config(**model):
    tree = {
        "model": {
            "backbone": {"name": "resnet18"},
            "heads": {"boxes": {"name": "faster_rcnn", "channels": 16, "box_head_width": 16}},
            **model,
        },
        "data": {"train": {"name": "coco"}},
        "train": {"epochs": 1, "optimizer": {"lr": 0.1}},
    }
    return parse(tree, "test")


def batch(*sizes):
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    images = torch.randint(1, 256, (len(sizes), 3, height, width), dtype=torch.uint8)
    count = len(sizes)
    boxes = BoxTargets(
        torch.tensor([[[4.0, 4.0, 20.0, 24.0]]]).repeat(count, 1, 1),
        torch.zeros(count, 1, dtype=torch.int64),
        torch.zeros(count, 1, dtype=torch.bool),
        torch.ones(count, 1, dtype=torch.bool),
    )
    size = torch.tensor(sizes)
    return Batch(images, size, size, list(range(count)), torch.arange(count), Targets(boxes=boxes))


def test_normalisation_is_that_of_one_image_and_the_padding_is_zero():
    model = build_model(config().model, CLASSES)
    given = batch((20, 40), (33, 30))
    normal = model.normalize(given.images, given.sizes)
    assert normal.shape == (2, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (given.images[0, :, :20, :40] / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(normal[0, :, :20, :40], expected, atol=1e-5, rtol=1e-5)
    assert normal[0, :, 20:].abs().max() == 0
    assert normal[1, :, :, 30:].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalisation_gives_the_same_bits_in_every_layout_and_leaves_the_images_alone(layout, dtype):
    model = build_model(config().model, CLASSES)
    given = batch((20, 40), (33, 30))
    images = given.images.to(dtype).contiguous(memory_format=layout)
    before = images.clone()
    normal = model.normalize(images, given.sizes)
    assert torch.equal(images, before)
    for one, (height, width), result in zip(images.float(), given.sizes.tolist(), normal):
        expected = (one - model.mean[0]) / model.std[0]
        assert torch.equal(result[:, :height, :width], expected[:, :height, :width])


def test_predictions_come_in_the_pixels_of_the_file_and_the_data_sets_ids():
    cfg = config()
    cfg.model.heads["boxes"].options.update()
    model = build_model(cfg.model, CLASSES)
    model.head().roi.score_threshold = 0.0
    model.eval()
    small = batch((64, 64))
    large = dataclasses.replace(small, original_sizes=torch.tensor([[128, 192]]))
    with torch.no_grad():
        a, b = model.predict(small), model.predict(large)
    assert a.valid.any()
    assert set(a.labels[a.valid].tolist()) <= {17, 90}
    torch.testing.assert_close(b.boxes, a.boxes * torch.tensor([3.0, 2.0, 3.0, 2.0]))


def test_several_heads_share_one_backbone_and_their_losses_stand_side_by_side():
    backbone = BACKBONES.build("resnet18", {})
    small = {"channels": 16, "box_head_width": 16}
    heads = {name: HEADS.build("faster_rcnn", small, backbone.levels, num_classes=2) for name in ("one", "two")}
    model = DenseModel(backbone, heads, mean=[0.5], std=[0.5], classes=CLASSES)
    losses = model(batch((64, 64)))
    assert {"one.class", "two.class", "one.box", "two.rpn_box"} <= losses.keys()


@pytest.fixture
def two_headed():
    """A detector and a segmenter of other classes on one backbone."""
    heads = {"boxes": {**SMALL_DETECTOR, "score_threshold": 0.0}, "masks": {"name": "unet", "norm": "group"}}
    heads["masks"]["decoder_channels"] = [8, 8, 8, 8]
    built = config(backbone={"name": "resnet8"}, heads=heads).model
    torch.manual_seed(0)
    return build_model(built, {"boxes": CLASSES, "masks": TISSUE}).eval()


def test_each_head_predicts_its_own_classes_from_one_pass_of_the_backbone(two_headed):
    given, passes = batch((64, 64), (64, 64)), []
    two_headed.backbone.register_forward_hook(lambda *_: passes.append(1))
    with torch.inference_mode():
        found = two_headed.predict_all(given)
        assert len(passes) == 1
        boxes, masks = two_headed.predict(given), two_headed.predict(given, "masks")
    assert two_headed.classes == two_headed.classes_of("boxes") == CLASSES
    assert torch.equal(found["boxes"].boxes, boxes.boxes)
    assert set(found["boxes"].labels[found["boxes"].valid].tolist()) <= {17, 90}
    assert all(torch.equal(a, b) for a, b in zip(found["masks"].masks, masks.masks, strict=True))
    assert {int(i) for mask in masks.masks for i in mask.unique()} <= {3, 5, 200}
    assert masks.probabilities[0].shape[0] == len(TISSUE)


def test_a_batch_trains_the_heads_that_it_names(two_headed):
    given = dataclasses.replace(batch((64, 64)), heads=("masks",))
    given.targets.masks = torch.randint(0, 3, (1, 64, 64))
    losses = two_headed(given)
    assert {key.partition(".")[0] for key in losses} == {"masks"}
    sum(losses.values()).backward()
    assert all(p.grad is None for p in two_headed.heads["boxes"].parameters())
    assert next(two_headed.backbone.parameters()).grad is not None
    assert {key.partition(".")[0] for key in two_headed(dataclasses.replace(given, heads=None))} == {"boxes", "masks"}


HEADS_THAT_SHARE = [
    ({"name": "faster_rcnn", "channels": 16, "box_head_width": 16, "score_threshold": 0.0}, ("neck", "rpn.head")),
    ({"name": "retinanet", "channels": 16, "score_threshold": 0.0}, ("neck",)),
    ({"name": "fcos", "channels": 16, "score_threshold": 0.0}, ("neck",)),
    ({"name": "unet", "auxiliary_weight": 0.4, "norm": "group"}, ("decoder",)),
    ({"name": "classifier"}, ()),
]


@pytest.mark.parametrize(("part", "shared"), HEADS_THAT_SHARE, ids=lambda v: v["name"] if isinstance(v, dict) else "")
def test_losses_and_predictions_are_those_of_two_calls_and_run_shared_parts_once(part, shared):
    model = build_model(config(heads={"head": part}).model, CLASSES).eval()
    given = batch((64, 64), (40, 64))
    given.targets.masks = torch.randint(0, 2, (2, 64, 64))
    given.targets.labels = torch.tensor([0, 1])
    calls = []
    for name in shared:
        model.heads["head"].get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.inference_mode():
        losses, by_head = model.losses_and_predictions(given)
        found = by_head["head"]
        assert calls == list(shared)
        apart = model(given), model.predict(given)
    assert losses.keys() == apart[0].keys()
    for name, value in losses.items():
        assert torch.equal(value, apart[0][name]), name
    for field in dataclasses.fields(found):
        ours, expected = getattr(found, field.name), getattr(apart[1], field.name)
        if ours is None or expected is None:
            assert ours is expected, field.name
            continue
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True)), field.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": {"name": "resnet19"}}, "model.backbone.name: there is no backbone 'resnet19'; did you mean"),
        ({"backbone": {"name": "resnet18", "nrom": "group"}}, "model.backbone.nrom: .* did you mean 'norm'"),
        ({"heads": {"boxes": {"name": "faster_rcnn", "neck": "fpm"}}}, "model.heads.boxes.neck: .*not 'fpm'"),
        ({"channels": 2}, "mean has 3 values for 2 image channels"),
    ],
)
def test_a_wrong_part_or_option_is_named_with_its_path(change, message):
    with pytest.raises(DensekitError, match=message):
        build_model(config(**change).model, CLASSES)


@pytest.fixture(scope="module")
def torchvision_file(tmp_path_factory):
    torch.manual_seed(3)
    theirs = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    path = tmp_path_factory.mktemp("weights") / "coco.pth"
    torch.save(theirs.state_dict(), path)
    return theirs.state_dict(), path


def test_torchvisions_coco_detector_starts_a_model_of_the_ids_that_are_used(torchvision_file):
    state, path = torchvision_file
    cfg = config(backbone={"name": "resnet50", "norm_eps": 0}, heads={"b": {"name": "faster_rcnn"}}, weights=str(path))
    model, report = build.model(cfg, CLASSES)
    scores = state["roi_heads.box_predictor.cls_score.weight"]
    torch.testing.assert_close(model.head().roi.scores.weight, scores[[0, 17, 90]])
    deltas = state["roi_heads.box_predictor.bbox_pred.bias"]
    torch.testing.assert_close(model.head().roi.deltas.bias, deltas[[*range(68, 72), *range(360, 364)]])
    assert model.backbone.bn1.eps == 0
    assert report == [f"all weights from {path}"]


def test_torchvisions_detector_does_not_start_a_model_of_ids_that_it_lacks(torchvision_file):
    cfg = config(backbone={"name": "resnet50"}, heads={"b": {"name": "faster_rcnn"}}, weights=str(torchvision_file[1]))
    with pytest.raises(DensekitError, match="classes 1 to 90, the data set's ids run from 1 to 91"):
        build.model(cfg, Classes(("a", "b"), (1, 91)))


def test_the_first_weights_follow_from_the_seed():
    first, second = build.model(config(), CLASSES)[0], build.model(config(), CLASSES)[0]
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
