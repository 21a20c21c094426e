"""A look at a trained model: its predictions on a few images of a data set, drawn into the run folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from densekit.data.batching import collate
from densekit.engine.writers import Seen, make_writer
from densekit.model import DenseModel
from densekit.types import Dataset


@torch.inference_mode()
def draw_samples(model: DenseModel, data: Dataset, out: Path, count: int) -> None:
    """Predict ``count`` images, evenly spread over the data set, and write them as ``tools/predict.py`` does.

    Args:
        model: on any device.
        data: images as the model sees them: pictures are in their pixels, after the transforms of evaluation.
        out: folder to write.
        count: how many; 0 writes nothing.
    """
    count = min(count, len(data))
    if count == 0:
        return
    model.eval()
    device = model.mean.device
    with make_writer(model.task, model.classes, out) as writer:
        for index in np.linspace(0, len(data) - 1, count).round().astype(int).tolist():
            sample = data.sample(0, index)
            batch = collate([sample])
            batch = dataclasses.replace(batch, original_sizes=batch.sizes)
            name = Path(str(sample.id)).with_suffix("").name
            size = (int(sample.image.shape[0]), int(sample.image.shape[1]))
            seen = Seen(sample.id, Path(f"{name}.png"), size, sample.image)
            writer.add(seen, model.predict(batch.to(device)), 0)
