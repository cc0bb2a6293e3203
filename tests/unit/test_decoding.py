"""The threads that decode."""

import asyncio
import os
import threading

from configs.settings import PreprocessorSettings
from deployments.decoding import Decoder
from tests.photos import jpeg


def test_they_run_behind_everybody_else() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    decode = Decoder(PreprocessorSettings(threads=2), 10**7)
    pixels, _, _ = asyncio.run(decode([jpeg("chelsea")] * 4, 224, False))
    assert pixels.shape == (4, 224, 224, 3)
    decoding = [thread.native_id for thread in threading.enumerate() if thread.name.startswith("decode")]
    assert decoding
    assert {os.getpriority(os.PRIO_PROCESS, thread or 0) for thread in decoding} == {19}
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
