"""The options of ``tools/export_features.py`` that belong together, and what stands for those left out; no torch."""

from __future__ import annotations

import argparse

from densekit.console import refuse_without_effect
from densekit.errors import DensekitError

OF_A_BACKBONE = {"weights": None, "channels": 3, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "seed": 0}
"""What a checkpoint or a config says itself, with its defaults (ImageNet's numbers)."""


def settle(args: argparse.Namespace) -> argparse.Namespace:
    """The options with their defaults; those that nothing would look at are refused.

    Raises:
        DensekitError: the first such option, or a value out of range.
    """
    own_data = args.annotations is not None or args.split is not None
    refuse_without_effect(
        *(
            (f"--{name}", args.backbone is None and getattr(args, name) is not None, "--backbone")
            for name in OF_A_BACKBONE
        ),
        ("key.path=value", bool(args.backbone and args.overrides), "a config, and --backbone has none"),
        *(
            (f"--{name}", args.split is not None and getattr(args, name) is not None, "images without --split")
            for name in ("images", "annotations", "list")
        ),
        (
            "--boxes",
            args.boxes is not None and not any(n.startswith("roi") for n in args.levels or ()),
            "the level roi",
        ),
        ("--reduced", args.reduced and own_data, "a folder or a list; data sets decode so wherever it suffices"),
    )
    for name, default in OF_A_BACKBONE.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if not all(value > 0 for value in args.std):
        raise DensekitError(f"--std {' '.join(map(str, args.std))}: must be above 0 in every channel")
    return args
