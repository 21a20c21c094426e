"""densekit's operators in ONNX, one by one, against its own."""

import pytest
import torch
from torch import nn

from densekit.ops.nms import greedy_nms
from densekit.ops.roi_align import roi_align

pytest.importorskip("onnxscript")
from densekit.export.files import WrittenOnnx, to_onnx
from densekit.export.runners import open_file


class Both(nn.Module):
    """Suppression as the stages of a detector have it: by level, by class, and of all; pooling from two levels."""

    def forward(self, boxes, valid, groups, fine, coarse):
        by_level = greedy_nms(boxes, valid, 0.6, parts=[30, 20, 10])
        by_class = greedy_nms(boxes, valid, 0.5, groups=groups)
        pooled = roi_align([fine, coarse], boxes[..., :4] * 8, (4, 8), output_size=3)
        aligned = roi_align([fine, coarse], boxes[..., :4] * 8, (4, 8), output_size=2, sampling_ratio=1, aligned=True)
        return by_level, by_class, greedy_nms(boxes, valid, 0.7), pooled, aligned


def test_suppression_is_exact_at_the_threshold_too_and_pooling_is_that_of_all_levels(tmp_path):
    import onnxruntime

    generator = torch.Generator().manual_seed(0)
    # Sides of a few whole pixels: overlaps of exactly 0.5, 0.6 and 0.7 are many.
    corner = torch.randint(0, 4, (2, 60, 2), generator=generator)
    boxes = torch.cat([corner, corner + torch.randint(1, 11, (2, 60, 2), generator=generator)], 2).float()
    valid = torch.rand(2, 60, generator=generator) > 0.2
    groups = torch.randint(0, 4, (2, 60), generator=generator)
    maps = [torch.randn(2, 5, side, side, generator=generator) for side in (24, 12)]
    given = (boxes, valid, groups, *maps)
    both = Both()
    program = torch.export.export(both, given)
    WrittenOnnx(to_onnx(program, ["by_level", "by_class", "all", "pooled", "aligned"])).save(tmp_path / "a.onnx", {})
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    for empty in (False, True):
        now = (boxes, valid & ~torch.tensor(empty), *given[2:])
        found = session.run(None, {i.name: value.numpy() for i, value in zip(session.get_inputs(), now)})
        wanted = both(*now)
        for mine, theirs in zip(wanted[:3], found[:3]):
            assert mine.any() != empty
            assert torch.equal(mine, torch.from_numpy(theirs))
        for mine, theirs in zip(wanted[3:], found[3:]):
            torch.testing.assert_close(torch.from_numpy(theirs), mine.contiguous())


def test_a_file_of_another_program_is_refused(tmp_path):
    from densekit.errors import DensekitError

    (tmp_path / "a.onnx").write_bytes(b"nothing")
    (tmp_path / "a.pt2").write_bytes(b"nothing")
    for name in ("a.onnx", "a.pt2", "none.onnx"):
        with pytest.raises(DensekitError, match=name):
            open_file(tmp_path / name)
