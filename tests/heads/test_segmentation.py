"""Segmentation heads over any levels: shapes, sizes, modes, errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from densekit.heads.segmentation import SegmentationHead, unet
from densekit.heads.segmentation.pyramid import every_level
from densekit.registry import HEADS
from densekit.types import IGNORE, Batch, DensekitError, Level, Targets

NAMES = (
    "deeplab_v3", "deeplab_v3_plus", "fpn", "linknet", "manet", "pan", "pspnet", "unet", "unet_plus_plus", "upernet"
)  # fmt: skip

RESNET = tuple(Level(f"c{i + 1}", c, 2 << i) for i, c in enumerate((8, 8, 16, 32, 64)))
TRESNET = RESNET[1:]
OUTPUT_STRIDE_16 = (*RESNET[:4], Level("c5", 64, 16))
OUTPUT_STRIDE_8 = (*RESNET[:3], Level("c4", 32, 8), Level("c5", 64, 8))
DARKNET = (Level("c0", 4, 1), *RESNET)
CIFAR = (Level("c1", 8, 1), Level("c2", 16, 2), Level("c3", 32, 4))


def make_maps(levels, batch=2, height=64, width=96):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, level.channels, height // level.stride, width // level.stride, generator=generator)
        for level in levels
    ]


def make_batch(masks, sizes=None, batch=2, height=64, width=96):
    sizes = torch.tensor(sizes or [[height, width]] * batch)
    return Batch(
        images=torch.zeros(batch, 3, height, width, dtype=torch.uint8),
        sizes=sizes,
        original_sizes=sizes,
        ids=list(range(batch)),
        seeds=torch.zeros(batch, dtype=torch.int64),
        targets=None if masks is None else Targets(masks=masks),
    )


def random_masks(classes=3, batch=2, height=64, width=96):
    return torch.randint(0, classes, (batch, height, width), generator=torch.Generator().manual_seed(1))


def test_all_decoders_are_registered():
    assert set(NAMES) <= set(HEADS.names())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("levels", "fine"), [(RESNET, NAMES), (TRESNET, NAMES), (DARKNET, NAMES),
                         (OUTPUT_STRIDE_16, ("unet", "deeplab_v3", "deeplab_v3_plus", "pan", "upernet", "pspnet")),
                         (OUTPUT_STRIDE_8, ("unet", "deeplab_v3", "deeplab_v3_plus", "pan", "upernet", "pspnet")),
                         (CIFAR, tuple(set(NAMES) - {"fpn"}))],
    ids=["resnet", "no_stride_2", "stride_1_too", "output_stride_16", "output_stride_8", "three_levels"],
)  # fmt: skip
def test_every_decoder_takes_any_levels_or_says_why_not(name, levels, fine):
    if name not in fine:
        with pytest.raises(DensekitError, match="head '") as error:
            HEADS.build(name, {}, levels, num_classes=3)
        assert "\n" not in str(error.value)
        return
    head = HEADS.build(name, {}, levels, num_classes=3)
    maps = make_maps(levels)
    logits = head.logits(maps)
    assert logits.shape == (2, 3, 64, 96)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_one_step_reaches_every_parameter_and_lowers_the_loss(name):
    torch.manual_seed(0)
    head = HEADS.build(name, {"auxiliary_weight": 0.4}, RESNET, num_classes=3)
    maps = make_maps(RESNET)
    masks = maps[2][:, :3].argmax(1).repeat_interleave(8, 1).repeat_interleave(8, 2)
    batch = make_batch(masks)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    totals = []
    for _ in range(10):
        losses = head.losses(maps, batch)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert set(losses) == {"cross_entropy", "dice", "auxiliary"}
    assert min(totals[-3:]) < totals[0]
    without = {n for n, p in head.named_parameters() if p.grad is None}
    # c1 and c2 have no part in some decoders; the parameters that exist must all learn.
    assert not without


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_loads_into_a_head_built_anew_with_the_same_logits(name):
    first, second = (HEADS.build(name, {}, RESNET, num_classes=2) for _ in range(2))
    second.load_state_dict(first.state_dict())
    maps = make_maps(RESNET)
    assert torch.equal(first.eval().logits(maps), second.eval().logits(maps))


@pytest.mark.parametrize("name", NAMES)
def test_a_single_pixel_image_gives_one_pixel_of_classes(name):
    """It is padded to one cell of the coarsest map; PAN, which halves that map three times, pads further inside."""
    head = HEADS.build(name, {}, RESNET, num_classes=3).eval()
    found = head.predict(make_maps(RESNET, 1, 32, 32), make_batch(None, sizes=[[1, 1]], batch=1))
    assert found.masks[0].shape == (1, 1)
    assert found.probabilities[0].shape == (3, 1, 1)


def test_group_norm_replaces_every_batch_norm_and_allows_single_images():
    for name in NAMES:
        head = HEADS.build(name, {"norm": "group", "auxiliary_weight": 1.0}, RESNET, num_classes=3)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in head.modules()), name
        loss = head.train().losses(make_maps(RESNET, 1), make_batch(random_masks(batch=1), batch=1))
        assert torch.isfinite(sum(loss.values()))


@pytest.mark.parametrize("name", ["deeplab_v3", "deeplab_v3_plus", "pan", "upernet"])
def test_one_image_under_batch_norm_after_global_pooling_is_refused_with_the_remedy(name):
    head = HEADS.build(name, {}, RESNET, num_classes=3)
    with pytest.raises(DensekitError, match="norm: group"):
        head.train().losses(make_maps(RESNET, 1), make_batch(random_masks(batch=1), batch=1))
    head.eval().losses(make_maps(RESNET, 1), make_batch(random_masks(batch=1), batch=1))


def test_predictions_are_cut_to_each_image_and_agree_with_their_probabilities():
    head = unet(RESNET, num_classes=3).eval()
    found = head.predict(make_maps(RESNET), make_batch(None, sizes=[[64, 96], [33, 47]]))
    assert [tuple(m.shape) for m in found.masks] == [(64, 96), (33, 47)]
    for probability, mask in zip(found.probabilities, found.masks):
        torch.testing.assert_close(probability.sum(0), torch.ones(mask.shape))
        assert torch.equal(probability.argmax(0), mask)


def test_binary_has_one_logit_and_gives_rest_and_object():
    head = unet(RESNET, num_classes=2, mode="binary").eval()
    maps = make_maps(RESNET)
    logits = head.logits(maps)
    found = head.predict(maps, make_batch(None))
    assert logits.shape[1] == 1
    torch.testing.assert_close(found.probabilities[0][1], logits[0, 0].sigmoid())
    assert torch.equal(found.masks[0], (logits[0, 0] > 0).long())
    assert set(head.losses(maps, make_batch(random_masks(2)))) == {"bce", "dice"}


def test_multi_label_gives_a_layer_per_class_and_takes_index_masks_too():
    head = unet(RESNET, num_classes=3, mode="multilabel").eval()
    maps = make_maps(RESNET)
    found = head.predict(maps, make_batch(None))
    assert found.masks[0].shape == (3, 64, 96)
    assert torch.equal(found.masks[0].bool(), head.logits(maps)[0] >= 0)
    index = random_masks(3)
    layers = torch.nn.functional.one_hot(index, 3).permute(0, 3, 1, 2).to(torch.uint8)
    for name, value in head.losses(maps, make_batch(index)).items():
        torch.testing.assert_close(value, head.losses(maps, make_batch(layers))[name])


def test_pixels_outside_the_masks_do_not_change_the_loss():
    """The model pads images further than the masks go; what it pads is not learned from."""
    head = unet(RESNET, num_classes=3).eval()
    maps, masks = make_maps(RESNET), random_masks()
    small = head.losses(maps, make_batch(masks[:, :50, :70]))
    padded = torch.full_like(masks, IGNORE)
    padded[:, :50, :70] = masks[:, :50, :70]
    large = head.losses(maps, make_batch(padded))
    for name, value in small.items():
        torch.testing.assert_close(value, large[name])


def test_the_plain_decoder_sees_the_coarsest_map_only():
    head = unet(RESNET, num_classes=2, plain=True).eval()
    maps = make_maps(RESNET)
    before = head.logits(maps)
    assert before.shape == (2, 2, 64, 96)
    assert torch.equal(before, head.logits([m + 1 for m in maps[:-1]] + maps[-1:]))
    assert not torch.equal(before, head.logits([*maps[:-1], maps[-1] + 1]))


def test_the_auxiliary_classifier_learns_and_predicts_nothing():
    head = unet(RESNET, num_classes=2, auxiliary_weight=0.4, auxiliary_level="c3").eval()
    maps, batch = make_maps(RESNET), make_batch(random_masks(2))
    once = head.losses(maps, batch)["auxiliary"]
    head.auxiliary_weight = 0.8
    torch.testing.assert_close(head.losses(maps, batch)["auxiliary"], 2 * once)
    before = head.predict(maps, batch).probabilities[0]
    nn.init.ones_(head.auxiliary[0].weight)
    assert torch.equal(head.predict(maps, batch).probabilities[0], before)


def test_decoder_losses_are_float32_under_autocast():
    head = unet(RESNET, num_classes=3)
    with torch.autocast("cpu", torch.bfloat16):
        losses = head.losses(make_maps(RESNET), make_batch(random_masks()))
    assert {value.dtype for value in losses.values()} == {torch.float32}


def test_missing_strides_are_filled_with_empty_maps():
    pyramid = every_level(TRESNET)
    assert [(level.channels, level.stride) for level in pyramid.levels] == [
        (0, 2), (8, 4), (16, 8), (32, 16), (64, 32)
    ]  # fmt: skip
    features = pyramid(make_maps(TRESNET))
    assert [tuple(f.shape[1:]) for f in features[:3]] == [(0, 64, 96), (0, 32, 48), (8, 16, 24)]


@pytest.mark.parametrize(
    ("options", "classes", "message"),
    [
        ({"losses": {"dise": 1.0}}, 2, "model.heads.masks.losses.dise: there is no such option; did you mean 'dice'"),
        ({"losses": {"dice": -1.0}}, 2, "losses.dice: input should be greater than or equal to 0, not -1.0"),
        ({"losses": {"dice": 0.0}}, 2, "none has a weight above zero"),
        ({"losses": {"bce": 1.0}}, 2, "use cross_entropy"),
        ({"losses": {"cross_entropy": 1.0}, "mode": "binary"}, 2, "use bce"),
        ({"losses": {"dice": 1.0, "class_weights": [1.0]}}, 2, "one per class"),
        ({"losses": {"dice": 1.0, "class_weights": [1.0, 2.0]}, "mode": "binary"}, 2, "positive_weight"),
        ({"mode": "binary"}, 3, "the data set has 3"),
        ({}, 1, "two classes or more"),
        ({"mode": "multi"}, 2, "mode"),
        ({"decoder_channels": [64, 32]}, 2, "needs 5"),
        ({"plain": True, "attention": "scse"}, 2, "leave one out"),
        ({"auxiliary_level": "c4"}, 2, "auxiliary_weight"),
        ({"auxiliary_level": "c9", "auxiliary_weight": 0.4}, 2, "c1, c2, c3, c4, c5"),
        ({"atention": "scse"}, 2, "attention"),
    ],
)
def test_a_wrong_option_is_one_line_with_the_remedy(options, classes, message):
    with pytest.raises(DensekitError) as error:
        HEADS.build("unet", options, RESNET, num_classes=classes, path="model.heads.masks")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_masks_that_do_not_fit_the_mode_are_refused():
    head = unet(RESNET, num_classes=3)
    maps = make_maps(RESNET)
    with pytest.raises(DensekitError, match="multilabel"):
        head.losses(maps, make_batch(torch.zeros(2, 3, 64, 96, dtype=torch.uint8)))
    with pytest.raises(DensekitError, match="no masks"):
        head.losses(maps, make_batch(None))


def test_a_head_can_be_built_plainly_without_the_registry():
    head = unet(RESNET, num_classes=2, attention="scse", interpolation="bilinear", norm="group")
    assert isinstance(head, SegmentationHead)
    with pytest.raises(TypeError, match="atention"):
        unet(RESNET, num_classes=2, atention="scse")
