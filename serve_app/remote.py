"""Calling a deployment: errors come back as they were raised, a lost replica is tried again once."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from deployments.errors import NotReady, cause_of

Result = TypeVar("Result")


async def call(handle: DeploymentHandle[Any], method: str, *args: Any) -> Any:
    """`method(*args)` on one of the deployment's replicas.

    Every remote method is safe to repeat, so a replica lost during the call costs one retry on
    another and not an error.

    Raises:
        the error the replica raised, unwrapped; NotReady when replicas were lost twice.
    """
    for _ in range(2):
        try:
            return await getattr(handle, method).remote(*args)
        except RayActorError:
            continue
        except Exception as error:
            cause = cause_of(error)
            if cause is error:
                raise
            raise cause from None
    raise NotReady(f"{handle.deployment_name} lost its replica while answering; try again shortly")


async def together(*calls: Coroutine[Any, Any, Result]) -> list[Result]:
    """All results in order; the first error cancels the other calls and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        raise _first(errors) from None
    return [task.result() for task in tasks]


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
