"""The server most tests over HTTP share: the local default with the starter models."""

from collections.abc import Iterator

import pytest

from tests.server import Server, running


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    classifiers = {"news": {"source": "starter"}}
    with running({"clip": {"source": "starter"}, "classifiers": classifiers}) as started:
        yield started
