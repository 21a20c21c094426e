"""Options of ``tools/predict.py`` that would do nothing for the heads and the inputs at hand."""

from __future__ import annotations

import argparse

from densekit.console import refuse_without_effect
from densekit.model import DenseModel


def refuse_in_vain(args: argparse.Namespace, model: DenseModel, *, videos: bool) -> None:
    """Refuse them.

    Args:
        args: that were given.
        model: with the heads that predict.
        videos: whether the inputs are videos.

    Raises:
        DensekitError: the first one.
    """
    tasks = {model.head(name).task for name in model.heads}
    detects, segments, given = "detection" in tasks, "segmentation" in tasks, args.annotations is not None
    refuse_without_effect(
        ("--score", args.score is not None and not detects, "detectors"),
        ("--annotations", given and videos, "images"),
        ("--formats", args.formats is not None and (not detects or videos), "detectors on images"),
        ("--probabilities", args.probabilities and (not segments or videos), "segmenters on images"),
        ("--overlap", args.overlap is not None and (args.window or args.tiles) is None, "--window and --tiles"),
        ("--batch", args.batch is not None and args.window is not None, "images as a whole, not for --window"),
    )
