"""Calling a deployment: errors come back as they were raised, a lost replica is tried again once."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from grpc import StatusCode
from grpc.aio import AioRpcError
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from deployments.errors import NotReady, TooLarge, cause_of
from serve_app.middleware import waiting_for_a_call

Result = TypeVar("Result")


async def call(handle: DeploymentHandle[Any], method: str, *args: Any) -> Any:
    """`method(*args)` on one of the deployment's replicas, for methods that are safe to repeat.

    A replica lost during the call costs one retry on another, or on its successor, and not an error.

    Raises:
        the error the replica raised, unwrapped; NotReady when replicas were lost twice.
    """
    try:
        return await call_once(handle, method, *args)
    except ReplicaLost:
        return await call_once(handle, method, *args)


async def call_once(handle: DeploymentHandle[Any], method: str, *args: Any) -> Any:
    """Like `call`, for methods that answer something else the second time, such as deletions."""
    try:
        with waiting_for_a_call():
            return await _method(handle, method).remote(*args)
    except (RayActorError, AioRpcError) as error:
        if isinstance(error, AioRpcError) and error.code() == StatusCode.RESOURCE_EXHAUSTED:
            raise TooLarge("the request or its answer is too large to pass on; ask for less") from None
        raise ReplicaLost(f"{handle.deployment_name} lost its replica while answering; try again") from None
    except Exception as error:
        cause = cause_of(error)
        if cause is error:
            raise
        raise cause from None


# By handle and method: to make one takes Serve longer than the whole of our own part of a call.
_METHODS: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


def _method(handle: DeploymentHandle[Any], name: str) -> Any:
    methods = _METHODS.setdefault(handle, {})
    if name not in methods:
        method = getattr(handle, name)
        if isinstance(method, DeploymentHandle):
            # Of what goes to and fro every class is importable; Serve's default looks at each whether it is.
            method = method.options(request_serialization="pickle", response_serialization="pickle")
        methods[name] = method
    return methods[name]


class ReplicaLost(NotReady):
    """The replica went away in the middle of the call; whether it did its work is not known."""


async def together(*calls: Coroutine[Any, Any, Result]) -> list[Result]:
    """All results in order; the first error cancels the other calls and is raised as itself.

    No TaskGroup: after an error that of Python 3.11 leaves the task counted as cancelled, and a time limit
    around it ends in CancelledError.
    """
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    finally:
        tasks.clear()  # their errors lead to this frame
