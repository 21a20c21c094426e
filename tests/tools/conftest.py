from __future__ import annotations

import pytest

from tests.tools import runs


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A generated data set of a few tiny images, for all three tasks."""
    return runs.make_data(tmp_path_factory.mktemp("data") / "shapes")
