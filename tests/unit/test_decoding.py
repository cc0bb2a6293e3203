"""The threads that decode."""

import asyncio
import os
import threading
from typing import Any

import pytest

from configs.settings import PreprocessorSettings
from deployments import decoding
from deployments.decoding import Decoder
from deployments.errors import NotReady
from deployments.models import images
from tests.photos import jpeg
from tests.waiting import PATIENCE_S


def test_they_run_behind_everybody_else() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    decode = Decoder(PreprocessorSettings(threads=2), 10**7)
    pixels, _, _ = asyncio.run(decode([jpeg("chelsea")] * 4, 224, False))
    assert pixels.shape == (4, 224, 224, 3)
    decoding = [thread.native_id for thread in threading.enumerate() if thread.name.startswith("decode")]
    assert decoding
    assert {os.getpriority(os.PRIO_PROCESS, thread or 0) for thread in decoding} == {19}
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_a_decode_that_does_not_end_is_no_health(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, end = threading.Event(), threading.Event()

    def stalled(data: bytes, size: int, max_pixels: int) -> Any:
        begun.set()
        assert end.wait(PATIENCE_S)
        return images.decode(data, size, max_pixels)

    monkeypatch.setattr(decoding, "decode", stalled)
    decoder = Decoder(PreprocessorSettings(threads=1, stall_timeout_s=1e-6), 10**7)
    decoder.check_health()

    async def scenario() -> None:
        image = asyncio.create_task(decoder([jpeg("chelsea")], 224, False))
        assert await asyncio.to_thread(begun.wait, 60)
        with pytest.raises(NotReady, match="a decode has run for"):
            decoder.check_health()
        end.set()
        await image
        decoder.check_health()

    asyncio.run(scenario())
