"""What tests share: two servers, each of which starts and ends once in a run; a bucket; no collections."""

import gc
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from tests.s3 import ENVIRONMENT, s3_server
from tests.server import FLOOD, PATIENT, Server, running

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 — Ray spells it so; at its 15 a server starves beside tests

# An example may take as long as a busy machine needs.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

SHARING = {
    "server": (
        *("contract/", "e2e/test_build_index.py", "e2e/test_photos.py"),
        *("faults/test_neighbours.py", "faults/test_soak.py"),
    ),
    "strained": ("faults/test_crash.py", "faults/test_lost_index.py", "faults/test_overload.py"),
}
"""The files whose tests share a server, by its fixture."""

_RUNNING = pytest.StashKey[dict[str, tuple[ExitStack, Server]]]()
_FAILED = pytest.StashKey[dict[str, Exception]]()


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0].removeprefix("tests/")


def _shared(nodeid: str) -> str | None:
    return next((name for name, files in SHARING.items() if _file(nodeid).startswith(files)), None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """With --dist loadfile, files that share a server go to one worker, the others to whichever is free."""
    if config.getvalue("dist") != "loadfile":
        return None

    class Files(LoadFileScheduling):  # type: ignore[misc]  # pytest-xdist publishes no types
        def _split_scope(self, nodeid: str) -> str:
            return _shared(nodeid) or _file(nodeid)

    return Files(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that share a server come one after the other, and first."""
    for item in items:
        for name in SHARING:
            if name in getattr(item, "fixturenames", ()) and _shared(item.nodeid) != name:
                raise pytest.UsageError(f"{_file(item.nodeid)} is not among those that share {name!r}")
    names = list(SHARING)
    items.sort(key=lambda item: names.index(name) if (name := _shared(item.nodeid)) else len(names))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End a server after the last file that shares it: an idle one takes a sixth of a core from others."""
    name = _shared(item.nodeid)
    servers = item.config.stash.get(_RUNNING, {})
    if name in servers and (nextitem is None or _shared(nextitem.nodeid) != name):
        servers.pop(name)[0].close()


def _running(config: pytest.Config, name: str, args: dict[str, Any]) -> Server:
    servers, failed = config.stash.setdefault(_RUNNING, {}), config.stash.setdefault(_FAILED, {})
    if name in failed:  # it would again, after minutes
        raise failed[name]
    if name not in servers:
        stack = ExitStack()
        config.add_cleanup(stack.close)
        try:
            servers[name] = stack, stack.enter_context(running({**PATIENT, **args}))
        except Exception as error:
            failed[name] = error
            raise
    return servers[name][1]


@pytest.fixture(scope="module")
def server(pytestconfig: pytest.Config) -> Server:
    """The one of most tests that go over HTTP, with the starter models."""
    classifiers = {"news": {"source": "starter"}}
    args = {"clip": {"source": "starter"}, "classifiers": classifiers}
    return _running(pytestconfig, "server", args)


@pytest.fixture(scope="module")
def strained(pytestconfig: pytest.Config) -> Server:
    """One for tests that overload it or kill its index: `FLOOD` photos at a time are too many for it however
    fast the machine, and segments of its collections are written, merged and compacted all the time."""
    args = {
        "clip": {"source": "starter"},
        "gateway": {"health_timeout_s": 60},  # ready in the midst of a flood, not after it
        "limits": {"max_wait_s": 0.1, "max_inflight_images": 10 * FLOOD},
        "index": {"segment_rows": 300, "merge_idle_s": 0.2},
    }
    return _running(pytestconfig, "strained", args)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The query that leads `s3://bucket/…` to a server of its own, whose keys are in the environment."""
    with pytest.MonkeyPatch.context() as patch, s3_server("bucket") as query:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield query


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Without garbage collections, which would break a cycle that keeps what it should not."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
