"""A program of the project as a person starts it: a process of its own, which knows no cluster of others."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.server import ROOT
from tests.waiting import PATIENCE_S


@contextmanager
def started(module: str, *arguments: object, **env: str) -> Iterator["subprocess.Popen[str]"]:
    """`python -m module arguments…` without the network; what it prints and its errors are in `stdout`.

    Where it has not ended with the block, it is killed.
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **env}
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_TOKEN_PATH"):
        env.pop(name, None)
    command = [sys.executable, "-m", module, *map(str, arguments)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def said(process: "subprocess.Popen[str]") -> str:
    """All that it prints, once it has ended."""
    out, _ = process.communicate(timeout=PATIENCE_S)
    return out
