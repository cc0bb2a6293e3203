"""Typed errors of the index; they survive pickling, so they can cross processes whole."""

from typing import Self


class LocatedError(Exception):
    """Base of every error a caller can be told about, the deployments' included.

    `index` is the place of the offending item or query in the list the caller passed, where there
    is one. Subclasses add no constructor arguments, so that pickling needs nothing but `args`.
    """

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message, index)
        self.message = message
        self.index = index

    def __str__(self) -> str:
        return self.message

    def at(self, index: int) -> Self:
        """The same error, pointing at item `index`."""
        return type(self)(self.message, index)


class VectorIndexError(LocatedError):
    """Base of those of the index."""


class CollectionNotFound(VectorIndexError):  # noqa: N818 — named like the errors of the deployments
    """There is no collection of this name (404)."""


class ItemNotFound(VectorIndexError):  # noqa: N818
    """The collection has no item of this id (404)."""


class CollectionExists(VectorIndexError):  # noqa: N818
    """A collection of this name exists with other settings (409)."""


class ModelMismatch(VectorIndexError):  # noqa: N818
    """The vectors come from another model than those in the collection (409)."""


class BadFilter(VectorIndexError):  # noqa: N818
    """The filter is not in the filter language (422)."""


class BadVector(VectorIndexError):  # noqa: N818
    """A vector the collection cannot hold or search by: wrong length, NaN, zero under cosine (422)."""


class BadItem(VectorIndexError):  # noqa: N818
    """An id or metadata the collection cannot hold (422)."""


class AnswerTooLarge(VectorIndexError):  # noqa: N818
    """What was found is more than may be answered at once (413)."""


class BadLocation(VectorIndexError):  # noqa: N818
    """A snapshot was asked to go where requests may not write (422)."""


class SnapshotExists(VectorIndexError):  # noqa: N818
    """There is a snapshot of this collection at this place (409)."""


class IndexUnavailable(VectorIndexError):  # noqa: N818
    """The files cannot be used now: disk full, read-only, corrupt, closed, held by another process (503)."""


class BadSnapshot(IndexUnavailable):
    """A snapshot was cut off, is damaged, or of another number of shards, so nothing was restored."""
