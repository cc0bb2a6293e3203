"""The image classifier deployment: an encoder's vectors to logits, one per configured head."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.settings import VersionSettings
from deployments.errors import EncoderMismatch
from deployments.logs import hide_callers_mistakes
from deployments.models import image_head
from deployments.models.base import ModelInfo, Vectors
from deployments.models.sources import Source
from deployments.models.versions import choose
from deployments.timing import StageTimes
from deployments.versioned import Versioned


class ImageClassifier:
    """Owns one head, in one version or two. The encoder's batches have already formed before it."""

    def __init__(self, name: str, source: Source, cache_dir: Path) -> None:
        hide_callers_mistakes()

        def load(version: str) -> _LoadedHead:
            directory, number = choose(source.fetch(cache_dir), version)
            return _LoadedHead(image_head.load(name, directory, str(source), number))

        self._versions = Versioned(load)

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Serve calls this before the first request, and when `user_config` changes under load."""
        await self._versions.reconfigure(VersionSettings.model_validate(user_config))

    async def classify(
        self, vectors: Vectors, draw: float, encoder_fingerprint: str
    ) -> tuple[NDArray[np.float32], ModelInfo, list[int], StageTimes]:
        """float32[n, dimensions] to logits float32[n, labels], what made them, no tokens and the time.

        Raises:
            EncoderMismatch: the vectors come from another encoder than the head was trained on.
        """
        start = time.perf_counter()
        version = await self._versions.pick(draw)
        if version.info.encoder_fingerprint != encoder_fingerprint:
            raise EncoderMismatch(
                f"{version.info.id!r} was trained on the encoder {version.info.encoder_fingerprint}, and "
                f"{encoder_fingerprint} is served: train it again on this one, or serve the other"
            )
        logits = version.head.logits(vectors)
        return logits, version.info, [0] * len(logits), StageTimes(model=(time.perf_counter() - start) * 1e3)

    async def info(self) -> ModelInfo:
        """What is loaded."""
        return await self._versions.info()


class _LoadedHead:
    """One version; a few matrices that nothing can make unhealthy."""

    def __init__(self, head: image_head.ImageHead) -> None:
        self.head = head
        self.info = head.info

    def check(self) -> None:
        pass
