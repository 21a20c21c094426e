"""The classifier head, mixup and accuracy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from densekit.errors import DensekitError
from densekit.heads.classifier import Classifier
from densekit.model import DenseModel
from densekit.ops.mixup import beta_shares, mix_batch
from densekit.registry import BACKBONES, HEADS
from densekit.types import Batch, BoxTargets, Classes, Level, Targets

LEVELS = (Level("c4", 6, 16), Level("c5", 8, 32))


def batch(count: int = 4, size: int = 64, labels: list[int] | None = None, channels: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(count)
    sizes = torch.full((count, 2), size)
    return Batch(
        images=torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator),
        sizes=sizes,
        original_sizes=sizes,
        ids=list(range(count)),
        seeds=torch.randint(2**62, (count,), generator=generator),
        targets=Targets(labels=torch.tensor(labels or [n % 3 for n in range(count)])),
    )


def maps(count: int = 4, size: int = 64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = [(count, level.channels, size // level.stride, size // level.stride) for level in LEVELS]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_logits_are_a_linear_layer_on_the_mean_of_the_coarsest_level():
    head = HEADS.build("classifier", {}, LEVELS, num_classes=3)
    found = head.predict(maps(), batch())
    expected = F.linear(maps()[1].mean((2, 3)), head.fc.weight, head.fc.bias).softmax(1)
    assert torch.allclose(found.probabilities, expected, atol=1e-6)
    assert torch.equal(found.labels, expected.argmax(1))
    loss = head.losses(maps(), batch())["cross_entropy"]
    assert torch.allclose(loss, F.nll_loss(expected.log(), batch().targets.labels))


def test_the_head_and_the_backbone_together_are_torchvisions_classifier():
    import torchvision

    theirs = torchvision.models.resnet18().eval()
    backbone = BACKBONES.build("resnet18", {}).eval()
    head = Classifier(backbone.levels, num_classes=1000)
    state = theirs.state_dict()
    backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    head.fc.load_state_dict({k.removeprefix("fc."): v for k, v in state.items() if k.startswith("fc.")})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = head.predict(backbone(images), batch(2))
        assert torch.allclose(found.probabilities, theirs(images).softmax(1), atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_padding_does_not_count(pool):
    head = Classifier(LEVELS, num_classes=3, pool=pool)
    whole = batch(4, 64)
    padded = dataclasses.replace(whole, sizes=torch.full((4, 2), 32))
    values = maps()
    values[1][:, :, 1:] = 100.0
    values[1][:, :, :, 1:] = 100.0
    alone = head.predict([m[:, :, :1, :1] for m in values], padded).probabilities
    assert torch.allclose(head.predict(values, padded).probabilities, alone, atol=1e-6)
    assert not torch.allclose(head.predict(values, whole).probabilities, alone)


def test_options_choose_level_pool_and_smoothing():
    head = HEADS.build("classifier", {"level": "c4", "pool": "max", "label_smoothing": 0.1}, LEVELS, num_classes=3)
    logits = F.linear(maps()[0].amax((2, 3)), head.fc.weight, head.fc.bias)
    labels = batch().targets.labels
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.allclose(head.losses(maps(), batch())["cross_entropy"], expected)


def test_dropout_acts_in_training_alone():
    head = Classifier(LEVELS, num_classes=3, dropout=0.5)
    assert not torch.equal(*(head.train().predict(maps(), batch()).probabilities for _ in range(2)))
    assert torch.equal(*(head.eval().predict(maps(), batch()).probabilities for _ in range(2)))


def test_logits_are_float32_under_mixed_precision():
    head = Classifier(LEVELS, num_classes=3)
    with torch.autocast("cpu", torch.bfloat16):
        found = head.predict([m.bfloat16() for m in maps()], batch())
        loss = head.losses([m.bfloat16() for m in maps()], batch())["cross_entropy"]
    assert found.probabilities.dtype == loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "c3"}, "level: the backbone has no level 'c3'; did you mean 'c5' or 'c4'"),
        ({"dropout": 1.0}, "dropout: input should be less than 1, not 1.0"),
        ({"mixup": 2}, "mixup: input should be less than or equal to 1, not 2"),
        ({"smoothing": 0.1}, "has no such option; did you mean 'label_smoothing'"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(DensekitError, match=message):
        HEADS.build("classifier", options, LEVELS, num_classes=3)


def test_a_data_set_without_labels_is_told():
    with pytest.raises(DensekitError, match="learns from class labels, and this data set has none"):
        Classifier(LEVELS, num_classes=3).losses(maps(), dataclasses.replace(batch(), targets=None))


def test_mixed_images_and_labels_are_the_same_blend_of_a_pair():
    plain = batch(5, 32)
    mixed = mix_batch(plain, alpha=0.4, num_classes=3)
    share = beta_shares(plain.seeds, 0.4)
    one_hot = F.one_hot(plain.targets.labels, 3).float()
    for i, j in ((0, 1), (1, 0), (2, 3), (3, 2), (4, 4)):
        expected = plain.images[i] * share[i] + plain.images[j].float() * (1 - share[i])
        assert torch.allclose(mixed.images[i], expected, atol=1e-4)
        assert torch.allclose(mixed.targets.labels[i], one_hot[i] * share[i] + one_hot[j] * (1 - share[i]))
    assert torch.allclose(mixed.targets.labels.sum(1), torch.ones(5))


def test_mixing_does_not_depend_on_the_number_of_ranks():
    whole = batch(8, 32)
    halves = [
        dataclasses.replace(
            whole, images=whole.images[part], sizes=whole.sizes[part], ids=whole.ids[part], seeds=whole.seeds[part],
            targets=Targets(labels=whole.targets.labels[part]),
        ) for part in (slice(0, 4), slice(4, 8))
    ]  # fmt: skip
    mixed = mix_batch(whole, alpha=0.2, num_classes=3)
    parts = [mix_batch(half, alpha=0.2, num_classes=3) for half in halves]
    assert torch.equal(mixed.images, torch.cat([p.images for p in parts]))
    assert torch.equal(mixed.targets.labels, torch.cat([p.targets.labels for p in parts]))


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0])
def test_shares_follow_the_beta_distribution(alpha):
    import scipy.stats  # 1.5 s, which collecting the tests need not take in every process

    seeds = torch.from_numpy(np.random.default_rng(0).integers(2**63 - 1, size=4000))
    shares = beta_shares(seeds, alpha)
    assert torch.equal(shares, beta_shares(seeds, alpha))
    # float32 rounds shares near 1 to 1, so the distribution is compared where it is not squeezed against the end.
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        value = scipy.stats.beta.ppf(quantile, alpha, alpha)
        if 1e-5 < value < 1 - 1e-5:
            assert float((shares <= value).float().mean()) == pytest.approx(quantile, abs=0.03)
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.var()) == pytest.approx(scipy.stats.beta.var(alpha, alpha), abs=0.02)


def make_model(**options: object) -> DenseModel:
    torch.manual_seed(0)
    backbone = BACKBONES.build("resnet20", {"in_channels": 1})
    head = HEADS.build("classifier", options, backbone.levels, num_classes=3)
    return DenseModel(
        backbone, {"digit": head}, mean=[0.5], std=[0.5], classes=Classes(("a", "b", "c"), (5, 7, 9)), channels=1
    )


def test_the_training_pass_mixes_and_the_validation_pass_does_not():
    data = batch(4, 32, channels=1)
    mixing, plain = make_model(mixup=1.0).eval(), make_model().eval()
    assert not torch.allclose(mixing(data)["cross_entropy"], plain(data)["cross_entropy"])
    expected = plain(mix_batch(data, alpha=1.0, num_classes=3))["cross_entropy"]
    assert torch.allclose(mixing(data)["cross_entropy"], expected)
    losses, _ = mixing.losses_and_predictions(data)
    assert torch.allclose(losses["cross_entropy"], plain(data)["cross_entropy"])


def test_predictions_come_in_the_data_sets_own_ids():
    found = make_model().eval().predict(batch(4, 32, channels=1))
    assert set(found.labels.tolist()) <= {5, 7, 9}


def test_mixing_beside_boxes_is_refused():
    data = batch()
    boxes = BoxTargets(torch.zeros(4, 1, 4), torch.zeros(4, 1), torch.zeros(4, 1).bool(), torch.zeros(4, 1).bool())
    data.targets.boxes = boxes
    with pytest.raises(DensekitError, match="boxes and masks do not survive; set mixup to 0"):
        Classifier(LEVELS, num_classes=3, mixup=0.2).mix(data)
