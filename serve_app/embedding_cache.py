"""Embeddings by content: what was embedded lately is not asked for again, nor what is being embedded now."""

import asyncio
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from deployments.errors import Overloaded, SightlineError, TooLarge
from deployments.models.base import Vectors
from serve_app.inputs import Content
from serve_app.joined import own_error, place_of
from serve_app.middleware import waiting_for_a_call

SHARED_CONTENTS = 32
"""Of a request, at most, for others to wait for what it has embedded."""
HASHED_HERE_BYTES = 1 << 20
"""Of a request, which takes half a millisecond; of more, others would wait for a thread."""
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
Flight = asyncio.Future[Outcome]  # an embedding that is being computed; never holds an exception of its own


class EmbeddingCache:
    """The embeddings used last, as many as fit `max_bytes`; belongs to one event loop."""

    def __init__(self, max_bytes: int) -> None:
        """With 0 everything is computed, also what is asked for twice at once."""
        self._max_bytes = max_bytes
        self.bytes = 0
        self._entries: OrderedDict[bytes, Embedding] = OrderedDict()
        self._flights: dict[bytes, Flight] = {}  # of contents that others may wait for

    async def __call__(
        self, fingerprint: str, contents: Sequence[Content], compute: Compute, *, keep: bool = True
    ) -> Found:
        """n contents to n embeddings, those by the model `fingerprint` from here; `compute` makes the others.

        What it makes stays here if `keep`, unless another model made it after all.

        Raises what `compute` raises, a SightlineError with the place in `contents` for its `index`. An error
        of one item reaches those who asked for that item, any other all who wait. When the caller who had
        something computed goes away, or asked for too much, the next one has it computed.
        """
        if not self._max_bytes:
            return Found(list(await compute(contents)), Counter())
        keys = await _keys(fingerprint, contents)
        counts: Counter[str] = Counter()
        embeddings: dict[int, Embedding] = {}
        missing: Sequence[int] = range(len(contents))
        # All of a large request's are there at once, at its end: nobody else should wait for that.
        flights = self._flights if len(contents) <= SHARED_CONTENTS else dict[bytes, Flight]()
        while missing:
            known, mine, theirs = self._look(keys, missing, flights)
            made = await self._computed(keys, contents, mine, compute, flights) if mine else {}
            if keep:
                self._keep(fingerprint, keys, made)
            joined = await _joined(theirs) if theirs else {}
            if keep:
                self._keep(fingerprint, keys, joined)
            embeddings |= known | made | joined
            counts.update(hit=len(known), joined=len(joined), miss=len(made))
            missing = [place for place in theirs if place not in joined]
        return Found([embeddings[place] for place in range(len(contents))], +counts)

    def _look(
        self, keys: Sequence[bytes], places: Sequence[int], flights: dict[bytes, Flight]
    ) -> tuple[dict[int, Embedding], list[int], dict[int, Flight]]:
        """By place: what is here, what the caller is to compute (in `flights` now), and what is computed."""
        known, mine, theirs = dict[int, Embedding](), list[int](), dict[int, Flight]()
        for place in places:
            key = keys[place]
            if key in self._entries:
                self._entries.move_to_end(key)
                known[place] = self._entries[key]
            elif (flight := self._flights.get(key) or flights.get(key)) is not None:
                theirs[place] = flight
            else:
                flights[key] = asyncio.get_running_loop().create_future()
                mine.append(place)
        return known, mine, theirs

    async def _computed(
        self,
        keys: Sequence[bytes],
        contents: Sequence[Content],
        mine: list[int],
        compute: Compute,
        flights: dict[bytes, Flight],
    ) -> dict[int, Embedding]:
        """The embeddings of the contents at `mine`, whose flights end with this, one way or another."""
        outcomes: Sequence[Outcome] = [None] * len(mine)
        try:
            made = outcomes = await compute([contents[place] for place in mine])
            return dict(zip(mine, made, strict=True))
        except SightlineError as error:
            if error.index is not None:
                bad = mine[error.index]
                outcomes = [error if place == bad else None for place in mine]
                raise error.at(bad) from None
            if not isinstance(error, Overloaded | TooLarge):  # these may be for what else the caller asked
                outcomes = [error] * len(mine)
            raise
        except Exception as error:
            outcomes = [error] * len(mine)
            raise
        finally:
            for place, outcome in zip(mine, outcomes, strict=True):
                flights.pop(keys[place]).set_result(outcome)

    def _keep(self, fingerprint: str, keys: Sequence[bytes], embeddings: Mapping[int, Embedding]) -> None:
        for place, embedding in embeddings.items():
            if embedding.fingerprint != fingerprint or keys[place] in self._entries:
                continue
            # A copy, for a row of a batch keeps the batch; one string for all fingerprints.
            entry = Embedding(embedding.vector.copy(), fingerprint, embedding.tokens)
            self._entries[keys[place]] = entry
            self.bytes += _size(entry)
            while self.bytes > self._max_bytes:
                _, oldest = self._entries.popitem(last=False)
                self.bytes -= _size(oldest)


async def _joined(flights: Mapping[int, Flight]) -> dict[int, Embedding]:
    """What others have computed, by place; without what is to be asked for again."""
    with waiting_for_a_call():
        await asyncio.wait(flights.values())
    embeddings = {}
    for place, flight in flights.items():
        outcome = flight.result()
        if isinstance(outcome, Exception):
            raise own_error(outcome, None if place_of(outcome) is None else place)
        if outcome is not None:
            embeddings[place] = outcome
    return embeddings


async def _keys(fingerprint: str, contents: Sequence[Content]) -> list[bytes]:
    if sum(map(len, contents)) <= HASHED_HERE_BYTES:
        return [_key(fingerprint, content) for content in contents]
    return await asyncio.to_thread(lambda: [_key(fingerprint, content) for content in contents])


def _key(fingerprint: str, content: Content) -> bytes:
    """SHA-256 of the model's fingerprint, the kind of content and the content."""
    kind = "text" if isinstance(content, str) else "image"
    digest = hashlib.sha256(f"{fingerprint} {kind} ".encode())
    digest.update(content.encode(errors="surrogatepass") if isinstance(content, str) else content)
    return digest.digest()


def _size(entry: Embedding) -> int:
    return entry.vector.nbytes + OVERHEAD_BYTES
