import dataclasses
import errno
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch

from densekit.data import feature_store
from densekit.data.feature_store import FeatureRows, FeatureStore
from densekit.data.loading.batching import collate
from densekit.data.transforms.pipeline import Pipeline
from densekit.errors import DensekitError
from densekit.features.export import Exporter
from densekit.features.recipe import fingerprint
from densekit.features.setup import Export, plain_source
from densekit.features.shards import ShardFolder
from densekit.features.sources import read_boxes
from densekit.ops.roi_align import roi_align
from tests.features.conftest import ROOT, content, make_export, make_network, run_export, tool, write_images
from tests.tools import runs


def maps_of(network, source, index):
    """The network's maps of one image alone."""
    batch = collate([source.sample(0, index)])
    with torch.no_grad():
        return dict(zip([level.name for level in network.levels], network.features(batch)))


def assert_near(given, expected):
    """Equal but for the rounding of another batch size: 1e-5 of the largest value."""
    assert given.shape == expected.shape
    assert (given - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture(scope="module")
def stored(images, network, tmp_path_factory):
    """A whole export and its folder."""
    export, out = make_export(network, images), tmp_path_factory.mktemp("stores") / "store"
    run_export(export, out)
    return export, out


def test_a_row_holds_what_the_network_gives_for_that_image_alone(stored, network):
    export, out = stored
    store = FeatureStore(out)
    assert len(store) == 10
    for index in range(10):
        name = export.source.image_id(index)
        maps = maps_of(network, export.source, index)
        for level in ("c3", "c4"):
            assert_near(store[name][level], maps[level][0])
        height, width = store[name].size
        cells = maps["c4"][0][:, : -(-height // 4), : -(-width // 4)]
        assert_near(store[name]["pooled"], cells.mean((1, 2)))


def test_ids_are_paths_below_the_folder_and_the_index_knows_the_sizes(stored):
    store = FeatureStore(stored[1])
    assert "sub/00004.png" in store
    assert "00004.png" not in store
    assert store["00001.png"].size == (64, 40)
    assert [store.row(i).image for i in (0, 9)] == ["00000.png", "sub/00009.png"]
    assert dict(store["00001.png"]).keys() == {"c3", "c4", "pooled"}
    with pytest.raises(IndexError):
        store.row(10)
    with pytest.raises(DensekitError, match=r"no image 'x.png'"):
        store["x.png"]
    with pytest.raises(DensekitError, match="'c5' was not exported"):
        store["00001.png"]["c5"]


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (3, 1)])
def test_the_bytes_do_not_depend_on_ranks_and_workers(stored, tmp_path, ranks, workers):
    run_export(stored[0], tmp_path / "again", ranks=ranks, workers=workers)
    assert content(tmp_path / "again") == content(stored[1])


@pytest.mark.parametrize("shares_cores", [True, False])
def test_threads_and_processes_decode_the_same_in_order(stored, tmp_path, images, shares_cores):
    """Threads beside a network on the CPU, processes beside one on a GPU."""
    export, folder = stored[0], tmp_path / "images"
    shutil.copytree(images, folder)
    (folder / "00003.png").write_bytes(b"no image")
    source = plain_source(folder, None, None, specs=[], channels=3)
    export = dataclasses.replace(export, source=source)
    store = ShardFolder(tmp_path / "store", export.recipe())
    exporter = Exporter(source, export.extractor(), store, workers=2)
    exporter.network.shares_cores = shares_cores
    times = exporter.run(range(export.recipe().shards()))
    assert times.images == 10
    assert store.finish({"weights": "none", "sha256": None})["unreadable"][0]["image"] == "00003.png"
    kept, whole = FeatureStore(tmp_path / "store"), FeatureStore(stored[1])
    names = [source.image_id(index) for index in range(10) if index != 3]
    assert [kept.row(index).image for index in range(len(kept))] == names
    for name in names:
        assert_near(kept[name]["c4"], whole[name]["c4"])


def test_threads_that_decode_have_transforms_of_their_own(tmp_path, images, network):
    """Albumentations' transforms keep a state while they run."""

    class OneAtATime(Pipeline):
        inside = False

        def __call__(self, sample, random):
            if self.inside:
                raise DensekitError("another thread is inside")
            self.inside = True
            time.sleep(0.02)
            self.inside = False
            return super().__call__(sample, random)

    export = make_export(network, images)
    export.source.transforms = OneAtATime([], training=False)
    store = ShardFolder(tmp_path / "store", export.recipe())
    Exporter(export.source, export.extractor(), store, workers=4).run(range(export.recipe().shards()))
    assert store.finish({"weights": "none", "sha256": None})["unreadable"] == []


def test_the_bytes_do_not_depend_on_the_number_of_threads(stored, tmp_path):
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            export, out = dataclasses.replace(stored[0], shard_images=2, batch_size=1), tmp_path / str(threads)
            run_export(export, out, workers=1)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert content(tmp_path / "1") == content(tmp_path / "3")


@pytest.mark.parametrize("resize", [[{"name": "Resize", "height": 24, "width": 20}], []])
def test_jpegs_are_decoded_at_a_fraction_only_where_asked_for_and_the_store_says_so(tmp_path, network, resize):
    (tmp_path / "images").mkdir()
    smooth = cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8), (64, 96))
    cv2.imwrite(str(tmp_path / "images" / "a.jpg"), smooth)
    plain, reduced = (
        plain_source(tmp_path / "images", None, None, specs=resize, channels=3, reduced=value)
        for value in (False, True)
    )
    one, other = plain.sample(0, 0), reduced.sample(0, 0)
    assert one.original_size == other.original_size == (96, 64)
    assert one.image.shape == other.image.shape
    difference = np.abs(one.image.astype(int) - other.image).mean()
    assert (0 < difference < 3) if resize else difference == 0
    exports = [Export(network, source, ["c4"], ["none"], resize) for source in (plain, reduced)]
    assert "decode" not in exports[0].recipe().images
    assert exports[1].recipe().images["decode"] == "reduced"


_SMALL_SHARDS = ["--backbone", "resnet56", "--levels", "c3,c4", "--size", "96", "96", "--shard-images", "1"]
_SMALL_SHARDS += ["--batch", "1", "--workers", "0", "--device", "cpu", "--precision", "fp32", "--dtype", "float32"]


@pytest.fixture(scope="module")
def left_alone(images, tmp_path_factory):
    """The options of an export of ten shards, and what it leaves when nobody disturbs it."""
    options, out = [*_SMALL_SHARDS, "--images", images], tmp_path_factory.mktemp("alone") / "store"
    assert runs.finish(runs.start("export_features", [*options, "--out", out], out.parent / "log")) == [0]
    return options, content(out)


def test_an_export_killed_twice_at_random_moments_goes_on_to_the_same_bytes(left_alone, tmp_path):
    """``kill -9`` on the real tool."""
    options, expected = left_alone
    out, done = tmp_path / "store", []
    for least in (1, 4):
        processes = runs.start("export_features", [*options, "--out", out], tmp_path / "log")
        while processes[0].is_alive() and len(list(out.glob("shards/*.json"))) < least:
            time.sleep(0.001)
        time.sleep(random.random() * 0.04)
        runs.kill(processes)
        done.append(len(list(out.glob("shards/*.json"))))
    assert 1 <= done[0] <= done[1]
    assert done[1] >= 4, "it went on from the shards that were whole"
    assert runs.finish(runs.start("export_features", [*options, "--out", out], tmp_path / "log")) == [0]
    assert content(out) == expected


@pytest.mark.parametrize("calls", [(2, 3), (7, 12), (22, 6)])
def test_an_export_killed_in_the_middle_of_writing_goes_on_to_the_same_bytes(left_alone, tmp_path, calls):
    """Killed at the n-th fsync or rename, twice, before or after it."""
    options, expected = left_alone
    for call in calls:
        start = runs.start("export_features", [*options, "--out", tmp_path / "store"], tmp_path / "log", die_at=call)
        assert runs.finish(start) == [-signal.SIGKILL]
        with pytest.raises(DensekitError, match=r"not finished|no feature store"):
            FeatureStore(tmp_path / "store")
    assert runs.finish(runs.start("export_features", [*options, "--out", tmp_path / "store"], tmp_path / "log")) == [0]
    assert content(tmp_path / "store") == expected


def test_two_ranks_leave_the_bytes_of_one(left_alone, tmp_path):
    options, expected = left_alone
    processes = runs.start("export_features", [*options, "--out", tmp_path / "store"], tmp_path / "log", ranks=2)
    assert runs.finish(processes) == [0, 0], (tmp_path / "log").read_text()
    assert content(tmp_path / "store") == expected


def test_leftovers_of_a_killed_write_are_cleared_and_a_shard_without_record_is_made_again(stored, tmp_path):
    export, whole = stored
    out = tmp_path / "store"
    run_export(export, out, finish=False)
    (out / "shards" / "00002.json").unlink()
    (out / "shards" / "00003.safetensors").write_bytes(b"half")
    (out / "shards" / ".00003.safetensors.abc.tmp").write_bytes(b"half")
    run_export(export, out)
    assert content(out) == content(whole)


def test_verify_rebuilds_only_the_damaged_shard(images, tmp_path, capsys):
    options = ["--backbone", "resnet8", "--images", str(images), "--levels", "c4", "--shard-images", "3"]
    options += ["--workers", "0", "--device", "cpu", "--out", str(tmp_path / "store")]
    export = tool("export_features")
    export(options)
    before = content(tmp_path / "store")
    damaged = tmp_path / "store" / "shards" / "00001.safetensors"
    changed = bytearray(damaged.read_bytes())
    changed[-1] ^= 1
    damaged.write_bytes(changed)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "store" / "shards").iterdir()}
    assert FeatureStore(tmp_path / "store").verify() == ["shards/00001.safetensors"]
    capsys.readouterr()
    export([*options, "--verify"])
    assert "3 of 4 shards are whole, 1 to make" in capsys.readouterr().out
    assert content(tmp_path / "store") == before
    touched = {p.name for p in times if p.stat().st_mtime_ns != times[p]}
    assert touched == {"00001.safetensors", "00001.json"}


def test_an_unreadable_image_is_listed_with_the_reason(tmp_path, network):
    write_images(tmp_path / "images", 4)
    (tmp_path / "images" / "00001.png").write_bytes(b"no image")
    manifest = run_export(make_export(network, tmp_path / "images"), tmp_path / "store")
    (entry,) = manifest["unreadable"]
    assert entry["image"] == "00001.png"
    assert "not an image" in entry["reason"]
    store = FeatureStore(tmp_path / "store")
    assert len(store) == 3
    with pytest.raises(DensekitError, match=r"00001.png.*could not be read when it was exported.*not an image"):
        store["00001.png"]


def test_the_tool_tells_of_what_it_could_not_use_and_exits_with_3(tmp_path, capsys):
    write_images(tmp_path / "images", 4)
    (tmp_path / "images/00001.png").write_bytes(b"no image")
    for name in ("._00000.png", ".DS_Store", "a.heic"):
        (tmp_path / "images" / name).write_bytes(b"no image")
    options = ["--backbone", "resnet8", "--images", str(tmp_path / "images"), "--levels", "pooled", "--workers", "0"]
    assert tool("export_features")([*options, "--device", "cpu", "--out", str(tmp_path / "store")]) == 3
    printed = capsys.readouterr().out
    assert "left out: 1 .heic;" in printed
    assert "3 rows of pooled" in printed
    assert "not readable: " in printed


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_names_that_are_no_utf_8_are_exported_from_folders_and_lists(tmp_path):
    write_images(tmp_path / "images", 1)
    names = [b"caf\xe9.png", b"caf\xe8.png"]
    for name in names:
        shutil.copy(tmp_path / "images/00000.png", os.fsencode(tmp_path / "images") + b"/" + name)
    (tmp_path / "list.txt").write_bytes(b"\n".join(names))
    options = ["--backbone", "resnet8", "--images", str(tmp_path / "images"), "--levels", "pooled", "--workers", "0"]
    for number, more in enumerate(([], ["--list", str(tmp_path / "list.txt")])):
        assert tool("export_features")([*options, *more, "--device", "cpu", "--out", str(tmp_path / f"{number}")]) == 0
        store = FeatureStore(tmp_path / f"{number}")
        assert all(store[os.fsdecode(name)] is not None for name in names)
    export = tool("export_features")
    assert export([*options, "--device", "cpu", "--out", str(tmp_path / "p"), "--format", "parquet"]) == 0
    table = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "p/shards/00000.parquet")
    assert table["image"].to_pylist() == ["00000.png", r"caf\xe8.png", r"caf\xe9.png"]


def test_a_list_in_utf_16_is_refused(tmp_path):
    (tmp_path / "list.txt").write_text("a.png\n", encoding="utf-16")
    with pytest.raises(DensekitError, match=r"list\.txt: can't be read \(not a text file in UTF-8\)"):
        plain_source(tmp_path, None, tmp_path / "list.txt", specs=[], channels=3)


def test_a_full_disk_is_told_and_the_next_run_goes_on(stored, tmp_path, monkeypatch):
    export, whole = stored
    real, left = os.fsync, iter(range(5))

    def fsync(handle):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr("densekit.files.os.fsync", fsync)
        with pytest.raises(DensekitError, match="the disk is full"):
            run_export(export, tmp_path / "store")
    assert not list(tmp_path.rglob("*.tmp"))
    run_export(export, tmp_path / "store")
    assert content(tmp_path / "store") == content(whole)


def test_another_export_in_the_same_folder_is_refused_with_both_values(stored, images, network):
    before = content(stored[1])
    with pytest.raises(DensekitError, match=r'dtype was "float32" and is now "float16"'):
        run_export(make_export(network, images, dtype="float16"), stored[1])
    with pytest.raises(DensekitError, match=r"backbone.fingerprint was .* and is now"):
        run_export(make_export(make_network(seed=1), images), stored[1])
    assert content(stored[1]) == before


def test_a_folder_with_other_files_is_left_alone(tmp_path, images, network):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DensekitError, match=r"holds other files, such as thesis.txt"):
        run_export(make_export(network, images), tmp_path)


def test_flips_are_rows_of_their_own(tmp_path, images, network):
    views = ["none", "horizontal", "vertical", "both"]
    export = make_export(network, images, views=views, levels=["c4"])
    run_export(export, tmp_path / "store")
    store = FeatureStore(tmp_path / "store")
    assert len(store) == 40
    sample = export.source.sample(0, 0)
    for view, axes in (("horizontal", 1), ("vertical", 0), ("both", (0, 1))):
        flipped = collate([sample])
        flipped.images = torch.zeros(flipped.images.shape, dtype=torch.uint8)
        height, width = sample.image.shape[:2]
        flipped.images[0, :, :height, :width] = torch.from_numpy(np.flip(sample.image, axes).copy()).permute(2, 0, 1)
        with torch.no_grad():
            expected = network.features(flipped)[-1][0]
        assert_near(store[sample.id, view]["c4"], expected)


def test_boxes_are_pooled_as_roi_align_does_and_kept_beside(tmp_path, images, network):
    boxes = {"00000.png": np.array([[4, 4, 30, 20], [0, 0, 64, 40]], np.float32)}
    export = make_export(
        network, images, levels=["roi:c3"], boxes=boxes, specs=[{"name": "Resize", "height": 80, "width": 32}]
    )
    run_export(export, tmp_path / "store")
    row = FeatureStore(tmp_path / "store")["00000.png"]
    scaled = torch.tensor([[2.0, 8, 15, 40], [0, 0, 32, 80]])
    torch.testing.assert_close(row["roi_boxes"], scaled)
    maps = maps_of(network, export.source, 0)
    expected = roi_align([maps["c3"]], scaled[None], [2])
    assert_near(row["roi:c3"], expected)
    assert FeatureStore(tmp_path / "store")["00002.png"]["roi:c3"].shape == (0, 32, 7, 7)


def test_the_torch_data_set_and_a_pickled_store_give_the_same_rows(stored):
    store = pickle.loads(pickle.dumps(FeatureStore(stored[1])))
    rows = FeatureRows(store, ["c4"])
    loader = torch.utils.data.DataLoader(rows, batch_size=None, num_workers=2)
    for index, item in enumerate(loader):
        assert item["image"] == store.row(index).image
        assert torch.equal(item["c4"], store.row(index)["c4"])
    with pytest.raises(DensekitError, match="view 'both' was not exported"):
        FeatureRows(store, views=("both",))


def test_npy_files_load_elsewhere(tmp_path, images, network, stored):
    run_export(make_export(network, images, file_format="npy", views=["none", "horizontal"]), tmp_path / "store")
    array = np.load(tmp_path / "store" / "shards" / "00001" / "00000004_00005.png.c4.npy")
    store = FeatureStore(stored[1])
    np.testing.assert_allclose(array, store["00005.png"]["c4"].numpy(), atol=1e-5)
    assert len(list((tmp_path / "store").rglob("*@horizontal.pooled.npy"))) == 10
    with pytest.raises(DensekitError, match="npy files are for other programs"):
        FeatureStore(tmp_path / "store")


def test_parquet_holds_pooled_vectors(tmp_path, images, network, stored):
    parquet = pytest.importorskip("pyarrow.parquet")
    run_export(make_export(network, images, file_format="parquet", levels=["pooled", "pooled:c3"]), tmp_path / "store")
    table = parquet.read_table(tmp_path / "store" / "shards" / "00000.parquet").to_pydict()
    assert table["image"] == ["00000.png", "00001.png", "00002.png"]
    expected = FeatureStore(stored[1])["00001.png"]["pooled"]
    np.testing.assert_allclose(table["pooled"][1], expected, atol=1e-5)
    assert len(table["pooled:c3"][0]) == 32


def test_parquet_without_pyarrow_names_the_extra(images, network, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DensekitError, match=r"densekit\[parquet\]"):
        make_export(network, images, file_format="parquet", levels=["pooled"])


@pytest.mark.parametrize(
    ("levels", "options", "message"),
    [
        (["c9"], {}, "there is no level 'c9'; did you mean"),
        (["p3"], {}, "there is no level 'p3'"),
        (["c3", "c3"], {}, "'c3' stands twice"),
        (["c3"], {"file_format": "parquet"}, "Parquet holds pooled vectors, not 'c3'"),
        ([], {}, "name at least one level"),
    ],
)
def test_levels_that_cannot_be_exported_are_refused(images, network, levels, options, message):
    with pytest.raises(DensekitError, match=message):
        make_export(network, images, levels=levels, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "resnet19", "--images", "IMAGES"], "no backbone 'resnet19'; did you mean"),
        (["--backbone", "resnet8", "--images", "IMAGES/nowhere"], "no such folder"),
        (["--backbone", "resnet8", "--weights", "no.pth", "--images", "IMAGES"], "no.pth do not exist"),
        (["--backbone", "resnet8"], "say what to export"),
        (["--backbone", "resnet8", "--split", "train"], "--split needs the config"),
        (["--backbone", "resnet8", "--images", "IMAGES", "--size", "8", "8", "--long", "9"], "--size fixes both"),
        (["--backbone", "resnet8", "--images", "IMAGES", "--channels", "2"], "3 values for 2 image channels"),
        (["--backbone", "resnet8", "--annotations", "x.json"], "takes the folder of its images"),
    ],
)
def test_mistakes_in_the_command_are_one_line(images, tmp_path, arguments, message):
    arguments = [a.replace("IMAGES", str(images)) for a in arguments]
    with pytest.raises(DensekitError, match=message) as caught:
        tool("export_features")([*arguments, "--out", str(tmp_path / "store"), "--device", "cpu"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_images_of_two_channels_under_a_network_of_three_are_refused(tmp_path, network):
    np.save(tmp_path / "two.npy", np.zeros((16, 16, 2), np.uint8))
    options = ["--backbone", "resnet8", "--images", str(tmp_path), "--device", "cpu", "--out", str(tmp_path / "store")]
    with pytest.raises(DensekitError, match=r"not one of the first 1 images.*2 channels, but the model takes 3"):
        tool("export_features")(options)


def test_a_list_names_images_and_a_missing_one_is_reported(tmp_path, images, network):
    (tmp_path / "list.txt").write_text("# chosen\n00003.png\n\nsub/00004.png\nlost.png\n")
    source = plain_source(images, None, tmp_path / "list.txt", specs=[], channels=3)
    export = make_export(network, images)
    export.source = source
    manifest = run_export(export, tmp_path / "store")
    assert manifest["rows"] == 2
    assert "there is no such image" in manifest["unreadable"][0]["reason"]


def test_values_beyond_float16_are_an_error_and_not_infinity(tmp_path, images):
    network = make_network()
    network.backbone.layer3[-1].bn2.weight.data.fill_(1e6)
    with pytest.raises(DensekitError, match=r"level c4 holds values up to .* --dtype float32"):
        run_export(make_export(network, images, dtype="float16"), tmp_path / "store")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_one_value_that_is_no_number_is_an_error(tmp_path, images, network, monkeypatch, value):
    export = make_export(network, images, dtype="float16", levels=["c4"])
    maps = export.extractor()._maps
    monkeypatch.setattr(export.extractor(), "_maps", lambda batch: spoiled(maps(batch)))

    def spoiled(given):
        given["c4"][0, 3, 2, 1] = value
        return given

    with pytest.raises(DensekitError, match=r"level c4 holds values up to (nan|inf)"):
        run_export(export, tmp_path / "store")


@pytest.mark.parametrize("key", ["file_format", "views", "backbone", "images"])
def test_a_manifest_whose_recipe_lacks_something_is_called_damaged(stored, tmp_path, key):
    shutil.copytree(stored[1], tmp_path / "store")
    manifest = json.loads((tmp_path / "store/manifest.json").read_text())
    del manifest["recipe"][key]
    (tmp_path / "store/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DensekitError, match=f"manifest.json is damaged .*{key}"):
        FeatureStore(tmp_path / "store")


def test_stores_of_another_format_and_damaged_ones_are_refused(stored, tmp_path):
    run_export(stored[0], tmp_path / "store")
    path = tmp_path / "store" / "manifest.json"
    good = path.read_text()
    path.write_text(good.replace('"format": 1', '"format": 99'))
    with pytest.raises(DensekitError, match="format 99, this densekit reads 1"):
        FeatureStore(tmp_path / "store")
    path.write_text(good[:100])
    with pytest.raises(DensekitError, match="damaged"):
        FeatureStore(tmp_path / "store")
    path.write_text(good)
    (tmp_path / "store" / "shards" / "00000.safetensors").write_bytes(b"short")
    with pytest.raises(DensekitError, match="another size than when it was written"):
        FeatureStore(tmp_path / "store")["00000.png"]["c4"]
    (tmp_path / "store" / "index.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(DensekitError, match=r"index.safetensors is missing or damaged"):
        FeatureStore(tmp_path / "store")
    with pytest.raises(DensekitError, match="no feature store"):
        FeatureStore(tmp_path)


def test_the_fingerprint_follows_the_values_and_not_the_file():
    same, other = make_network(), make_network(channels=1)
    assert fingerprint(same) == fingerprint(make_network())
    assert fingerprint(same) != fingerprint(other)
    same.mean += 1
    assert fingerprint(same) != fingerprint(make_network())


def test_rows_whose_keys_collide_are_told_apart(stored, tmp_path, monkeypatch):
    for module in (feature_store, sys.modules["densekit.features.shards"]):
        monkeypatch.setattr(module, "row_key", lambda image, view: 7)
    run_export(stored[0], tmp_path / "store")
    store = FeatureStore(tmp_path / "store")
    assert [store[store.row(i).image].row for i in range(10)] == list(range(10))


def test_boxes_come_from_annotations_or_results(tmp_path):
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps([{"image_id": 1, "bbox": [1, 2, 3, 4]}, {"image_id": 1, "bbox": [0, 0, 1, 1]}]))
    np.testing.assert_array_equal(read_boxes(file)[1], [[1, 2, 4, 6], [0, 0, 1, 1]])
    file.write_text(json.dumps({"annotations": [{"image_id": "a", "bbox": [1, 2, 0, 4]}]}))
    with pytest.raises(DensekitError, match="box without area"):
        read_boxes(file)
    file.write_text("{}")
    with pytest.raises(DensekitError, match="COCO annotations or results"):
        read_boxes(file)


def test_the_times_name_the_stage_that_holds_the_export_back(images, tmp_path, capsys):
    options = ["--backbone", "resnet8", "--images", str(images), "--levels", "pooled", "--workers", "0"]
    tool("export_features")([*options, "--device", "cpu", "--out", str(tmp_path / "store")])
    line = next(line for line in capsys.readouterr().out.splitlines() if "holds it back" in line)
    assert line.startswith("10 images in")
    assert all(stage in line for stage in ("decode", "network", "disk"))


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_images():
    script = ROOT / "benchmarks" / "feature_export.py"
    done = subprocess.run([sys.executable, script, "--images", "4000"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_images_are_read_as_the_file_says(tmp_path, network):
    """One colour image through the whole export: RGB order and the 0..255 scale."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 2] = 200  # red in OpenCV's order
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "red.png"), image)
    run_export(make_export(network, tmp_path / "images", levels=["c1"]), tmp_path / "store")
    normal = torch.zeros(1, 3, 32, 32) - 0.5
    normal[:, 0] += 200 / 255
    with torch.no_grad():
        expected = network.backbone(normal / 0.25)[0][0]
    assert_near(FeatureStore(tmp_path / "store")["red.png"]["c1"], expected)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_features_do_not_depend_on_the_types_of_the_neighbours(network, tmp_path, batch_size):
    random = np.random.default_rng(0)
    floats = random.uniform(0, 255, (32, 32)).astype(np.float32)
    for folder in ("mixed", "floats", "bytes"):
        (tmp_path / folder).mkdir()
        if folder != "floats":
            cv2.imwrite(str(tmp_path / folder / "a.png"), np.full((32, 32, 3), 90, np.uint8))
        if folder != "bytes":
            cv2.imwrite(str(tmp_path / folder / "b.tif"), floats)
        run_export(make_export(network, tmp_path / folder, batch_size=batch_size), tmp_path / f"store_{folder}")
    mixed, alone, plain = (FeatureStore(tmp_path / f"store_{f}") for f in ("mixed", "floats", "bytes"))
    for level in mixed.levels:
        assert torch.allclose(mixed["b.tif"][level], alone["b.tif"][level], atol=1e-5)
        assert torch.allclose(mixed["a.png"][level], plain["a.png"][level], atol=1e-5)
