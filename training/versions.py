"""Writing `models/<name>/<version>/`: versions count from 1 and appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from deployments.models.versions import published


def publish(model: Path, write: Callable[[Path, int], None]) -> Path:
    """Let `write(directory, version)` fill a directory, then give it the next free version.

    The version `write` is told is the one it gets unless another run publishes at the same moment.
    """
    model.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=model, prefix=".new-"))
    try:
        version = max(published(model), default=0) + 1
        write(scratch, version)
        # mkdtemp and safetensors keep what they make to its owner; the server may be another user.
        scratch.chmod(0o755)
        for file in scratch.iterdir():
            file.chmod(0o644)
        while True:
            try:
                os.rename(scratch, model / str(version))  # fails where a filled directory has the name
            except OSError:
                if not (model / str(version)).exists():
                    raise
                version += 1
            else:
                return model / str(version)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
