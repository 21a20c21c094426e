"""Maps keep their precision when they are enlarged, shown on a GPU without values: its rules apply there too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from densekit.heads.faster_rcnn.fpn import FPN
from densekit.ops.enlarging import nearest, nearest_in_own_dtype
from densekit.registry import HEADS
from densekit.types import Level

GPU = torch.device("cuda")
LEVELS = [Level(f"c{i}", 8, 2**i) for i in range(1, 6)]


@pytest.fixture
def mixed_on_a_gpu():
    """Tensors of a GPU that need none, in mixed precision; torch.autocast itself looks for one first."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    with FakeTensorMode(), GPU:
        yield
    torch.set_autocast_enabled("cuda", False)
    torch.set_autocast_dtype("cuda", torch.float16)


class Enlarged(TorchDispatchMode):
    """Records the precision of maps that were enlarged."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.dtypes += [out.dtype] if "upsample_nearest2d" in str(func) else []
        return out


def maps():
    sides = [64 // level.stride for level in LEVELS]
    return [torch.empty(1, level.channels, side, side, dtype=torch.bfloat16) for level, side in zip(LEVELS, sides)]


def test_torch_itself_widens_them(mixed_on_a_gpu):
    x = torch.empty(1, 2, 4, 4, dtype=torch.bfloat16)
    assert F.interpolate(x, scale_factor=2).dtype == torch.float32
    assert nearest(x, (8, 8)).dtype == torch.bfloat16
    with nearest_in_own_dtype(GPU):
        assert F.interpolate(x, scale_factor=2).dtype == torch.bfloat16
        assert F.interpolate(x, size=(8, 8), mode="bilinear").dtype == torch.float32
        assert F.conv2d(x.float(), torch.empty(3, 2, 1, 1)).dtype == torch.bfloat16


def test_a_pyramid_stays_in_its_precision(mixed_on_a_gpu):
    with Enlarged() as enlarged:
        pyramid = FPN(LEVELS, channels=8)(maps())
    assert enlarged.dtypes == [torch.bfloat16] * 3
    assert {level.dtype for level in pyramid} == {torch.bfloat16}


def test_a_decoder_of_another_library_stays_in_its_precision(mixed_on_a_gpu):
    head = HEADS.build("unet", {"decoder_channels": (256, 8, 8, 8, 8)}, LEVELS, num_classes=2)
    with Enlarged() as enlarged:
        logits = head.logits(maps())
    assert len(enlarged.dtypes) >= 4
    assert set(enlarged.dtypes) == {torch.bfloat16}
    assert (logits.dtype, logits.shape) == (torch.float32, (1, 2, 64, 64))


def test_the_numbers_are_torchs():
    x = torch.rand(2, 3, 3, 4)
    assert torch.equal(nearest(x, (7, 9)), F.interpolate(x, size=(7, 9)))
