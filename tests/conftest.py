"""What tests share: the server of most that go over HTTP, with the starter models; and no collections."""

import gc
from collections.abc import Iterator

import pytest

from tests.server import Server, running


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    classifiers = {"news": {"source": "starter"}}
    limits = {"max_wait_s": 60}  # a machine that is busy with other tests is no overload
    with running({"clip": {"source": "starter"}, "classifiers": classifiers, "limits": limits}) as started:
        yield started


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Without garbage collections, which would break a cycle that keeps what it should not."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
