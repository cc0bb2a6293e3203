"""A model whose outputs name their inputs and whose forwards can be held, to test what surrounds a model."""

import threading
from collections.abc import Mapping, Sequence

from tests.waiting import PATIENCE_S, until


class FakeModel:
    """Call it with a batch of texts. `answers` replaces single outputs, `raises` fails whole batches."""

    def __init__(
        self,
        answers: Mapping[str, Exception] | None = None,
        raises: Mapping[str, BaseException] | None = None,
        held: bool = False,
    ) -> None:
        self.batches: list[list[str]] = []
        self._answers = answers or {}
        self._raises = raises or {}
        self._free = threading.Event()
        if not held:
            self.release()

    def __call__(self, batch: Sequence[str]) -> list[str | Exception]:
        self.batches.append(list(batch))
        if not self._free.wait(PATIENCE_S):
            raise TimeoutError("the test never released the model")
        for item in batch:
            if item in self._raises:
                raise self._raises[item]
        return [self._answers.get(item, self.output(item)) for item in batch]

    @staticmethod
    def output(item: str) -> str:
        return f"output of {item}"

    def release(self) -> None:
        self._free.set()

    async def entered(self, batches: int) -> None:
        """Wait until this many forwards have begun."""
        await until(lambda: len(self.batches) >= batches)
