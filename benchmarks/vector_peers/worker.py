"""A process that calls functions for another one, possibly in another Python environment.

Functions are sent by name and their arguments pickled, over stdin and stdout; so both sides need the same
Python version and must trust each other. The process ends when its stdin does: it cannot outlive its parent.
"""

import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

ROOT = Path(__file__).parents[2]
STOP_TIMEOUT_S = 30


class Worker:
    """Runs module-level functions in a process of `python`, one at a time. Use as a context manager."""

    def __init__(self, python: str | Path, environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [str(python), "-m", "benchmarks.vector_peers.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the parent, which then closes stdin
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result. Raises RuntimeError with the process's own traceback if it failed."""
        pickle.dump((function, args, kwargs), self._requests)
        self._requests.flush()
        try:
            succeeded, result = pickle.load(self._answers)
        except EOFError:
            raise RuntimeError(f"the worker process ended with {self._process.wait()}") from None
        if not succeeded:
            raise RuntimeError(f"in the worker process:\n{result}")
        returned: R = result
        return returned

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self._requests.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    while True:
        try:
            function, args, kwargs = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = True, function(*args, **kwargs)
        except Exception:
            answer = False, traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
