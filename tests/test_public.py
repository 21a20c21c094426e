import subprocess
import sys

import densekit


def test_the_public_surface_is_small_and_every_name_of_it_exists():
    assert sorted(densekit.__all__) == [
        "BACKBONES",
        "Batch",
        "Classes",
        "DATASETS",
        "DenseModel",
        "DensekitError",
        "FeatureStore",
        "HEADS",
        "Level",
        "Predictor",
        "__version__",
        "build_model",
        "load_checkpoint",
        "load_config",
    ]
    assert all(getattr(densekit, name) is not None for name in densekit.__all__)


def test_a_wrong_name_is_an_attribute_error():
    assert not hasattr(densekit, "build_modle")


def test_importing_densekit_does_not_import_torch():
    assert (
        subprocess.run([sys.executable, "-c", "import sys, densekit; sys.exit('torch' in sys.modules)"]).returncode == 0
    )
