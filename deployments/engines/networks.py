"""The networks of a model before they are compiled: named, and only built where torch may be imported."""

import hashlib
import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

_MAKERS: Final = ("torch", "transformers", "openvino")


@dataclass(frozen=True)
class Built:
    """Modules by name, each with inputs to trace it with, and what else of the directory serving needs.

    The first axis of every input is the batch, the second of a 2-D integer input its length; both are
    dynamic. `facts` is an object of JSON; where a network takes tokens, its `max_tokens` is the greatest
    length that one ever gets.
    """

    modules: "dict[str, tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]"
    facts: dict[str, Any]


@dataclass(frozen=True)
class Networks:
    """What `build(directory)` of the module named `builder` makes out of `files`; by name, not by import."""

    builder: str
    directory: Path
    files: tuple[Path, ...]

    def build(self) -> Built:
        """Brings torch and transformers into this process. Raises SettingsError for a directory that is
        no whole model."""
        built: Built = importlib.import_module(self.builder).build(self.directory)
        return built

    def sources(self) -> str:
        """A digest of the files, 64 hex digits."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.name} {file_sha256(file).hex()}\n".encode())
        return digest.hexdigest()

    def makers(self) -> str:
        """A digest of the code that makes the networks, 64 hex digits: what lies beside the builder and in
        the package above, the conversion, and the versions of other packages."""
        spec = importlib.util.find_spec(self.builder)
        assert spec is not None
        assert spec.origin is not None
        digest = hashlib.sha256(" ".join(f"{name}=={version(name)}" for name in _MAKERS).encode())
        directory = Path(spec.origin).parent
        conversion = Path(__file__).with_name("conversion.py")
        for file in (*sorted(directory.glob("*.py")), *sorted(directory.parent.glob("*.py")), conversion):
            digest.update(file.read_bytes())
        return digest.hexdigest()


def file_sha256(path: Path) -> bytes:
    """Of the file's bytes; read once in a process while the file stays as it is."""
    stat = path.stat()
    return _file_sha256(path, stat.st_mtime_ns, stat.st_size)


@cache
def _file_sha256(path: Path, _modified: int, _size: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
