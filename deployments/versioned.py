"""The versions of one model a replica serves: swapped while requests run, tried on a share of them."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from configs.settings import VersionSettings
from deployments.models.base import ModelInfo

logger = logging.getLogger("ray.serve")


class Loaded(Protocol):
    """A loaded, warmed-up version."""

    info: ModelInfo

    def check(self) -> None:
        """Raises when it cannot answer."""


Version = TypeVar("Version", bound=Loaded)


@dataclass(frozen=True)
class _Serving(Generic[Version]):
    stable: Version
    candidate: Version | None
    percent: float


class Versioned(Generic[Version]):
    """Holds the stable version and, if there is one, a candidate for some of the requests.

    A new choice is loaded beside the one that serves, and takes its place in one assignment:
    a request runs on the version it began with, which goes when the last one has its answer. What
    cannot be loaded changes nothing.
    """

    def __init__(self, load: Callable[[str], Version]) -> None:
        """`load` takes a version as the settings name it; it blocks for seconds and may raise."""
        self._load = load
        self._serving: _Serving[Version] | None = None
        self._first = asyncio.Event()  # Serve's local testing mode does not await `reconfigure`
        self._problem = ""
        self._loading = ""  # the version
        self._swap = asyncio.Lock()
        self._swapping: asyncio.Task[None] | None = None

    async def reconfigure(self, choice: VersionSettings) -> None:
        """The first time, load and raise what goes wrong; later, swap in the background.

        In the background because Serve sends a replica no requests until its `reconfigure` returns.
        """
        if self._serving is None:
            await self._change(choice)
        else:
            self._swapping = asyncio.create_task(self._try_change(choice))

    async def pick(self, draw: float) -> Version:
        """The version for a request that drew `draw` out of 0 to 100."""
        await self._first.wait()
        serving = self._now()
        if serving.candidate is not None and draw < serving.percent:
            return serving.candidate
        return serving.stable

    async def info(self) -> ModelInfo:
        """The stable version's, with notes on the candidate and on a version that did not load."""
        await self._first.wait()
        serving = self._now()
        notes = list(serving.stable.info.notes)
        if serving.candidate is not None:
            version, digest = serving.candidate.info.version, serving.candidate.info.fingerprint
            notes.append(
                f"candidate version {version} ({digest[:12]}) answers {serving.percent:g}% of requests"
            )
        if self._problem:
            notes.append(self._problem)
        return replace(serving.stable.info, notes=tuple(notes))

    def check(self) -> None:
        """Raises when a version that has been loaded cannot answer."""
        if self._serving is None:
            return  # not started yet, which Serve waits for
        serving = self._serving
        serving.stable.check()
        if serving.candidate is not None:
            serving.candidate.check()

    async def _try_change(self, choice: VersionSettings) -> None:
        try:
            await self._change(choice)
        except Exception as error:
            stable = self._now().stable.info.version
            self._problem = f"version {self._loading} did not load, version {stable} still serves: {error}"
            logger.exception("%s", self._problem)

    async def _change(self, choice: VersionSettings) -> None:
        async with self._swap:  # one after the other: the last choice made is the one that stays
            self._loading = choice.version
            stable = await asyncio.to_thread(self._load, choice.version)
            candidate = None
            if choice.candidate is not None and choice.candidate_percent > 0:
                self._loading = choice.candidate
                candidate = await asyncio.to_thread(self._load, choice.candidate)
            self._serving = _Serving(stable, candidate, choice.candidate_percent)
            self._problem = ""
            self._first.set()

    def _now(self) -> _Serving[Version]:
        assert self._serving is not None
        return self._serving
