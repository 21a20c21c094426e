import pytest
import yaml

from densekit import config
from densekit.errors import DensekitError

MINIMAL = """
model:
  backbone: {name: resnet18}
  heads: {boxes: {name: faster_rcnn}}
data:
  train: {name: coco, images: "${SOME_FOLDER:-data}/x", annotations: a.json}
train: {epochs: 3, optimizer: {lr: 1e-3}}
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.delenv("SOME_FOLDER", raising=False)
    file = tmp_path / "run.yaml"
    file.write_text(MINIMAL)
    return file


def test_overrides_replace_values_and_keep_the_rest(path):
    loaded = config.load(
        path, ["train.epochs=5", "model.heads.boxes.neck=c5", "data.train_transforms=[{name: Resize}]"]
    )
    assert loaded.train.epochs == 5
    assert loaded.model.heads["boxes"].options == {"neck": "c5"}
    assert loaded.data.train_transforms == ({"name": "Resize"},)
    assert loaded.data.train.options["annotations"] == "a.json"


@pytest.mark.parametrize(
    ("overrides", "steps", "epochs"),
    [
        (["train.steps=5"], 5, None),
        (["train.steps=5", "train.epochs=2", "train.steps=null"], None, 2),
        (["train.epochs=2"], None, 2),
    ],
    ids=["steps", "both", "epochs"],
)
def test_steps_on_the_command_line_take_the_place_of_the_files_epochs(path, overrides, steps, epochs):
    loaded = config.load(path, overrides)
    assert (loaded.train.steps, loaded.train.epochs) == (steps, epochs)
    back = config.override(config.load(path, ["train.steps=5"]), ["train.epochs=4"])
    assert (back.train.steps, back.train.epochs) == (None, 4)


def test_steps_and_epochs_together_on_the_command_line_are_refused(path):
    with pytest.raises(DensekitError, match="give either epochs or steps"):
        config.load(path, ["train.steps=4", "train.epochs=2"])


def test_every_required_key_that_is_missing_is_named_with_a_value_that_can_be_copied(path):
    path.write_text("model: {backbone: {}}")
    with pytest.raises(DensekitError) as told:
        config.load(path)
    lines = str(told.value).partition("for example, ")[2]
    for key in ("model.backbone.name: resnet50", "model.heads: {boxes", "data: {train", "train: {epochs"):
        assert key in lines
    config.parse(yaml.safe_load("\n".join(f"{k}: {v}" for k, v in config._LIKE.items() if "." not in k)), "copied")


def test_a_number_in_exponent_form_is_a_number(path):
    assert config.load(path).train.optimizer.lr == 0.001


def test_the_dumped_config_loads_to_an_equal_one(path, tmp_path):
    loaded = config.load(path, ["train.clip=2.5", "data.fixed_size=[64, 96]"])
    (tmp_path / "again.yaml").write_text(config.dump(loaded))
    assert config.load(tmp_path / "again.yaml") == loaded


def test_fixed_size_is_one_or_several(path):
    one, several = (config.load(path, [f"data.fixed_size={given}"]) for given in ("[8, 16]", "[[8, 16], [16, 8]]"))
    assert (one.data.fixed_size, several.data.fixed_size) == (((8, 16),), ((8, 16), (16, 8)))
    assert config.load(path, ["data.fixed_size=null"]).data.fixed_size == ()
    for wrong in ("[8]", "[[8, 16], 8]", "[[8, 0]]", "wide"):
        with pytest.raises(DensekitError, match=r"data.fixed_size: .*give \[height, width\] in pixels, or a list"):
            config.load(path, [f"data.fixed_size={wrong}"])


def test_environment_variables_are_replaced_with_their_default_where_unset(path, monkeypatch):
    assert config.load(path).data.train.options["images"] == "data/x"
    monkeypatch.setenv("SOME_FOLDER", "/elsewhere")
    assert config.load(path).data.train.options["images"] == "/elsewhere/x"


def test_a_variable_without_default_and_value_is_named(path, monkeypatch):
    monkeypatch.delenv("UNSET_HERE", raising=False)
    with pytest.raises(DensekitError, match="UNSET_HERE is not set"):
        config.load(path, ["data.train.images=${UNSET_HERE}/x"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epocs=3", "train.epocs: there is no such key; did you mean 'epochs'"),
        ("trian.epochs=3", "trian: there is no such key; did you mean 'train'"),
        ("train.optimizer.lr=fast", "train.optimizer.lr: input should be a valid number.*not 'fast'"),
        ("train.batch_size=0", "train.batch_size: .*greater than or equal to 1, not 0"),
        ("train.accumulate=3", "batch_size 8 must be a multiple of accumulate 3"),
        ("model.normalize.std=[0, 1, 1]", "std must be above 0"),
        ("model.heads={}", "model.heads: "),
        ("nonsense", "not of the form key.path=value"),
        ("train.epochs=[1", "not valid YAML"),
        ("data.train_transforms.3.p=1", "is not a position in a list"),
        ("seed.deeper=1", "nothing stands below|has no keys"),
    ],
)
def test_a_wrong_override_is_explained_in_one_line(path, override, message):
    overrides = ["data.train_transforms=[{name: Resize}]", "seed=0", override]
    with pytest.raises(DensekitError, match=message) as error:
        config.load(path, overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "- a\n- b", "a: b: c", "seed: 1\nseed: 2", "{1: {[2]: 3}}", "\x00", "a: &x [*x]"])
def test_a_file_that_is_no_config_is_refused_in_one_line(tmp_path, text):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(DensekitError, match=r"bad\.yaml") as error:
        config.load(file)
    assert "\n" not in str(error.value)


def test_a_missing_file_names_its_nearest_sibling(path):
    with pytest.raises(DensekitError, match=r"run2\.yaml does not exist; did you mean 'run\.yaml'"):
        config.load(path.with_name("run2.yaml"))


def test_yaml_runs_no_code(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("seed: !!python/object/apply:os.mkdir ['" + str(tmp_path / "made") + "']")
    with pytest.raises(DensekitError, match="not valid YAML"):
        config.load(file)
    assert not (tmp_path / "made").exists()
