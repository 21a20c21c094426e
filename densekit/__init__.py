"""densekit: dense prediction with any ResNet-family backbone."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

__version__ = "0.1.0"

if sys.platform == "darwin":  # torch asks once, while it is loaded: what a Mac's GPU lacks then runs on the CPU
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

# The public surface: name -> where it lives. Looked up on first use, so that `import densekit` does not import torch.
_PUBLIC = {
    "BACKBONES": "densekit.registry",
    "DATASETS": "densekit.registry",
    "HEADS": "densekit.registry",
    "Batch": "densekit.types",
    "Classes": "densekit.types",
    "DenseModel": "densekit.model",
    "DensekitError": "densekit.errors",
    "FeatureStore": "densekit.features",
    "Level": "densekit.types",
    "Predictor": "densekit.predictor",
    "build_model": "densekit.model",
    "load_checkpoint": "densekit.build:from_checkpoint",
    "load_config": "densekit.config:load",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'densekit' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted(__all__)
