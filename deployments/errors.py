"""Typed errors of the deployments; they survive pickling, so they can cross processes whole."""

from typing import Any

from index.errors import LocatedError


class SightlineError(LocatedError):
    """Base of those of the deployments."""


class BadInput(SightlineError):  # noqa: N818 — the name every model contract uses
    """An item is well-formed for its transport but no model can use it (422)."""


class TooLarge(BadInput):
    """An item is over a limit on its size; the message names the limit (413)."""


class Overloaded(SightlineError):  # noqa: N818
    """More work is queued than will be done in time; nothing was started (429)."""


class NotReady(SightlineError):  # noqa: N818
    """The model or index this needs cannot answer now (503)."""


class ModelFailed(SightlineError):  # noqa: N818
    """The model raised on a batch; every waiter of that batch is told (503)."""


class ModelLost(ModelFailed):
    """No batch will run in this process again, which has to be replaced (503)."""


class EncoderMismatch(SightlineError):  # noqa: N818
    """The vectors come from another encoder than a head was trained on (409)."""


def cause_of(error: BaseException) -> BaseException:
    """The error as it was raised, out of any wrapper a remote call put around it."""
    cause: Any = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error
