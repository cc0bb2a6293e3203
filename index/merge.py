"""One answer out of the answers of all shards."""

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter

from index.collection import CollectionInfo
from index.items import Hit

Hits = list[list[Hit]]  # per query, best first


def merge_hits(parts: Sequence[Hits], limit: int) -> Hits:
    """The best `limit` of all shards' hits for each query, best first: exact if every part is.

    `parts` has one answer per shard to the same queries, each with its shard's best `limit`. Equal scores
    stay in the order of the shards.
    """
    if len(parts) == 1:
        return parts[0]
    # Each list is sorted already, which Python's sort finds and merges in linear time.
    by_score = attrgetter("score")
    return [
        sorted((hit for hits in of_query for hit in hits), key=by_score, reverse=True)[:limit]
        for of_query in zip(*parts, strict=True)
    ]


def merge_infos(infos: Sequence[CollectionInfo]) -> CollectionInfo:
    """The collection's numbers in all: counts and bytes add up, and it is as old as its oldest shard."""
    first = infos[0]
    if len(infos) == 1:
        return first
    return replace(
        first,
        count=sum(info.count for info in infos),
        actual_kind="+".join(sorted({info.actual_kind for info in infos})),
        created=min(info.created for info in infos),
        tombstones=sum(info.tombstones for info in infos),
        bytes_on_disk=sum(info.bytes_on_disk for info in infos),
        bytes_in_memory=sum(info.bytes_in_memory for info in infos),
    )
