"""The index as the routes see it: calls go to the shard that owns an item, or to all and come back as one."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple
from uuid import uuid4

import orjson
from ray.serve.handle import DeploymentHandle

from configs.settings import IndexSettings, LimitSettings
from deployments.timing import StageTimes
from index.backup import Manifest
from index.errors import BadItem, CollectionNotFound, IndexUnavailable, VectorIndexError
from index.info import CollectionInfo, Evaluation
from index.items import Hit, Item, Page, Record, Vectors, Wanted, check_id, check_items
from index.merge import merge_evaluations, merge_hits, merge_infos
from index.shards import clash, shard_of
from index.spec import CollectionSpec
from serve_app.direct import Direct
from serve_app.joined import Joined
from serve_app.scatter import NO_ANSWER, Scatter, incomplete
from serve_app.shard import Shard

logger = logging.getLogger("ray.serve")

JOINED_QUERIES = 32
"""Searched in one call; FAISS goes through them with all its threads."""
LEAST_QUERIES = 8
"""Sent while others are searched for, because together they take less: 16 clients got 2 570 answers a second
from 2 000 items instead of 2 100 with 1, and 675 from 30 000 instead of 365 with two calls at work."""
JOINED_LIMIT = 100
"""A search that wants more results is a call of its own, and so is one whose answer may be too large."""


@dataclass(frozen=True)
class Found:
    """Hits per query, and the names of the shards whose items were not searched."""

    hits: list[list[Hit]]
    times: StageTimes
    missing: tuple[str, ...] = ()

    def part(self, first: int, last: int, waited_ms: float) -> "Found":
        """Of the queries first to last (exclusive), which waited before the call."""
        return replace(self, hits=self.hits[first:last], times=self.times.after_waiting(waited_ms))


class _Kind(NamedTuple):
    """What searches that travel together have in common; the filter of `wanted` is apart, as JSON."""

    name: str
    wanted: Wanted
    filter: bytes | None
    partial: bool


class Shards:
    """The methods of VectorIndex over all its shards; errors are those of `index.errors`, and ShardDown.

    One shard is called as it is. With several, whatever a caller can do wrong is found, and every shard
    concerned is seen to be there, before the first of them writes. Each writes its part whole or not
    at all. One that fails between the commits of two leaves the others' written, and the error says so.
    """

    def __init__(
        self,
        handles: Sequence[DeploymentHandle[Any]],
        settings: IndexSettings,
        limits: LimitSettings,
        *,
        lines: bool = False,
    ) -> None:
        """`lines` as of `Shard`."""
        if len(handles) == 1:
            self._shards = [Shard("index", handles[0], None, lines)]
        else:
            named = enumerate(handles)
            timeout_s = settings.shard_timeout_s
            self._shards = [Shard(f"index-{i}", handle, timeout_s, lines) for i, handle in named]
        self._discarding: set[asyncio.Task[None]] = set()
        self._scatter = Scatter(self._shards)
        self._only = self._scatter.only
        self._max_metadata_bytes = limits.max_metadata_bytes
        self._max_answer_bytes = limits.max_answer_bytes
        self._joined = Joined(self._search, Found.part, JOINED_QUERIES, least=LEAST_QUERIES)

    @property
    def lines(self) -> list[Direct]:
        return [shard.direct for shard in self._shards if shard.direct is not None]

    def probes(self) -> dict[str, Coroutine[Any, Any, None]]:
        """For each shard by name, a call that returns once the shard says that it can be used."""
        return {shard.name: shard.ready() for shard in self._shards}

    async def create(self, spec: CollectionSpec) -> CollectionInfo:
        """The collection, made where it is not. Nothing changes if a shard holds it with other settings."""
        rest = range(1, len(self._shards))
        if not self._only:
            await self._scatter.all("ready")
            outcomes = await self._scatter.outcomes("spec", self._scatter.every(spec.name))
            there = {i: o for i, o in outcomes.items() if not isinstance(o, CollectionNotFound)}
            self._scatter.check(there)
            self._check_same(there)
            for existing in there.values():
                existing.check_same(spec)
        # The first shard decides between two who make the same name with different settings.
        first: CollectionInfo = await self._shards[0].ask("create", spec)
        return merge_infos([first, *await self._scatter.some("create", dict.fromkeys(rest, (spec,)))])

    async def drop(self, name: str) -> None:
        """What is left where a shard failed can be dropped again."""
        if not self._only:
            await self._scatter.all("ready")
        outcomes = await self._scatter.outcomes("drop", self._scatter.every(name), once=True)
        had_it = {i: o for i, o in outcomes.items() if not isinstance(o, CollectionNotFound)}
        self._scatter.check(had_it or outcomes)

    async def list_all(self) -> tuple[list[CollectionInfo], dict[str, str]]:
        """The collections that can be used, and of the others name and reason; both by name."""
        lists: list[tuple[list[CollectionInfo], dict[str, str]]] = await self._scatter.all("list_all")
        if self._only:
            return lists[0]
        infos: dict[str, dict[str, CollectionInfo]] = {}
        reasons: dict[str, str] = {}
        for shard, (usable, unavailable) in zip(self._shards, lists, strict=True):
            for info in usable:
                infos.setdefault(info.name, {})[shard.name] = info
            reasons |= {name: f"{shard.name}: {reason}" for name, reason in unavailable.items()}
        for name, parts in infos.items():
            if lacking := [shard.name for shard in self._shards if shard.name not in parts]:
                reasons.setdefault(name, incomplete(", ".join(lacking)))
            if different := clash({shard: _spec_of(info) for shard, info in parts.items()}):
                reasons.setdefault(name, different)
        whole = {name: parts for name, parts in infos.items() if name not in reasons}
        merged = [merge_infos(list(parts.values())) for _, parts in sorted(whole.items())]
        return merged, dict(sorted(reasons.items()))

    async def info(self, name: str) -> CollectionInfo:
        infos: list[CollectionInfo] = await self._scatter.all("info", name)
        if not self._only:
            self._check_same({i: _spec_of(info) for i, info in enumerate(infos)})
        return merge_infos(infos)

    async def upsert(
        self, name: str, items: Sequence[Item], fingerprint: str | None
    ) -> tuple[list[str], StageTimes]:
        """Stores all items or none, shards that fail excepted; the distinct ids."""
        if self._only:
            stored: tuple[list[str], StageTimes] = await self._only.ask("upsert", name, items, fingerprint)
            return stored
        owned = self._by_owner([item.id for item in items])
        specs = await self._specs(name, owned)
        for spec in specs:
            spec.check_fingerprint(fingerprint)
        await asyncio.to_thread(check_items, items, specs[0], self._max_metadata_bytes)
        parts = {i: (name, [items[place] for place in places], fingerprint) for i, places in owned.items()}
        answers = await self._scatter.write("upsert", parts)
        return list(dict.fromkeys(item.id for item in items)), _alongside([times for _, times in answers])

    async def delete(self, name: str, ids: Sequence[str]) -> int:
        """How many of the ids were there."""
        if self._only:
            return int(await self._only.ask("delete", name, ids, once=True))
        for place, id in enumerate(ids):
            check_id(id, place)
        owned = self._by_owner(ids) or {0: []}
        parts = {i: (name, [ids[place] for place in places]) for i, places in owned.items()}
        await self._specs(name, parts)
        return sum(await self._scatter.write("delete", parts, once=True))

    async def delete_where(self, name: str, filter: Mapping[str, Any]) -> int:
        """How many passed and were deleted. A filter can be too slow for one shard and not for another."""
        if not self._only:
            await self._specs(name, range(len(self._shards)))
        return sum(await self._scatter.write("delete_where", self._scatter.every(name, filter), once=True))

    async def evaluate(self, name: str, queries: int, k: int) -> Evaluation:
        """Recall@k and latency against exact search, of every shard that holds items."""
        outcomes = await self._scatter.outcomes("evaluate", self._scatter.every(name, queries, k))
        filled = {i: o for i, o in outcomes.items() if not isinstance(o, BadItem)}
        self._scatter.check(filled or outcomes)
        return merge_evaluations(list(filled.values()))

    async def snapshot(self, name: str, to: str) -> Manifest:
        """A whole copy of the collection at `to`. Each shard's part is of one moment of its own."""
        id = uuid4().hex
        created = int(time.time())
        able = self._shards
        try:
            parts = await self._scatter.all("snapshot_part", name, to, id)
            manifest = Manifest(collection=name, id=id, created=created, parts=tuple(parts))
            able = self._shards[:1]  # only there it is certain that `finish_snapshot` has ended before
            await self._shards[0].ask("finish_snapshot", to, manifest)
        except BaseException:
            # Apart from the request, which may be at its end. A restore would stop at what is left.
            discarding = asyncio.create_task(_discard(able, name, to, id), context=Context())
            self._discarding.add(discarding)
            discarding.add_done_callback(self._discarding.discard)
            raise
        return manifest

    async def get(self, name: str, id: str, include: Sequence[Any]) -> Record:
        shard = self._shards[shard_of(id, len(self._shards))]
        async with self._known(name):
            record: Record = await shard.ask("get", name, id, include)
        return record

    async def missing(self, name: str, ids: Sequence[str]) -> list[str]:
        """Those of the ids that no item has, in their order."""
        owned = self._by_owner(ids) or {0: []}
        parts = {i: (name, [ids[place] for place in places]) for i, places in owned.items()}
        async with self._known(name):
            lacking = {id for part in await self._scatter.some("missing", parts) for id in part}
        return [id for id in ids if id in lacking]

    async def keeps_thumbnails(self, name: str) -> bool:
        """Whether images come with thumbnails here; every shard knows."""
        return bool(await self._shards[0].ask("keeps_thumbnails", name))

    async def page(self, name: str, limit: int, cursor: int | None) -> Page:
        """Up to `limit` items after `cursor`, shard by shard.

        The cursor over n shards is that of one of them, times n, plus its number: of a single one, its own.
        """
        count = len(self._shards)
        after, number = divmod(cursor or 0, count)
        records: list[Record] = []
        for shard in range(number, count):
            room = limit - len(records)
            # Of a full page all that is left to know is whether there is more.
            async with self._known(name):
                page: Page = await self._shards[shard].ask("page", name, max(1, room), after)
            if room == 0 and page.records:
                return Page(records, shard)
            records += page.records
            if page.next_cursor is not None:
                return Page(records, page.next_cursor * count + shard)
            after = 0
        return Page(records, None)

    async def search(
        self, name: str, queries: Sequence[Vectors | str], wanted: Wanted, partial: bool = False
    ) -> Found:
        """The nearest of all shards; with `partial` of those that answer, if any does.

        Small searches of the same kind that come at the same time are sent as one. Those by filter if it is
        the same for all: a slow one holds up nobody else, and what passes is looked for once.
        """
        filter = None if wanted.filter is None else orjson.dumps(wanted.filter)
        kind = _Kind(name, replace(wanted, filter=None), filter, partial)
        most = self._max_metadata_bytes if "metadata" in wanted.include else 0
        small = (
            len(queries) * wanted.limit * most <= self._max_answer_bytes and "vector" not in wanted.include
        )
        if small and len(queries) <= JOINED_QUERIES and wanted.limit <= JOINED_LIMIT:
            return await self._joined(kind, queries)
        bounded = replace(kind.wanted, max_bytes=self._max_answer_bytes)
        return await self._search(kind._replace(wanted=bounded), queries)

    async def _search(self, kind: _Kind, queries: Sequence[Vectors | str]) -> Found:
        name, wanted, filter, partial = kind
        if filter is not None:
            wanted = replace(wanted, filter=orjson.loads(filter))
        if self._only:
            return Found(*await self._only.ask("search", name, queries, wanted))
        vectors = await self._vectors(name, queries)
        exclude = [query if isinstance(query, str) else None for query in queries]
        outcomes = await self._scatter.outcomes("search", self._scatter.every(name, vectors, wanted, exclude))
        answers = {i: o for i, o in outcomes.items() if not isinstance(o, BaseException)}
        missing = {i: o for i, o in outcomes.items() if isinstance(o, NO_ANSWER)}
        lenient = partial and answers
        self._scatter.check({i: o for i, o in outcomes.items() if not (lenient and i in missing)})
        hits = merge_hits([hits for hits, _ in answers.values()], wanted.limit)
        times = _alongside([times for _, times in answers.values()])
        return Found(hits, times, tuple(self._shards[i].name for i in missing))

    async def _specs(self, name: str, shards: Iterable[int]) -> list[CollectionSpec]:
        """What the collection is on each of these shards, all of which are there when this returns.

        Raises IndexUnavailable where it is not the same on all.
        """
        parts = dict.fromkeys(shards, (name,))
        async with self._known(name):
            specs: list[CollectionSpec] = await self._scatter.some("spec", parts)
        self._check_same(dict(zip(parts, specs, strict=True)))
        return specs

    def _check_same(self, specs: Mapping[int, CollectionSpec]) -> None:
        if specs and (different := clash({self._shards[i].name: spec for i, spec in specs.items()})):
            raise IndexUnavailable(different)

    @asynccontextmanager
    async def _known(self, name: str) -> AsyncIterator[None]:
        """Not found becomes IndexUnavailable where only some shards do not know the collection."""
        try:
            yield
        except CollectionNotFound:
            if not self._only:
                await self._scatter.all("spec", name)
            raise

    async def _vectors(self, name: str, queries: Sequence[Vectors | str]) -> list[Vectors]:
        """Each query's vector; for an item's id from the shard that owns it."""
        vectors: list[Any] = list(queries)
        places = [place for place, query in enumerate(queries) if isinstance(query, str)]
        records = await asyncio.gather(
            *(self.get(name, vectors[place], ("vector",)) for place in places), return_exceptions=True
        )
        for place, record in zip(places, records, strict=True):
            if isinstance(record, BaseException):
                raise record.at(place) if isinstance(record, VectorIndexError) else record
            vectors[place] = record.vector
        return vectors

    def _by_owner(self, ids: Sequence[str]) -> dict[int, list[int]]:
        """The places in `ids` that belong to each shard, without those that own none."""
        places: dict[int, list[int]] = {}
        for place, id in enumerate(ids):
            places.setdefault(shard_of(id, len(self._shards)), []).append(place)
        return places


async def _discard(able: Sequence[Shard], name: str, to: str, id: str) -> None:
    for shard in able:
        try:
            await shard.ask("discard_snapshot", name, to, id)
            return
        except Exception as error:
            logger.warning("%s could not delete what there is of a snapshot at %s: %s", shard.name, to, error)


def _spec_of(info: CollectionInfo) -> CollectionSpec:
    return CollectionSpec.model_validate(info, from_attributes=True)


def _alongside(times: Sequence[StageTimes]) -> StageTimes:
    return reduce(StageTimes.alongside, times)
