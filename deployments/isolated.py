"""Calling a function in a process of its own, so that what it imports and allocates is gone afterwards."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from deployments.errors import NotReady

Result = TypeVar("Result")


def call(function: Callable[..., Result], *arguments: Any) -> Result:
    """`function(*arguments)` in a fresh interpreter; what it writes to stderr appears on this one's.

    Function, arguments, result and errors must survive pickling. Here and now instead where torch is in this
    process already, for torch is what callers keep out.

    Raises:
        whatever the function raises; NotReady when the process died, as for want of memory.
    """
    if "torch" in sys.modules:
        return function(*arguments)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # Ray sets it from the replica's `num_cpus`; this work is done before anything is served.
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(
        [sys.executable, "-m", "deployments.isolated"],
        input=pickle.dumps((function, arguments)),
        stdout=subprocess.PIPE,
        env=environment,
        check=False,
    )
    if done.returncode:
        name = getattr(function, "__name__", function)
        raise NotReady(f"the process of {name} ended with status {done.returncode}; its log says why")
    result, error = pickle.loads(done.stdout)
    if error is not None:
        raise error
    value: Result = result
    return value


def main() -> None:
    # What the function or a library prints must not run into the result.
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    function, arguments = pickle.load(sys.stdin.buffer)
    outcome: tuple[Any, Exception | None]
    try:
        outcome = (function(*arguments), None)
    except Exception as error:
        outcome = (None, _sendable(error))
    with answer:
        pickle.dump(outcome, answer)


def _sendable(error: Exception) -> Exception:
    """Itself, or what it says where the other side could not make it anew."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    main()
