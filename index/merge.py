"""One answer out of the answers of all shards."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import attrgetter

from index.info import CollectionInfo, Evaluation, Latency, Setting
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
    """The collection's numbers in all: counts and bytes add up, recall is that of its worst shard."""
    first = infos[0]
    if len(infos) == 1:
        return first
    return replace(
        first,
        count=sum(info.count for info in infos),
        actual_kind=_kinds(info.actual_kind for info in infos),
        state=max((info.state for info in infos), key=lambda state: state == "building"),
        problem=next((info.problem for info in infos if info.problem), None),
        segments=sum(info.segments for info in infos),
        effort=max((info.effort for info in infos if info.effort is not None), default=None),
        recall=min((info.recall for info in infos if info.recall is not None), default=None),
        created=min(info.created for info in infos),
        tombstones=sum(info.tombstones for info in infos),
        bytes_on_disk=sum(info.bytes_on_disk for info in infos),
        bytes_in_memory=sum(info.bytes_in_memory for info in infos),
    )


def merge_evaluations(parts: Sequence[Evaluation]) -> Evaluation:
    """As if one: a search finds the mean of what the shards find, by their items, and waits for the slowest.

    Of other efforts only those that every shard has tried; one without that knob as it answers now.
    """
    if len(parts) == 1:
        return parts[0]
    first = next((part for part in parts if part.knob), parts[0])
    efforts = [setting.effort for setting in first.settings]
    settings = [
        {setting.effort: setting for setting in part.settings}
        if part.knob == first.knob
        else dict.fromkeys(efforts, part.now)
        for part in parts
    ]
    common = [effort for effort in efforts if all(effort in tried for tried in settings)]
    weights = [part.count for part in parts]
    return replace(
        first,
        count=sum(weights),
        queries=sum(part.queries for part in parts),
        kind=_kinds(part.kind for part in parts),
        now=_merged([part.now for part in parts], weights),
        exact=_slowest([part.exact for part in parts]),
        settings=[
            replace(_merged([tried[effort] for tried in settings], weights), effort=effort)
            for effort in common
        ],
    )


def _merged(settings: Sequence[Setting], weights: Sequence[int]) -> Setting:
    recall = sum(s.recall * weight for s, weight in zip(settings, weights, strict=True)) / sum(weights)
    efforts = [setting.effort for setting in settings if setting.effort is not None]
    latency = _slowest([setting.latency for setting in settings])
    return Setting(max(efforts, default=None), recall, latency)


def _slowest(latencies: Sequence[Latency]) -> Latency:
    return Latency(max(each.p50_ms for each in latencies), max(each.p99_ms for each in latencies))


def _kinds(kinds: Iterable[str]) -> str:
    return "+".join(sorted(set(kinds)))
