"""From images to the tensors that are stored: one pass of the network for all levels that were asked for.

B images, C channels, H, W padded size, h, w cells of a map, R boxes an image, P cells of a pooled box.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densekit.data.loading.batching import round_up, stack_images
from densekit.errors import DensekitError
from densekit.features.recipe import Dtype, neck_levels, neck_of
from densekit.model import DenseModel
from densekit.ops.roi_align import roi_align
from densekit.packed import packed
from densekit.precision import DTYPES, Precision
from densekit.types import Batch, Level

Boxes = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """One image as the network is to see it.

    Attributes:
        image: [H, W, C] uint8 or float32, mirrored already.
        boxes: [R, 4] xyxy in its pixels, for ``roi``; None where there are none to pool.
    """

    image: npt.NDArray[np.generic]
    boxes: Boxes | None = None


class Extractor:
    """Runs a model's backbone (and neck) on batches of views that have one padded size.

    Args:
        model: in evaluation mode, on its device.
        levels: what to give, checked by ``check_levels``.
        dtype: of the result.
        precision: of the network's arithmetic.
        pad_to: images are padded to a multiple of this and of the model's coarsest stride.
        roi_size: P.
    """

    def __init__(
        self,
        model: DenseModel,
        levels: Sequence[str],
        *,
        dtype: Dtype = "float16",
        precision: Precision = "fp32",
        pad_to: int = 32,
        roi_size: int = 7,
    ) -> None:
        self.arithmetic = DTYPES[precision]
        self.model, self.names = packed(model, self.arithmetic), tuple(levels)
        self.device = model.mean.device
        self.dtype = getattr(torch, dtype)
        self.pad_to, self.roi_size = pad_to, roi_size
        self.neck = neck_of(self.model)
        own = {level.name for level in model.levels}
        pyramid: tuple[Level, ...] = getattr(self.neck, "pooled", ())
        self.pooled = [level for level in pyramid if level.name not in own] or [model.levels[-1]]
        self.levels = {level.name: level for level in (*model.levels, *neck_levels(model))}
        self.runs_neck = any(level.name not in own for name in self.names for level in self._sources(name))

    def canvas(self, view: View) -> tuple[int, int]:
        """(height, width) that a view is padded to, whatever stands beside it in a batch."""
        height, width = (round_up(round_up(side, self.pad_to), self.model.stride) for side in view.image.shape[:2])
        return height, width

    @torch.inference_mode()
    def __call__(self, views: Sequence[View]) -> list[dict[str, Tensor]]:
        """The tensors of each view by level, on the CPU.

        Raises:
            DensekitError: a value does not fit into float16.
        """
        batch = self._batch(views)
        with self._fixed(), self._autocast():
            maps = self._maps(batch)
        given: list[dict[str, Tensor]] = [{} for _ in views]
        for name in self.names:
            for one, values in zip(given, self._level(name, maps, views, batch.sizes)):
                one[name] = self._stored(name, values)
        if any(name.partition(":")[0] == "roi" for name in self.names):
            for one, view in zip(given, views):
                one["roi_boxes"] = torch.from_numpy(_boxes(view))
        return given

    def _sources(self, name: str) -> list[Level]:
        """The levels that something to be stored is made from."""
        kind, _, of = name.partition(":")
        if of or kind not in ("pooled", "roi"):
            return [self.levels[of or name]]
        return list(self.pooled) if kind == "roi" else [self.model.levels[-1]]

    def _maps(self, batch: Batch) -> dict[str, Tensor]:
        backbone = self.model.features(batch)
        maps = {level.name: m for level, m in zip(self.model.levels, backbone)}
        if self.runs_neck:
            assert self.neck is not None
            levels: tuple[Level, ...] = self.neck.levels  # type: ignore[assignment]  # nn.Module types its attributes
            maps |= {level.name: m for level, m in zip(levels, self.neck(backbone))}
        return maps

    def _level(self, name: str, maps: dict[str, Tensor], views: Sequence[View], sizes: Tensor) -> list[Tensor]:
        kind, levels = name.partition(":")[0], self._sources(name)
        if kind == "pooled":
            return list(_means(maps[levels[0].name].float(), sizes, levels[0].stride))
        if kind == "roi":
            return self._regions(levels, maps, views)
        return list(maps[name])

    def _regions(self, levels: Sequence[Level], maps: dict[str, Tensor], views: Sequence[View]) -> list[Tensor]:
        """[R, C, P, P] for each view, in the order of its boxes."""
        counts = [len(_boxes(view)) for view in views]
        most = max(1, *counts)
        boxes = torch.zeros(len(views), most, 4)
        for row, view in zip(boxes, views):
            row[: len(_boxes(view))] = torch.from_numpy(_boxes(view))
        chosen = [maps[level.name].float() for level in levels]
        strides = [level.stride for level in levels]
        pooled = roi_align(chosen, boxes.to(self.device), strides, output_size=self.roi_size)
        return [rois[:count] for rois, count in zip(pooled.view(len(views), most, *pooled.shape[1:]), counts)]

    def _stored(self, name: str, values: Tensor) -> Tensor:
        stored = values.to("cpu", self.dtype).contiguous()
        # The two ends tell of infinities and NaN alike, in a twentieth of the time of a look at each value.
        limited = self.dtype == torch.float16 and stored.numel() > 0
        if limited and not all(end.isfinite() for end in stored.aminmax()):
            largest = float(values.float().abs().max())
            raise DensekitError(
                f"level {name} holds values up to {largest:g}, float16 ends at 65504; export with --dtype float32"
            )
        return stored

    def _batch(self, views: Sequence[View]) -> Batch:
        height, width = self.canvas(views[0])
        images = stack_images([view.image for view in views], height, width)
        sizes = torch.tensor([view.image.shape[:2] for view in views], device=self.device)
        return Batch(
            images.to(self.device), sizes, sizes, list(range(len(views))), torch.zeros(len(views), dtype=torch.int64)
        )

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.arithmetic == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.arithmetic)

    def _fixed(self) -> contextlib.AbstractContextManager[object]:
        """Keep cuDNN from choosing another algorithm on each run: two exports give the same bytes."""
        if self.device.type != "cuda":
            return contextlib.nullcontext()  # the flags are the process's own: threads must not set them at once
        tf32 = torch.backends.cudnn.allow_tf32
        fixed: contextlib.AbstractContextManager[object] = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32
        )
        return fixed


def _boxes(view: View) -> Boxes:
    return view.boxes if view.boxes is not None else np.zeros((0, 4), np.float32)


def _means(values: Tensor, sizes: Tensor, stride: int) -> Tensor:
    """[B, C, h, w] -> [B, C] over the cells that an image reaches into."""
    cells = (sizes + stride - 1) // stride
    rows = torch.arange(values.shape[2], device=values.device) < cells[:, :1]
    columns = torch.arange(values.shape[3], device=values.device) < cells[:, 1:]
    inside = (rows[:, :, None] & columns[:, None, :])[:, None]
    return (values * inside).sum((2, 3)) / inside.sum((2, 3))
