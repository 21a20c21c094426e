"""What an exported file computes: from raw images of any size and number to a few tensors with names.

B images, C channels, H, W size, D detections an image, M side of an instance mask, K classes.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.errors import DensekitError
from densekit.model import DenseModel
from densekit.types import Batch, Classification, Detections, Head

OUTPUTS = {
    "detection": ("boxes", "scores", "class_ids", "valid", "masks"),
    "segmentation": ("probabilities",),
    "classification": ("probabilities",),
}
"""Names of what a graph gives, by task; ``masks`` only from heads that find them."""


class Graph(nn.Module):
    """A model with normalisation and padding inside.

    Args:
        model: in evaluation mode, on the CPU. Of several heads all are computed, from one pass of the backbone.
        pad_to: sides are padded to a multiple of this, as the batches that the model learned from, then to the model's
            stride.
        backbone: only its backbone, which gives its maps.
        half: compute in float16 what mixed precision does, the rest (boxes, scores, probabilities) in float32.

    Raises:
        DensekitError: heads that need a pass of the backbone each.
    """

    def __init__(self, model: DenseModel, *, pad_to: int = 1, backbone: bool = False, half: bool = False) -> None:
        super().__init__()
        if model.statistics is not None:
            raise DensekitError(
                f"the heads {', '.join(model.heads)} look through batch norm statistics of different data sets "
                f"(train.norm_statistics=each), so there is no pass for all; export one at a time by --head"
            )
        self.model, self.pad_to, self.backbone, self.halves = model, pad_to, backbone, half

    @property
    def names(self) -> list[str]:
        """What it gives."""
        if self.backbone:
            return [level.name for level in self.model.levels]
        return [
            f"{self.model.prefix(head)}{name}"
            for head in self.model.heads
            for name in OUTPUTS[self.model.head(head).task]
            if name != "masks" or getattr(self.model.head(head), "learns_masks", False)
        ]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[B, C, H, W] uint8, or float on the same scale of 0 to 255 -> the outputs of ``names``.

        Detection gives ``boxes`` [B, D, 4] xyxy in pixels of the images, best first; ``scores`` [B, D]; ``class_ids``
        [B, D] int64, the data set's own; ``valid`` [B, D] bool: the others are padding; and ``masks`` [B, D, M, M] in
        0..1, see ``Detections``. Segmentation gives ``probabilities`` [B, K, H, W], classification [B, K]; a backbone
        its maps by the names of the levels, of the padded images. Of several heads, names begin with the head's:
        ``cells.boxes``.
        """
        if not self.halves:
            return self._outputs(images)
        with torch.autocast("cpu", torch.float16):
            return self._outputs(images)

    def _outputs(self, images: Tensor) -> dict[str, Tensor]:
        maps: list[Tensor] = self.model.backbone(self._padded(self._normal(images)))
        if self.backbone:
            return dict(zip(self.names, (m.float() for m in maps)))
        found: dict[str, Tensor] = {}
        for name in self.model.heads:
            own = self._of_head(name, maps, images)
            found |= {f"{self.model.prefix(name)}{output}": value for output, value in own.items()}
        return found

    def _of_head(self, name: str, maps: list[Tensor], images: Tensor) -> dict[str, Tensor]:
        head = self.model.head(name)
        if head.task == "segmentation":
            chances: Tensor = head.probabilities(maps)  # type: ignore[attr-defined]  # see ``check``
            return {"probabilities": chances[:, :, : images.shape[2], : images.shape[3]]}
        found = head.predict(maps, _batch(images))
        if isinstance(found, Classification):
            return {"probabilities": found.probabilities}
        assert isinstance(found, Detections)
        ids = self.model.class_ids(name)[found.labels]
        named = {"boxes": found.boxes, "scores": found.scores, "class_ids": ids, "valid": found.valid}
        return named if found.masks is None else {**named, "masks": found.masks}

    def _normal(self, images: Tensor) -> Tensor:
        return (images.float() - self.model.mean) / self.model.std

    def _padded(self, images: Tensor) -> Tensor:
        """Zeros at the bottom and right. One row too many is cut off again, so that a graph knows multiples as such."""
        for multiple in (self.pad_to, self.model.stride):
            if multiple > 1:
                height, width = ((side + multiple - 1) // multiple * multiple for side in images.shape[2:])
                images = F.pad(images, (0, multiple - 1, 0, multiple - 1)).narrow(2, 0, height).narrow(3, 0, width)
        return images.contiguous(memory_format=self.model.memory_format)


def _batch(images: Tensor) -> Batch:
    """Images without padding."""
    count, _, height, width = images.shape
    sides = [torch.full((count,), side, dtype=torch.int64, device=images.device) for side in (height, width)]
    sizes = torch.stack(sides, 1)
    return Batch(images, sizes, sizes, [], torch.zeros_like(sizes[:, 0]))


def check(head: Head) -> None:
    """Refuse a head that no graph can hold.

    Raises:
        DensekitError: a segmentation head of one's own without the method that gives all probabilities at once.
    """
    if head.task == "segmentation" and not hasattr(head, "probabilities"):
        raise DensekitError(
            f"the head {type(head).__name__} can't be exported: it gives its results image by image; add a method "
            "probabilities(maps) -> [B, K, H, W]"
        )


def trace(graph: Graph, dtype: torch.dtype) -> torch.export.ExportedProgram:
    """The graph as torch's exported program, for any number of images of any size.

    Args:
        graph: see there.
        dtype: of the images, uint8 or float32.

    Raises:
        DensekitError: torch can't follow the model; its first line says why.
    """
    if not graph.backbone:
        for name in graph.model.heads:
            check(graph.model.head(name))
    # Unlike one another and other numbers of the model: what is equal to one of them would be taken for it.
    images = torch.zeros(2, graph.model.channels, 3 * graph.model.stride - 7, 4 * graph.model.stride - 9, dtype=dtype)
    any_size = torch.export.Dim.DYNAMIC
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                graph.eval(), (images,), dynamic_shapes={"images": {0: any_size, 2: any_size, 3: any_size}}
            )
    except Exception as error:  # of many kinds, from all over torch
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DensekitError(f"this model can't be exported: torch can't follow it ({line[:300]})") from error
    return _without_guards(program)


def _without_guards(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """For any size: torch notes which strides the example had, such as those of more than one cell.

    They decide nothing, since no part of densekit chooses by a size what to compute; and the check runs other sizes.
    """
    from torch.utils._sympy.numbers import int_oo
    from torch.utils._sympy.value_ranges import ValueRanges

    anything = cast(Any, program)
    for symbol in anything.range_constraints:
        anything.range_constraints[symbol] = ValueRanges(1, int_oo)
    anything._guards_code = []
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names this machine's folders
    return program
