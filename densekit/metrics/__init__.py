"""Numbers that say how good predictions are."""

from densekit.types import Task

MAIN_METRIC: dict[Task, str] = {"detection": "AP", "segmentation": "mIoU", "classification": "top1"}
"""The number that chooses the best checkpoint of a task, unless the config names another."""
