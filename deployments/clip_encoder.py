"""The encoder deployment: pixels and texts to vectors of one space, each tower with its own batch queue."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from configs.settings import ClipSettings
from configs.threads import threads_for
from deployments.decoding import Decoder
from deployments.line import OnLine
from deployments.logs import hide_callers_mistakes
from deployments.models.base import ModelInfo, Pixels, Vectors
from deployments.models.loading import load_encoder
from deployments.models.sources import Source
from deployments.served_model import ServedModel
from deployments.timing import StageTimes


class ClipEncoder(OnLine):
    """Owns one loaded encoder; ready once both towers have been warmed up."""

    def __init__(
        self, source: Source, settings: ClipSettings, cache_dir: Path, decoder: Callable[[], Decoder]
    ) -> None:
        """`decoder` makes what turns encoded images into pixels here, where no pool does."""
        hide_callers_mistakes()
        self._decoder = decoder()
        threads = threads_for(settings.threads, settings.scale.cpus)
        encoder = load_encoder(source, settings, cache_dir, threads)
        self._info = encoder.info
        self._image = ServedModel(f"{settings.name}-image", encoder.image, settings.image_batch)
        self._text = ServedModel(f"{settings.name}-text", encoder.text, settings.batch)
        self._answer_on_line(self.embed_images, self.embed_encoded, self.embed_texts, self.check_thumbnails)

    async def embed_images(self, pixels: Pixels) -> tuple[Vectors, str, list[int], StageTimes]:
        """uint8[n, size, size, 3] to L2-normalised float32[n, dimensions], the fingerprint of what made
        them, the tokens each took (an image takes none) and the time."""
        served = await self._image(list(pixels))
        return np.stack(served.outputs), self._info.fingerprint, [0] * len(pixels), served.times

    async def embed_encoded(
        self, images: Sequence[bytes], thumbnails: bool
    ) -> tuple[Vectors, str, list[int], StageTimes, list[bytes]]:
        """Like `embed_images` of n encoded images; and a small JPEG of each, where asked for.

        Raises:
            BadInput, TooLarge: pointing at the first image that cannot be used.
        """
        size = self._info.image_size
        assert size is not None
        pixels, small, decoding = await self._decoder(images, size, thumbnails)
        vectors, fingerprint, tokens, times = await self.embed_images(pixels)
        return vectors, fingerprint, tokens, decoding.then(times), small

    async def embed_texts(self, texts: Sequence[str]) -> tuple[Vectors, str, list[int], StageTimes]:
        """n texts likewise. Raises BadInput."""
        served = await self._text(texts)
        return np.stack(served.outputs), self._info.fingerprint, served.lengths, served.times

    async def check_thumbnails(self, thumbnails: Sequence[bytes]) -> None:
        """As the decoder does. Raises BadInput."""
        await self._decoder.check_thumbnails(thumbnails)

    async def info(self) -> ModelInfo:
        """What is loaded; raises when it cannot answer requests."""
        self.check_health()
        return self._info

    def check_health(self) -> None:
        self._decoder.check_health()
        self._image.check()
        self._text.check()
