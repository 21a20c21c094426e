"""A store told in one page: what its manifest says, by hand."""

from __future__ import annotations

import hashlib
import json
import re
from types import SimpleNamespace

import pytest

from densekit.config_data import Part
from densekit.errors import DensekitError
from densekit.run_report.page import _stores
from tests.features.conftest import make_export, run_export, tool, write_images


@pytest.fixture
def store(network, tmp_path):
    """A store with an image that can't be read and whose name is HTML."""
    write_images(tmp_path / "images", 4)
    (tmp_path / "images" / "<b>broken.png").write_bytes(b"no picture")
    specs = [{"name": "Resize", "height": 32, "width": 48}]
    run_export(make_export(network, tmp_path / "images", specs=specs, dtype="float16"), tmp_path / "store")
    return tmp_path / "store"


def test_a_page_tells_network_levels_sizes_and_what_is_lost(store):
    assert tool("report")([str(store)]) == 0
    text = (store / "report.html").read_text("utf-8")
    rows = dict(re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td></tr>", text))
    manifest = json.loads((store / "manifest.json").read_text())
    assert rows["backbone"] == "resnet8"
    assert rows["SHA-256 of weights and normalisation"] == manifest["recipe"]["backbone"]["fingerprint"]
    assert rows["images"] == "5, 3 channels, 1 of them could not be read"
    assert rows["precision"] == "network in fp32 on cpu, stored in float16"
    assert rows["transforms"] == "Resize (height 32, width 48)"
    assert re.match(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ by densekit ", rows["written"])
    assert "<tr><td>c4</td><td>64</td><td>4</td><td>64 x 8 x 16</td></tr>" in text  # 48 columns are padded to 64
    assert "<tr><td>pooled</td><td>-</td><td>-</td><td>64</td></tr>" in text
    size = sum(path.stat().st_size for path in (store / "shards").glob("*.safetensors"))
    assert f"{size / 1e3:.1f} kB" in text
    for path in (store / "shards").glob("*.safetensors"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in text
    assert "&lt;b&gt;broken.png" in text
    assert "<b>" not in text


def test_a_store_that_can_not_be_told_is_one_line(store, tmp_path):
    with pytest.raises(DensekitError, match="a page tells alone"):
        tool("report")([str(store), str(store), "--out", str(tmp_path / "both.html")])
    manifest = json.loads((store / "manifest.json").read_text())
    for change, said in (({"complete": False}, "not finished"), ({"rows": "many"}, "manifest.json is damaged")):
        (store / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(DensekitError, match=said):
            tool("report")([str(store)])


def test_a_run_tells_the_stores_that_it_learned_from(store, tmp_path):
    learned = Part.model_validate({"name": "features", "store": str(store), "data": {"name": "coco"}})
    gone = Part.model_validate({"name": "features", "store": str(tmp_path / "gone"), "data": {"name": "coco"}})
    pixels = Part.model_validate({"name": "coco", "images": "i", "annotations": "a"})
    for parts, tables in (((learned, learned, pixels), 4), ((learned, gone, None), 4), ((pixels, None, None), 0)):
        data = SimpleNamespace(**dict(zip(("train", "val", "test"), parts, strict=True)))
        text = _stores(SimpleNamespace(run=SimpleNamespace(config=SimpleNamespace(data=data))))
        assert text.count("<table>") == tables
        assert ("gone is no feature store" in text) == (gone in parts)
