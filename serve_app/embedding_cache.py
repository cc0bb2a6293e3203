"""Embeddings by content: what was embedded lately is not asked for again, nor what is being embedded now."""

import asyncio
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

from deployments.errors import SightlineError
from deployments.models.base import Vectors
from serve_app.inputs import Content
from serve_app.middleware import waiting_for_a_call

OVERHEAD_BYTES = 500
"""Of an entry beside its vector's numbers: the key, the objects that hold them, a place in the table."""


class Embedding(NamedTuple):
    """One content's vector float32[dimensions], L2-normalised, the model that made it and the tokens it took.

    `thumbnail` is a JPEG of an image, where one was asked for.
    """

    vector: Vectors
    fingerprint: str
    tokens: int
    thumbnail: bytes | None = None


@dataclass(frozen=True)
class Found:
    """Embeddings in the order of their contents, and how many were a `hit`, `joined` what was being
    computed already, or a `miss`."""

    embeddings: list[Embedding]
    counts: Counter[str]


Compute = Callable[[Sequence[Content]], Awaitable[Sequence[Embedding]]]
Outcome = Embedding | Exception | None  # None: to be asked for again by those who still want it


class EmbeddingCache:
    """The embeddings used last, as many as fit `max_bytes`; belongs to one event loop."""

    def __init__(self, max_bytes: int) -> None:
        """With 0 everything is computed, also what is asked for twice at once."""
        self._max_bytes = max_bytes
        self.bytes = 0
        self._entries: OrderedDict[bytes, Embedding] = OrderedDict()
        self._flights: dict[bytes, asyncio.Future[Outcome]] = {}

    async def __call__(
        self, fingerprint: str, contents: Sequence[Content], compute: Compute, *, keep: bool = True
    ) -> Found:
        """n contents to n embeddings, those by the model `fingerprint` from here; `compute` makes the others.

        What it makes stays here if `keep`, unless another model made it after all.

        Raises what `compute` raises, a SightlineError with the place in `contents` for its `index`. An error
        of one item reaches those who asked for that item, any other all who wait; when the caller who had
        something computed goes away, the next one has it computed.
        """
        if not self._max_bytes:
            return Found(list(await compute(contents)), Counter())
        keys = [_key(fingerprint, content) for content in contents]
        counts: Counter[str] = Counter()
        embeddings: dict[int, Embedding] = {}
        missing: Sequence[int] = range(len(contents))
        while missing:
            mine: list[int] = []
            theirs: dict[int, asyncio.Future[Outcome]] = {}
            for place in missing:
                if (entry := self._entries.get(keys[place])) is not None:
                    self._entries.move_to_end(keys[place])
                    embeddings[place] = entry
                    counts["hit"] += 1
                elif (flight := self._flights.get(keys[place])) is not None:
                    theirs[place] = flight
                else:
                    self._flights[keys[place]] = asyncio.get_running_loop().create_future()
                    mine.append(place)
            if mine:
                made = await self._computed(keys, contents, mine, compute)
                embeddings |= zip(mine, made, strict=True)
                counts["miss"] += len(mine)
                if keep:
                    for place in mine:
                        self._keep(fingerprint, keys[place], embeddings[place])
            if theirs:
                with waiting_for_a_call():
                    await asyncio.wait(theirs.values())
            for place, flight in theirs.items():
                outcome = flight.result()
                if isinstance(outcome, Exception):
                    raise _own(outcome, place)
                if outcome is not None:
                    embeddings[place] = outcome
                    counts["joined"] += 1
                    if keep:
                        self._keep(fingerprint, keys[place], outcome)
            missing = [place for place in theirs if place not in embeddings]
        return Found([embeddings[place] for place in range(len(contents))], counts)

    async def _computed(
        self, keys: Sequence[bytes], contents: Sequence[Content], mine: list[int], compute: Compute
    ) -> Sequence[Embedding]:
        """The embeddings of the contents at `mine`, whose flights end with this, one way or another."""
        outcomes: Sequence[Outcome] = [None] * len(mine)
        try:
            made = outcomes = await compute([contents[place] for place in mine])
            return made
        except SightlineError as error:
            if error.index is None:
                outcomes = [error] * len(mine)
                raise
            outcomes = [error if place == mine[error.index] else None for place in mine]
            raise error.at(mine[error.index]) from None
        except Exception as error:
            outcomes = [error] * len(mine)
            raise
        finally:
            for place, outcome in zip(mine, outcomes, strict=True):
                self._flights.pop(keys[place]).set_result(outcome)

    def _keep(self, fingerprint: str, key: bytes, embedding: Embedding) -> None:
        if embedding.fingerprint != fingerprint or key in self._entries:
            return
        # A copy, for a row of a batch keeps the batch; one string for all fingerprints.
        entry = Embedding(embedding.vector.copy(), fingerprint, embedding.tokens)
        self._entries[key] = entry
        self.bytes += _size(entry)
        while self.bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= _size(oldest)


def _key(fingerprint: str, content: Content) -> bytes:
    """SHA-256 of the model's fingerprint, the kind of content and the content."""
    kind = "text" if isinstance(content, str) else "image"
    digest = hashlib.sha256(f"{fingerprint} {kind} ".encode())
    digest.update(content.encode(errors="surrogatepass") if isinstance(content, str) else content)
    return digest.digest()


def _size(entry: Embedding) -> int:
    return entry.vector.nbytes + OVERHEAD_BYTES


def _own(error: Exception, place: int) -> Exception:
    """A copy for one who waited: one that is raised in many tasks gathers the tracebacks of all."""
    if isinstance(error, SightlineError) and error.index is not None:
        return error.at(place)
    return copy(error).with_traceback(None)
