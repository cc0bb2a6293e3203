"""Where snapshots may lie: directories and object stores, and what a request may name of them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from index.errors import BadLocation, IndexUnavailable

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

# No part begins with a dot, so none leads upwards, and each reads the same in a path and in a URI.
PART = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]{0,199}")


class Location(NamedTuple):
    """A directory `below` one that the settings name: an absolute path, or a URI as pyarrow takes it."""

    base: str
    below: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Without the query, which says how to get there."""
        return "/".join([self.base.partition("?")[0].rstrip("/"), *self.below])

    def open(self) -> "FileSystem":
        """A file system whose paths are relative to this directory. Connects to nothing yet.

        Raises:
            BadLocation: a link leads out of the base.
            IndexUnavailable: the base is of a kind that this installation cannot open.
        """
        from pyarrow import fs  # here, for a replica is to start quickly

        try:
            if _is_uri(self.base):
                filesystem, path = fs.FileSystem.from_uri(self.base)
            else:
                filesystem, path = fs.LocalFileSystem(), self.base
        except (ValueError, OSError) as error:
            raise IndexUnavailable(f"{self} cannot be opened: {error}") from error
        whole = "/".join([path.rstrip("/"), *self.below])
        if isinstance(filesystem, fs.LocalFileSystem) and not (
            Path(whole).resolve().is_relative_to(Path(path).resolve())
        ):
            raise BadLocation(f"{self} is a link to another place; name a directory that is none")
        return fs.SubTreeFileSystem(whole, filesystem)


def requested(to: str, allowed: Sequence[str]) -> Location:
    """The location a request means by `to`, at or below one of those allowed.

    A relative path counts from the first of them. A URI may leave out the query of the allowed one,
    and may have no other: it decides where the server's credentials are sent.

    Raises:
        BadLocation: it is anywhere else; the message says what is accepted.
    """
    for base in allowed if _is_uri(to) or to.startswith("/") else allowed[:1]:
        below = _below(to, base)
        if below is not None and all(PART.fullmatch(part) for part in below):
            return Location(base, below)
    places = ", ".join(str(Location(base)) for base in allowed)
    raise BadLocation(
        f"a snapshot cannot go to {to!r}: give a name, or a path at or below {places} "
        "(index.snapshot_locations), of letters, digits and any of . = - _"
    )


def _below(to: str, base: str) -> tuple[str, ...] | None:
    if not _is_uri(to) and not to.startswith("/"):
        return tuple(to.rstrip("/").split("/"))
    (to_root, to_parts, to_query), (root, parts, query) = _split(to), _split(base)
    if to_root != root or to_query not in ("", query) or to_parts[: len(parts)] != parts:
        return None
    return to_parts[len(parts) :]


def _split(location: str) -> tuple[str, tuple[str, ...], str]:
    """Scheme with host or bucket, the path's parts, and the query; file:///a is /a."""
    if not _is_uri(location):
        return "file://", _parts(location), ""
    uri = urlsplit(location)
    return f"{uri.scheme}://{uri.netloc}", _parts(uri.path), uri.query + ("#" if uri.fragment else "")


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part)


def _is_uri(location: str) -> bool:
    return "://" in location
