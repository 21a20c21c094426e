import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from densekit.data.loading.batching import collate
from densekit.data.transforms.pipeline import Pipeline
from densekit.model import DenseModel
from densekit.registry import BACKBONES, DATASETS, HEADS

TEXT = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text()


@pytest.fixture
def examples(monkeypatch):
    """Run the three example files; what they register is forgotten afterwards."""
    for registry in (BACKBONES, HEADS, DATASETS):
        registry.names()
        monkeypatch.setattr(registry, "_builders", dict(registry._builders))
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.S):
        # A module's annotations are looked up in its own names, so each example gets its own.
        exec(compile(code, "CONTRIBUTING.md", "exec"), {"__name__": "example"})


def test_the_example_parts_train_together(examples):
    data = DATASETS.build("stripes", {"count": 4}, transforms=Pipeline([]), seed=0)
    backbone = BACKBONES.build("stairs", {"channels": 8}, in_channels=3)
    head = HEADS.build("mean_classifier", {}, backbone.levels, num_classes=2)
    model = DenseModel(backbone, {"what": head}, mean=[0.5], std=[0.5], classes=data.classes)
    batch = collate([data.sample(0, i) for i in range(4)])
    sum(model(batch).values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.predict(batch).labels.shape == (4,)
    assert isinstance(model.backbone, nn.Module)
    assert batch.images.dtype == torch.uint8
    assert np.all(batch.targets.labels.numpy() == [0, 1, 0, 1])
