"""Items as callers see them, and the checks an id, metadata or vector must pass to be stored."""

import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.errors import BadItem, BadVector
from index.keys import is_storable, is_utf8
from index.spec import CollectionSpec

Vectors = NDArray[np.float32]  # [n, d]
Rowids = NDArray[np.int64]  # [n]
Include = Set[Literal["metadata", "vector", "thumbnail"]]

MAX_ID_CHARS = 512
MAX_METADATA_DEPTH = 64
"""Well below the depth at which SQLite (1000) and JSON encoders (about 250) give up."""
MAX_NORM = 1e18
"""Longest vector under dot and l2: the square of twice this still fits float32."""


@dataclass(frozen=True, slots=True)
class Item:
    """What is written. `vector` is any sequence or array of `dimensions` numbers."""

    id: str
    vector: ArrayLike
    metadata: Mapping[str, Any] | None = None
    thumbnail: bytes | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """What is read back; fields that were not asked for are None. `vector` is float32 [d]."""

    id: str
    metadata: dict[str, Any] | None = None
    vector: Vectors | None = None
    thumbnail: bytes | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some records, and the cursor that gives the next ones; None after the last."""

    records: list[Record]
    next_cursor: int | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a search asks for beside its queries; see `Collection.search`."""

    limit: int = 10
    filter: Mapping[str, Any] | None = None
    include: Include = frozenset({"metadata"})
    exact: bool = False
    effort: int | None = None
    fingerprint: str | None = None
    max_bytes: int | None = None


class Hit(NamedTuple):
    """One search result. A higher score is nearer under every metric.

    Its metadata stays the JSON text that is stored, for most hits are only passed on.
    """

    id: str
    score: float
    metadata_json: str | None = None
    vector: Vectors | None = None

    @property
    def metadata(self) -> dict[str, Any] | None:
        """None if it was not asked for."""
        read: dict[str, Any] | None = None if self.metadata_json is None else json.loads(self.metadata_json)
        return read


def content_id(content: bytes | str | Vectors) -> str:
    """An id for an item that came without one: 32 hex digits of the SHA-256 of its content.

    The kind of content is part of the hash: a text and an image of the same bytes differ.
    """
    if isinstance(content, str):
        tagged = b"text:" + content.encode("utf-8", "surrogatepass")
    elif isinstance(content, bytes):
        tagged = b"bytes:" + content
    else:
        tagged = b"vector:" + np.ascontiguousarray(content, dtype="<f4").tobytes()
    return hashlib.sha256(tagged).hexdigest()[:32]


def check_id(id: object, index: int | None = None) -> str:
    """`id` itself, or BadItem pointing at `index`."""
    if not isinstance(id, str) or not 1 <= len(id) <= MAX_ID_CHARS or not is_utf8(id):
        raise BadItem(f"an id must be a string of 1 to {MAX_ID_CHARS} characters of UTF-8", index)
    return id


def metadata_text(metadata: Mapping[str, Any] | None, max_bytes: int, index: int | None = None) -> str:
    """Metadata as compact JSON text, or BadItem pointing at `index`."""
    if metadata is None:
        return "{}"
    if not isinstance(metadata, dict):
        raise BadItem("metadata must be a JSON object", index)
    try:
        _check_json(metadata, MAX_METADATA_DEPTH)
        text = json.dumps(metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError) as error:
        raise BadItem(f"metadata is not JSON that can be stored: {error}", index) from None
    if size > max_bytes:
        raise BadItem(f"metadata is {size} bytes of JSON; at most {max_bytes} are accepted", index)
    return text


def check_items(
    items: Sequence[Item], spec: CollectionSpec, max_metadata_bytes: int
) -> tuple[list[tuple[str, str]], Vectors]:
    """Id and metadata text of each item, and the vectors as they are stored.

    Raises:
        BadItem, BadVector: with the `index` of the item.
    """
    texts = [
        (check_id(item.id, index), metadata_text(item.metadata, max_metadata_bytes, index))
        for index, item in enumerate(items)
    ]
    return texts, item_vectors(items, spec)


def item_vectors(items: Sequence[Item], spec: CollectionSpec) -> Vectors:
    """The items' vectors as they are stored: float32 [n, d], normalised under cosine, or BadVector."""
    rows = [_as_vector(item.vector, spec.dimensions, index) for index, item in enumerate(items)]
    vectors = np.stack(rows) if rows else np.empty((0, spec.dimensions), np.float32)
    return _prepared(vectors, spec)


def query_vectors(queries: ArrayLike, spec: CollectionSpec) -> Vectors:
    """Search vectors [q, d] as float32, normalised under cosine, or BadVector naming the query."""
    if isinstance(queries, np.ndarray) and queries.ndim == 2 and queries.dtype == np.float32:
        if queries.shape[1] != spec.dimensions:
            raise BadVector(_accepted(spec.dimensions, f"{queries.shape[1]} numbers"), 0)
        return _prepared(queries, spec)
    if not isinstance(queries, Sequence | np.ndarray) or isinstance(queries, str | bytes):
        raise BadVector("search vectors must be a list of vectors")
    return item_vectors([Item("", query) for query in queries], spec)


def _as_vector(vector: ArrayLike, dimensions: int, index: int) -> Vectors:
    try:
        array = np.asarray(vector)
    except (TypeError, ValueError):
        raise BadVector(_accepted(dimensions, "something else"), index) from None
    if array.dtype.kind not in "fiu" or array.ndim != 1:  # else numpy would read "1" and True as numbers
        raise BadVector(_accepted(dimensions, "something else"), index)
    if len(array) != dimensions:
        raise BadVector(_accepted(dimensions, f"{len(array)} numbers"), index)
    with np.errstate(over="ignore"):  # too large for float32 becomes inf, refused with the rest
        return array.astype(np.float32)


def _prepared(vectors: Vectors, spec: CollectionSpec) -> Vectors:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise BadVector("a vector holds NaN, infinity or a number beyond float32", int(finite.argmin()))
    # float64 holds the squares of every float32, so a tiny or huge vector still has a direction.
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    if spec.metric == "cosine":
        if not norms.all():
            raise BadVector("a zero vector has no direction, which cosine needs", int(norms.argmin()))
        return np.ascontiguousarray(vectors / norms[:, None], dtype=np.float32)
    if (norms > MAX_NORM).any():
        raise BadVector(f"a vector's length must be at most {MAX_NORM:g}", int((norms > MAX_NORM).argmax()))
    return np.ascontiguousarray(vectors)


def _accepted(dimensions: int, got: str) -> str:
    return f"a vector must be {dimensions} finite numbers; got {got}"


def _check_json(value: object, depth: int) -> None:
    """Raise ValueError for what SQLite's JSON functions would refuse or silently cut short."""
    if isinstance(value, str):
        if not is_storable(value):
            raise ValueError("strings must be UTF-8 without NUL characters")
    elif isinstance(value, dict | list | tuple):
        if depth == 0:
            raise ValueError(f"nested more than {MAX_METADATA_DEPTH} deep")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise TypeError("keys must be strings")
                _check_json(key, depth - 1)
            value = tuple(value.values())
        for element in value:
            _check_json(element, depth - 1)
