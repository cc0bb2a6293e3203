"""What the gateway asks of the models: contents to vectors, texts to logits, in calls of bounded size."""

import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from ray.serve.handle import DeploymentHandle

from configs.settings import ScaleSettings, Settings
from deployments.errors import NotReady, SightlineError
from deployments.metrics import CacheMetrics
from deployments.models.base import ModelInfo, Vectors
from deployments.models.sources import Source
from deployments.timing import StageTimes
from serve_app.backlog import Backlog, Turn
from serve_app.direct import Direct
from serve_app.embedding_cache import Embedding, EmbeddingCache
from serve_app.errors import ApiError
from serve_app.inputs import Content
from serve_app.joined import AT_ONCE, Joined
from serve_app.middleware import Timing
from serve_app.remote import call, together

Handle = DeploymentHandle[Any]
Result = TypeVar("Result")
Classified = tuple[NDArray[np.float32], ModelInfo, Sequence[int], StageTimes]

# Texts of one call that others may join. A batch of the model's holds as many; a long request would hold up
# the short ones that travel with it.
JOINED_TEXTS = 32

# A model that autoscales gets a request in so many times smaller calls, for these are what Serve counts.
AUTOSCALED_SPLIT = 8

# What infinity's clients send when their caller named no model.
UNSPECIFIED = "default/not-specified"

# A request of several calls may meet a version swap between them and is then asked again as a whole.
SWAPS_ENDURED = 3

# Answers from the cache ask nobody, so the encoder is asked now and then whether it is still the same.
CACHE_TRUSTED_S = 5.0


@dataclass(frozen=True)
class Unavailable:
    """A configured model with no weights to serve; `reason` says what would change that."""

    source: Source

    @property
    def reason(self) -> str:
        return " ".join(self.source.notes)


@dataclass(frozen=True)
class Embedded:
    """Vectors float32[n, dimensions], L2-normalised, the model that made them and the tokens it took.

    `thumbnails` are JPEGs of the images among the contents, by place, where they were asked for.
    """

    vectors: Vectors
    fingerprint: str
    tokens: int
    thumbnails: Mapping[int, bytes]


@dataclass(frozen=True)
class Rows:
    """What one call embedded."""

    vectors: Vectors
    fingerprint: str
    tokens: Sequence[int]  # of each
    times: StageTimes
    thumbnails: Sequence[bytes] = ()

    def part(self, first: int, last: int, waited_ms: float) -> "Rows":
        """Of the texts first to last (exclusive), which waited before the call."""
        times = self.times.after_waiting(waited_ms)
        return replace(self, vectors=self.vectors[first:last], tokens=self.tokens[first:last], times=times)

    def embeddings(self) -> Iterator[Embedding]:
        small = self.thumbnails or repeat(None)  # of each image, or of none
        for vector, tokens, thumbnail in zip(self.vectors, self.tokens, small, strict=False):
            yield Embedding(vector, self.fingerprint, tokens, thumbnail)


class Inference:
    """Holds the handles of the preprocessor, the encoder, the text classifiers and the image heads."""

    def __init__(
        self,
        settings: Settings,
        preprocessor: Handle | None,
        encoder: Handle,
        classifiers: dict[str, Handle | Unavailable],
        heads: dict[str, Handle],
        aliases: dict[str, str],
    ) -> None:
        self._settings = settings
        self._preprocessor = preprocessor
        self.models: dict[str, Handle | Unavailable] = {
            settings.clip.name: encoder,
            **classifiers,
            **heads,
        }
        self.heads = frozenset(heads)
        # Serve chooses between several replicas, and where they autoscale it tells by the calls to them how
        # many there are to be. A line would hide these, and so would requests that travel together.
        scales = {settings.clip.name: settings.clip.scale}
        scales |= {name: classifier.scale for name, classifier in settings.classifiers.items()}
        self._direct = {
            name: Direct(handle)
            for name, handle in {settings.clip.name: encoder, **classifiers}.items()
            if not isinstance(handle, Unavailable) and scales[name].alone
        }
        self._aliases = {origin: name for origin, name in aliases.items() if origin}
        self._encoder_info: ModelInfo | None = None
        self._encoder_heard = 0.0  # when it last said which model it is, seconds of the monotonic clock
        self._cache = EmbeddingCache(settings.embedding_cache.max_bytes)
        self._cache_metrics = CacheMetrics()
        scale = settings.clip.scale
        self._texts = (
            None if scale.autoscales else Joined(self._send_texts, Rows.part, JOINED_TEXTS, scale.replicas)
        )
        self._classified = {
            name: Joined(
                partial(self._send_classify, name), _part_of, JOINED_TEXTS, classifier.scale.replicas
            )
            for name, classifier in settings.classifiers.items()
            if not classifier.scale.autoscales
        }
        self._text_backlog = self._backlog("texts", settings.gateway.texts_per_call, scale)
        self._classify_backlogs = {
            name: self._backlog("texts", settings.gateway.texts_per_call, classifier.scale)
            for name, classifier in settings.classifiers.items()
        }
        pool = [] if preprocessor is None else [settings.preprocessor.scale]
        self._image_backlog = self._backlog("images", settings.preprocessor.images_per_call, scale, *pool)

    def _backlog(self, noun: str, items_per_call: int, *scales: ScaleSettings) -> Backlog:
        """Of a model with these replicas, on which every call works in turn.

        For Serve to add replicas up to the most there may be, as many calls must get in as these are to have.
        """
        split = AUTOSCALED_SPLIT if any(scale.autoscales for scale in scales) else 1
        return Backlog(
            noun,
            items_per_call=max(1, items_per_call // split),
            calls_at_once=max(_calls_at_once(scale, split) for scale in scales),
            max_wait_s=self._settings.limits.max_wait_s,
        )

    @property
    def lines(self) -> Iterable[Direct]:
        return self._direct.values()

    @property
    def encoder_name(self) -> str:
        return self._settings.clip.name

    def name_of(self, model: str | None) -> str:
        """The served model a request means: by its name, or by the hub id or directory it came from.

        Raises:
            ApiError: 404 with the models there are.
        """
        if model is None or model == UNSPECIFIED:
            return self.encoder_name
        if model in self.models:
            return model
        if model in self._aliases:
            return self._aliases[model]
        message = f"no model {model!r}; the models here are {', '.join(self.models)}"
        raise ApiError(404, "model_not_found", message, "model")

    def encoder_named(self, model: str | None) -> str:
        """Like `name_of`, but 422 for a model that makes no embeddings."""
        name = self.name_of(model)
        if name != self.encoder_name:
            message = f"model {name!r} classifies text and makes no embeddings; use {self.encoder_name!r}"
            raise ApiError(422, "wrong_task", message, "model")
        return name

    async def info(self, name: str) -> ModelInfo:
        """What is loaded under `name`. The encoder is asked once, and again when another answers."""
        if name == self.encoder_name and self._encoder_info is not None:
            return self._encoder_info
        return await self.probe(name)

    async def probe(self, name: str) -> ModelInfo:
        """Asks the replica now. Raises when the model cannot answer."""
        info: ModelInfo = await call(self._handle(name), "info")
        if name == self.encoder_name:
            self._encoder_info = info
            self._encoder_heard = time.monotonic()
        return info

    def _heard_of(self, fingerprint: str) -> None:
        """An answer of the encoder's says which model it is."""
        self._encoder_heard = time.monotonic()
        if self._encoder_info is not None and self._encoder_info.fingerprint != fingerprint:
            self._encoder_info = None

    async def embed(
        self,
        contents: Sequence[Content],
        timing: Timing,
        places: Sequence[int] | None = None,
        *,
        thumbnails: bool = False,
        keep: bool = True,
    ) -> Embedded:
        """n contents to their vectors, with `thumbnails` images to small ones as well.

        What was embedded before comes from the cache; what was not goes there if `keep`, which is for
        contents that are likely to be asked for again.

        Raises:
            BadInput, TooLarge: with `index` the place in `contents`, or what `places` has there.
            Overloaded: there is more to do than gets done in time.
        """
        try:
            for _ in range(SWAPS_ENDURED):
                info = await self.info(self.encoder_name)
                if thumbnails:  # they are not in the cache, and making them is most of the work
                    embeddings = await self.compute(timing, contents, thumbnails=True)
                else:
                    embeddings = await self._cached(info.fingerprint, contents, timing, keep)
                fingerprints = {embedding.fingerprint for embedding in embeddings} or {info.fingerprint}
                if len(fingerprints) == 1 and await self._is_current(*fingerprints):
                    return _embedded(embeddings, info)
        except SightlineError as error:
            if error.index is None or places is None:
                raise
            raise error.at(places[error.index]) from None
        raise NotReady("the encoder was replaced by another again and again during the request; try again")

    async def _cached(
        self, fingerprint: str, contents: Sequence[Content], timing: Timing, keep: bool
    ) -> list[Embedding]:
        found = await self._cache(fingerprint, contents, partial(self.compute, timing), keep=keep)
        if found.counts:  # none while it is off
            timing.cache.update(found.counts)
            self._cache_metrics.record(found.counts, self._cache.bytes)
        return found.embeddings

    async def _is_current(self, fingerprint: str) -> bool:
        """Whether this is the encoder, by an answer of its own that is at most CACHE_TRUSTED_S old."""
        if time.monotonic() - self._encoder_heard > CACHE_TRUSTED_S:
            return (await self.probe(self.encoder_name)).fingerprint == fingerprint
        return True

    async def compute(
        self, timing: Timing, contents: Sequence[Content], *, thumbnails: bool = False
    ) -> list[Embedding]:
        """What the replicas make of the contents, past the cache; an error's `index` is its place among them.

        Raises Overloaded: there is more to do than gets done in time.
        """
        texts = [i for i, content in enumerate(contents) if isinstance(content, str)]
        images = [i for i, content in enumerate(contents) if isinstance(content, bytes)]
        embed_images = partial(self._embed_images, thumbnails=thumbnails)
        with (
            self._text_backlog.admit(len(texts)) as text_turn,
            self._image_backlog.admit(len(images)) as image_turn,
        ):
            results = await together(
                *(
                    self._part(text_turn, self._embed_texts, contents, part)
                    for part in _chunks(texts, self._text_backlog.items_per_call)
                ),
                *(
                    self._part(image_turn, embed_images, contents, part)
                    for part in _chunks(images, self._image_backlog.items_per_call)
                ),
            )
        embeddings: dict[int, Embedding] = {}
        times = []
        for part, rows, waited_ms in results:
            self._heard_of(rows.fingerprint)
            embeddings |= zip(part, rows.embeddings(), strict=True)
            times.append(rows.times.after_waiting(waited_ms))
        timing.add(_longest(times))
        return [embeddings[place] for place in range(len(contents))]

    async def classify(
        self, name: str, texts: Sequence[str], timing: Timing
    ) -> tuple[NDArray[np.float32], ModelInfo, int]:
        """n texts to logits float32[n, labels], the version of `name` that made them, and the tokens.

        Raises:
            BadInput: with `index` the place in `texts`.
            Overloaded: there is more to do than gets done in time.
        """
        places = list(range(len(texts)))
        backlog = self._classify_backlogs[name]
        for _ in range(SWAPS_ENDURED):
            draw = _draw()  # one a request: all of it is answered by one version
            part_of = partial(self._send_classify, name, draw)
            one_call = len(texts) <= min(JOINED_TEXTS, backlog.items_per_call)  # so one version
            if (joined := self._classified.get(name)) is not None and one_call:
                part_of = partial(joined, None)
            with backlog.admit(len(texts)) as turn:
                parts = _chunks(places, backlog.items_per_call)
                answers = await together(*(self._part(turn, part_of, texts, part) for part in parts))
            results = [result for _, result, _ in answers]
            timing.add(_longest(times.after_waiting(waited_ms) for _, (*_, times), waited_ms in answers))
            if len({info.fingerprint for _, info, _, _ in results}) == 1:
                logits = np.concatenate([logits for logits, *_ in results])
                return logits, results[0][1], sum(sum(tokens) for _, _, tokens, _ in results)
        raise NotReady(f"model {name!r} changed its version again and again during the request; try again")

    async def _send_classify(self, name: str, draw: float | None, texts: Sequence[str]) -> Classified:
        drawn = _draw() if draw is None else draw
        answer: Classified = await self._call(name, "classify", texts, drawn)
        return answer

    async def classify_images(
        self, name: str, images: Sequence[Content], timing: Timing
    ) -> tuple[NDArray[np.float32], ModelInfo]:
        """n images to logits float32[n, labels] of head `name`, and the version that made them."""
        embedded = await self.embed(images, timing)
        answer: Classified = await call(
            self._handle(name), "classify", embedded.vectors, _draw(), embedded.fingerprint
        )
        logits, info, _, times = answer
        timing.add(times)
        return logits, info

    async def _part(
        self,
        turn: Turn,
        work: Callable[[list[Any]], Awaitable[Result]],
        contents: Sequence[Content],
        places: list[int],
    ) -> tuple[list[int], Result, float]:
        """The places, what `work` makes of the contents there, and how many milliseconds these waited for
        their turn. An error points into the caller's whole list."""
        came = time.perf_counter()
        try:
            async with turn(len(places)):
                waited_ms = (time.perf_counter() - came) * 1e3
                return places, await work([contents[i] for i in places]), waited_ms
        except SightlineError as error:
            raise (error if error.index is None else error.at(places[error.index])) from None

    async def _embed_texts(self, texts: list[str]) -> Rows:
        if self._texts is not None and len(texts) <= JOINED_TEXTS:
            return await self._texts(None, texts)
        return await self._send_texts(None, texts)

    async def _send_texts(self, _: None, texts: Sequence[str]) -> Rows:
        return Rows(*await self._call(self.encoder_name, "embed_texts", texts))

    async def _embed_images(self, images: list[bytes], *, thumbnails: bool) -> Rows:
        if self._preprocessor is None:
            return Rows(*await self._call(self.encoder_name, "embed_encoded", images, thumbnails))
        size = (await self.info(self.encoder_name)).image_size
        pixels, small, decoding = await call(self._preprocessor, "__call__", images, size, thumbnails)
        rows = Rows(*await self._call(self.encoder_name, "embed_images", pixels))
        return replace(rows, times=decoding.then(rows.times), thumbnails=small)

    async def check_thumbnails(self, thumbnails: Sequence[bytes]) -> None:
        """Has them looked at where images are decoded, a few at a time, for others' images wait behind them.

        Raises BadInput, with `index` the place.
        """
        for places in _chunks(list(range(len(thumbnails))), self._image_backlog.items_per_call):
            part = [thumbnails[place] for place in places]
            try:
                if self._preprocessor is None:
                    await self._call(self.encoder_name, "check_thumbnails", part)
                else:
                    await call(self._preprocessor, "check_thumbnails", part)
            except SightlineError as error:
                raise (error if error.index is None else error.at(places[error.index])) from None

    async def _call(self, name: str, method: str, *args: Any) -> Any:
        if (direct := self._direct.get(name)) is not None:
            return await direct.call(method, *args)
        return await call(self._handle(name), method, *args)

    def _handle(self, name: str) -> Handle:
        model = self.models[name]
        if isinstance(model, Unavailable):
            raise ApiError(
                503, "model_unavailable", f"model {name!r} has no weights: {model.reason}", "model"
            )
        return model


def _embedded(embeddings: Sequence[Embedding], info: ModelInfo) -> Embedded:
    """Of one model, which `info` is about if there are none."""
    if not embeddings:
        return Embedded(np.empty((0, info.dimensions or 0), np.float32), info.fingerprint, 0, {})
    return Embedded(
        np.stack([embedding.vector for embedding in embeddings]),
        embeddings[0].fingerprint,
        sum(embedding.tokens for embedding in embeddings),
        {place: e.thumbnail for place, e in enumerate(embeddings) if e.thumbnail is not None},
    )


def _draw() -> float:
    """What decides between a model's versions: 0 to 100."""
    return 100 * random.random()


def _part_of(answer: Classified, first: int, last: int, waited_ms: float) -> Classified:
    logits, info, tokens, times = answer
    return logits[first:last], info, tokens[first:last], times.after_waiting(waited_ms)


def _calls_at_once(scale: ScaleSettings, split: int) -> int:
    most = scale.max_replicas or scale.replicas
    counted = scale.target_ongoing_requests * most if scale.autoscales else 0
    return max(AT_ONCE * split * most, math.ceil(counted))


def _longest(times: Iterable[StageTimes]) -> StageTimes:
    return reduce(StageTimes.alongside, times, StageTimes())


def _chunks(places: list[int], size: int) -> list[list[int]]:
    return [places[i : i + size] for i in range(0, len(places), size)]
