"""One shard of the index as the gateway sees it: called while it is up, known to be down while it is not."""

import asyncio
from contextvars import Context
from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from deployments.errors import NotReady
from serve_app.direct import Direct
from serve_app.remote import ReplicaLost, call, call_once

PAUSE_S = 0.5  # between two attempts to reach a shard that is down


class ShardDown(NotReady):
    """A shard does not answer; what it holds can be neither read nor written now."""


class Shard:
    """Calls methods of one VectorIndex.

    Serve holds calls to a deployment without a replica until there is one again. With `timeout_s` a
    shard that does not even say that it is well within that time gets no more calls, until it does.
    """

    def __init__(
        self, name: str, handle: DeploymentHandle[Any], timeout_s: float | None, lines: bool = False
    ) -> None:
        """With `lines`, searches of a shard on this machine go over a `Line`."""
        self.name = name
        self._handle = handle
        self.direct = Direct(handle) if lines else None
        self._timeout_s = timeout_s
        self._recovery: asyncio.Task[None] | None = None

    async def ask(self, method: str, *args: Any, once: bool = False) -> Any:
        """The method's answer; `once` as in `call_once`.

        Raises:
            what the method raises; ShardDown, never without a timeout.
        """
        ask = call_once if once else self._call
        if self._timeout_s is None:
            return await ask(self._handle, method, *args)
        if self._recovery is not None:
            raise ShardDown(f"{self.name} does not answer")
        asked = asyncio.create_task(ask(self._handle, method, *args))
        try:
            # A slow answer is waited for as long as the shard is well.
            while not (await asyncio.wait({asked}, timeout=self._timeout_s))[0]:
                if not await self._is_there(self._timeout_s):
                    raise ReplicaLost(f"{self.name} does not answer")
            return asked.result()
        except (ReplicaLost, DeploymentUnavailableError):
            if self._recovery is None:
                # Outlives the request, and is no part of its times.
                recovery = self._recover(self._timeout_s)
                self._recovery = asyncio.create_task(recovery, context=Context())
            raise ShardDown(f"{self.name} does not answer") from None
        finally:
            asked.cancel()

    async def _call(self, handle: DeploymentHandle[Any], method: str, *args: Any) -> Any:
        if method == "search" and self.direct is not None:
            return await self.direct.call(method, *args)
        return await call(handle, method, *args)

    async def ready(self) -> None:
        """Returns while the shard can be used, whatever is known of it."""
        await call(self._handle, "ready")

    async def _recover(self, timeout_s: float) -> None:
        while True:
            if await self._is_there(timeout_s):
                self._recovery = None
                return
            await asyncio.sleep(PAUSE_S)

    async def _is_there(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self.ready()
        except (TimeoutError, ReplicaLost, DeploymentUnavailableError):
            return False
        except Exception:  # it answers, and its calls will say what is wrong
            return True
        return True
