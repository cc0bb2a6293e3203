"""The text classifier deployment: texts to logits, one deployment per configured classifier."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.settings import ClassifierSettings, VersionSettings
from configs.threads import threads_for
from deployments.line import OnLine
from deployments.logs import hide_callers_mistakes
from deployments.models.base import ModelInfo
from deployments.models.loading import load_classifier
from deployments.models.sources import Source
from deployments.served_model import ServedModel
from deployments.timing import StageTimes
from deployments.versioned import Versioned


class TextClassifier(OnLine):
    """Owns one DistilBERT classifier, in one version or two; ready once it has been warmed up."""

    def __init__(self, name: str, source: Source, settings: ClassifierSettings, cache_dir: Path) -> None:
        hide_callers_mistakes()

        def load(version: str) -> _LoadedText:
            threads = threads_for(settings.threads, settings.scale.cpus)
            return _LoadedText(name, source, settings, cache_dir, threads, version)

        self._versions = Versioned(load)
        self._answer_on_line(self.classify)

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Serve calls this before the first request, and when `user_config` changes under load."""
        await self._versions.reconfigure(VersionSettings.model_validate(user_config))

    async def classify(
        self, texts: Sequence[str], draw: float
    ) -> tuple[NDArray[np.float32], ModelInfo, list[int], StageTimes]:
        """n texts to logits float32[n, labels], what made them, the tokens each took and the time.

        `draw`, 0 to 100, decides between the stable version and a candidate. Raises BadInput.
        """
        version = await self._versions.pick(draw)
        served = await version.model(texts)
        return np.stack(served.outputs), version.info, served.lengths, served.times

    async def info(self) -> ModelInfo:
        """What is loaded; raises when it cannot answer requests."""
        self.check_health()
        return await self._versions.info()

    def check_health(self) -> None:
        self._versions.check()


class _LoadedText:
    """One version behind its own batch queue."""

    def __init__(
        self,
        name: str,
        source: Source,
        settings: ClassifierSettings,
        cache_dir: Path,
        threads: int,
        version: str,
    ) -> None:
        classifier = load_classifier(name, source, settings, cache_dir, threads, version)
        self.info = classifier.info
        self.model = ServedModel(name, classifier.text, settings.batch)

    def check(self) -> None:
        self.model.check()
