"""Calling the only replica of a deployment: by the short way while there is one."""

import asyncio
from contextlib import suppress
from contextvars import Context
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.line import Line
from serve_app.middleware import waiting_for_a_call
from serve_app.remote import call

PAUSE_S = 10.0  # before another attempt to lay a line, which a replica on another machine has none of


class Direct:
    """Calls go over a `Line` to a replica on this machine, and through its handle while there is none."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        """Of a deployment with one replica, which has a method `line`."""
        self._handle = handle
        self._line: Line | None = None
        self._laying: asyncio.Task[None] | None = None

    async def call(self, method: str, *args: Any) -> Any:
        """Like `remote.call`, of a method that the replica's exchange has."""
        if self._line is not None and self._line.open:
            with suppress(ConnectionError), waiting_for_a_call():
                return await self._line.call(method, *args)
        if self._laying is None:
            # Outlives the request, and is no part of its times.
            self._laying = asyncio.create_task(self._lay(), context=Context())
        return await call(self._handle, method, *args)

    async def laid(self) -> None:
        """Returns once there is a line, or none could be laid."""
        with suppress(Exception):
            await self._connect()

    async def _lay(self) -> None:
        try:
            await self._connect()
        except Exception:  # it is not needed; what is wrong with the replica, its calls will say
            await asyncio.sleep(PAUSE_S)
        finally:
            self._laying = None

    async def _connect(self) -> None:
        line = await Line.to(await call(self._handle, "line"))
        if self._line is not None and self._line.open:  # laid by another attempt meanwhile
            line.close()
        else:
            self._line = line
