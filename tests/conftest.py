"""The server most tests over HTTP share: the local default with the starter models."""

from collections.abc import Iterator

import pytest

from tests.server import Server, running


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with running({"clip": {"source": "starter"}}) as started:
        yield started
