"""Detectors as files, for any number of images of any size."""

import pytest
import torch

from densekit.export.files import WrittenOnnx, WrittenProgram, to_onnx
from densekit.export.graph import Graph, trace
from densekit.export.model import ExportedModel
from densekit.export.runners import open_file
from densekit.model import DenseModel
from densekit.registry import HEADS
from tests.export.models import CLASSES, DETECTORS, SIZES, Three, detector, images, of_model

pytest.importorskip("onnxscript")
NOTES = {
    "format": 1,
    "task": "detection",
    "classes": {"names": CLASSES.names, "ids": CLASSES.ids},
    "channels": 3,
    "normalize": {"mean": [0.4], "std": [0.2]},
    "input": "uint8",
}


@pytest.fixture(scope="module")
def graph():
    return Graph(detector("mask_rcnn"))


@pytest.fixture(scope="module")
def files(graph, tmp_path_factory):
    """Both formats of one graph, since tracing takes seconds."""
    folder = tmp_path_factory.mktemp("exported")
    program = trace(graph, torch.uint8)
    WrittenOnnx(to_onnx(program, graph.names)).save(folder / "model.onnx", NOTES)
    WrittenProgram(program).save(folder / "model.pt2", NOTES)
    return {form: open_file(folder / f"model.{form}") for form in ("onnx", "pt2")}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_a_file_gives_what_the_model_gives(graph, files, form, size):
    given = images(*size)
    wanted, found = of_model(graph, given), files[form][0](given)
    assert list(found) == ["boxes", "scores", "class_ids", "valid", "masks"]
    assert wanted["valid"].any()
    for name, value in wanted.items():
        if form == "pt2" or not value.is_floating_point():
            assert torch.equal(found[name], value), name
        else:
            torch.testing.assert_close(found[name], value, atol=2e-4, rtol=1e-5)


def test_a_file_keeps_the_calibration_of_its_checkpoint(files):
    held = {"temperatures": [2.0], "cuts": [0.3, 0.4], "rule": "F1", "split": "val", "before": 0.2, "after": 0.1}
    runner, notes = files["onnx"]
    assert not ExportedModel(runner, notes).calibrations
    assert ExportedModel(runner, {**notes, "calibration": held}).calibrations["exported"].cuts == (0.3, 0.4)


def test_a_file_in_the_place_of_a_model_gives_its_predictions_in_a_batch_of_several_sizes(graph, files):
    from densekit.types import Batch

    sizes = torch.tensor([[40, 64], [40, 60], [33, 64]])
    batch = Batch(images(3, 40, 64), sizes, 2 * sizes, [1, 2, 3], torch.zeros(3))
    for row, (height, width) in enumerate(sizes.tolist()):
        batch.images[row, :, height:] = 0
        batch.images[row, :, :, width:] = 0
    model = ExportedModel(*files["onnx"])
    with torch.no_grad():
        wanted, found = graph.model.predict(batch), model.predict(batch)
    assert torch.equal(found.valid, wanted.valid)
    assert torch.equal(found.labels, wanted.labels)
    assert set(found.labels[found.valid].tolist()) <= {17, 90}
    torch.testing.assert_close(found.boxes, wanted.boxes, atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(found.masks, wanted.masks, atol=1e-4, rtol=1e-5)


def test_the_outputs_of_several_heads_come_under_their_names_in_order():
    torch.manual_seed(0)
    backbone = Three()
    heads = {
        name: HEADS.build(part, DETECTORS.get(part, {}), backbone.levels, path=name, num_classes=2)
        for name, part in (("kind", "classifier"), ("cells", "fcos"))
    }
    graph = Graph(DenseModel(backbone, heads, mean=(0.4,), std=(0.2,), classes=CLASSES).eval())
    of_cells = [f"cells.{name}" for name in ("boxes", "scores", "class_ids", "valid")]
    assert list(of_model(graph, images(*SIZES[0]))) == graph.names == ["kind.probabilities", *of_cells]
