"""A program of the project as a person starts it: a process of its own, which knows no cluster of others."""

import os
import subprocess
import sys

from tests.server import ROOT


def started(module: str, *arguments: object, **env: str) -> "subprocess.Popen[str]":
    """`python -m module arguments…` without the network; what it prints and its errors are in `stdout`."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **env}
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_TOKEN_PATH"):
        env.pop(name, None)
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
