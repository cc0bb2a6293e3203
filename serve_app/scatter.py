"""Asking several shards at once, and making one error of theirs."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from index.errors import CollectionNotFound, IndexUnavailable
from serve_app.shard import Shard, ShardDown

NO_ANSWER = (ShardDown, IndexUnavailable, CollectionNotFound)
"""What keeps a shard from answering, as opposed to a caller's mistake."""

Parts = Mapping[int, tuple[Any, ...]]
"""Arguments by the number of the shard they go to."""


class Scatter:
    """The shards of one index; with a single one, its answers and errors are left as they are."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards
        self.only = shards[0] if len(shards) == 1 else None

    async def all(self, method: str, *args: Any) -> list[Any]:
        """Every shard's answer to the same arguments, in their order; raises if any fails."""
        return await self.some(method, self.every(*args))

    async def some(self, method: str, parts: Parts, once: bool = False) -> list[Any]:
        """The answers of the shards in `parts`, in that order; raises if any fails, when all have ended."""
        outcomes = await self.outcomes(method, parts, once)
        self.check(outcomes)
        return list(outcomes.values())

    async def write(self, method: str, parts: Parts, once: bool = False) -> list[Any]:
        """Like `some` for a method that changes what is stored: an error says what may be done already."""
        try:
            return await self.some(method, parts, once)
        except NO_ANSWER as error:
            if len(parts) == 1:
                raise
            raise type(error)(f"{error}; the other shards may have done their part, so ask again") from None

    async def outcomes(self, method: str, parts: Parts, once: bool = False) -> dict[int, Any]:
        """The answer or error of each shard in `parts`."""
        if self.only:
            return {i: await self.only.ask(method, *args, once=once) for i, args in parts.items()}
        outcomes = await asyncio.gather(
            *(self.shards[i].ask(method, *args, once=once) for i, args in parts.items()),
            return_exceptions=True,
        )
        return dict(zip(parts, outcomes, strict=True))

    def every(self, *args: Any) -> dict[int, tuple[Any, ...]]:
        """The same arguments for all."""
        return dict.fromkeys(range(len(self.shards)), args)

    def check(self, outcomes: Mapping[int, Any]) -> None:
        """Raise the error among the outcomes that tells most: shards that are down, then what one says."""
        errors = {i: o for i, o in outcomes.items() if isinstance(o, BaseException)}
        if down := [i for i, error in errors.items() if isinstance(error, ShardDown)]:
            raise ShardDown(f"{self.names(down)} did not answer, so this could not be done; try again")
        lacking = [i for i, error in errors.items() if isinstance(error, CollectionNotFound)]
        if lacking and len(lacking) < len(outcomes):
            raise IndexUnavailable(incomplete(self.names(lacking)))
        for i, error in errors.items():
            if isinstance(error, IndexUnavailable):
                raise IndexUnavailable(f"{self.names([i])}: {error.message}") from None
            raise error

    def names(self, shards: Sequence[int]) -> str:
        return ", ".join(self.shards[i].name for i in shards)


def incomplete(where: str) -> str:
    """Why a collection that some shards lack cannot be used."""
    return f"{where} lost this collection: make it again to go on with what is left, or delete it"
