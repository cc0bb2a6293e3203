"""Which shard an item belongs to, where each shard's files lie, and whether the shards belong together."""

import re
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

from index.errors import IndexUnavailable
from index.spec import CollectionSpec
from index.store import FILE_NAME

DIRECTORY = re.compile(r"shard-\d+-of-(\d+)")


def shard_of(id: str, shards: int) -> int:
    """The shard that holds the item of this id, for ever: the hash is part of the format on disk."""
    if shards == 1:
        return 0
    digest = blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % shards


def shard_name(shard: int, shards: int) -> str:
    return f"shard-{shard}-of-{shards}"


def shard_count(name: str) -> int | None:
    """Of how many shards one is, whose directory is called so; None if it is none."""
    match = DIRECTORY.fullmatch(name)
    return int(match[1]) if match else None


def clash(specs: Mapping[str, CollectionSpec]) -> str | None:
    """Why a collection cannot be used that is not the same on all of these shards, by name; None if it is."""
    one, *others = sorted(specs, key=lambda shard: (specs[shard].fingerprint is None, shard))
    for other in others:
        if differences := specs[other].differences(specs[one]):
            return (
                f"{other} and {one} hold different collections of this name "
                f"({'; '.join(differences)}): delete it and make it again"
            )
    return None


def shard_directory(root: Path, shard: int, shards: int) -> Path:
    """One shard keeps its collections in `root` itself; each of several has a directory below it."""
    return root if shards == 1 else root / shard_name(shard, shards)


def shard_directories(root: Path) -> list[Path]:
    """Where the shards under `root` keep their collections, however many there are.

    Raises:
        IndexUnavailable: there is no such directory.
    """
    if not root.is_dir():
        raise IndexUnavailable(f"{root} is not the index of a data directory")
    shards = sorted(path for path in root.iterdir() if shard_count(path.name) and path.is_dir())
    return [path for path in shards if not (path / FILE_NAME).exists()] or [root]


def check_shard_count(root: Path, shards: int) -> None:
    """Raise IndexUnavailable if the files under `root` were written with another number of shards."""
    try:
        entries = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
        found = {count for path in entries if (count := _count_of(path))}
    except OSError as error:
        raise IndexUnavailable(
            f"the index directory {root.name!r} cannot be used: {error.strerror}"
        ) from error
    if other := found - {shards}:
        raise IndexUnavailable(
            f"{root} holds an index of {min(other)} {'shard' if other == {1} else 'shards'}, so "
            f"index.shards={shards} would not find its items: set index.shards={min(other)}, or use another "
            "data_dir and add the items there again"
        )


def _count_of(path: Path) -> int | None:
    """The number of shards that this directory is a sign of; a collection may be called like a shard."""
    if (path / FILE_NAME).exists():
        return 1
    return shard_count(path.name)
