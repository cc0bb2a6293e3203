"""A model directory that tests of models share; none writes to it."""

from pathlib import Path

import pytest

from tests import assets


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with small random networks."""
    return assets.clip_directory(tmp_path_factory.mktemp("tiny-clip"))
