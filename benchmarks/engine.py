"""The bare engine: the same networks that serve, in this process alone, without Ray or HTTP."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.models import ANY_AGREEMENT, build_models
from benchmarks.payloads import HEIGHT, WIDTH, text
from benchmarks.scenarios import LONG_CLASSIFY_WORDS, LONG_WORDS
from configs.settings import ClassifierSettings, ClipSettings, Int8Settings, Precision
from deployments.models.images import decode
from deployments.models.loading import load_classifier, load_encoder
from deployments.models.sources import resolve
from deployments.models.towers import Classifier, Encoder

POOL: Final = 64  # prepared items, drawn in turn
DECODES: Final = 24

Work = Callable[[int], None]  # does a batch of so many items


@dataclass(frozen=True)
class Networks:
    """What one worker runs."""

    encoder: Encoder
    classifier: Classifier
    decoders: ThreadPoolExecutor

    @property
    def concurrency(self) -> int:
        return self.encoder.image.engine.concurrency


def load(cache_dir: Path, precision: Precision, threads: int) -> Networks:
    clip, news = build_models(cache_dir)
    int8 = Int8Settings(**ANY_AGREEMENT)
    encoder_settings = ClipSettings(source=str(clip), precision=precision, int8=int8)
    classifier_settings = ClassifierSettings(source=str(news), precision=precision, int8=int8)
    return Networks(
        load_encoder(resolve(encoder_settings, cache_dir, starter=""), encoder_settings, cache_dir, threads),
        load_classifier(
            "news",
            resolve(classifier_settings, cache_dir, starter=""),
            classifier_settings,
            cache_dir,
            threads,
        ),
        ThreadPoolExecutor(threads),
    )


def works(networks: Networks, jpegs: Sequence[bytes]) -> dict[str, Work]:
    """The kinds of work, each on a batch; tokens and pixels are prepared, but for `photo`."""
    image, size = networks.encoder.image, networks.encoder.image.size

    def pixels(data: bytes) -> Any:
        return image.pre(decode(data, size, WIDTH * HEIGHT))

    def cycle(items: Sequence[Any], run: Callable[[list[Any]], object]) -> Work:
        turn = 0

        def work(batch: int) -> None:
            nonlocal turn
            run([items[(turn + i) % len(items)] for i in range(batch)])
            turn += batch

        return work

    def texts(tower: Any, words: int) -> Work:
        return cycle([tower.pre(text(i, words)) for i in range(POOL)], tower.run)

    clip_text, news = networks.encoder.text, networks.classifier.text
    return {
        "image": cycle([pixels(jpeg) for jpeg in jpegs], image.run),
        "photo": cycle(jpegs, lambda batch: image.run(list(networks.decoders.map(pixels, batch)))),
        "text": texts(clip_text, 9),
        "text-long": texts(clip_text, LONG_WORDS),
        "classify": texts(news, 12),
        "classify-long": texts(news, LONG_CLASSIFY_WORDS),
    }


@dataclass(frozen=True)
class Speed:
    """What all workers together did."""

    items_per_s: float
    batch_ms: float  # median
    cores: float  # processor time over time: fewer than the threads asked for, and others had the machine


def measure(workers: Sequence[Work], batch: int, seconds: float) -> Speed:
    """Each worker does batches for `seconds`, two at least, after one that does not count."""
    barrier = threading.Barrier(len(workers))

    def worker(work: Work) -> list[tuple[float, float]]:
        work(batch)  # shapes seen for the first time cost extra
        barrier.wait()
        end = time.perf_counter() + seconds
        spans: list[tuple[float, float]] = []
        while (began := time.perf_counter()) < end or len(spans) < 2:
            work(batch)
            spans.append((began, time.perf_counter()))
        return spans

    processor, began = time.process_time(), time.perf_counter()
    with ThreadPoolExecutor(len(workers)) as pool:
        each = list(pool.map(worker, workers))
    cores = (time.process_time() - processor) / (time.perf_counter() - began)
    # Each worker's own rate: the one that finishes last must not count the others' idle time.
    rate = sum(batch * len(spans) / (spans[-1][1] - spans[0][0]) for spans in each)
    batch_ms = median(1e3 * (finish - begin) for spans in each for begin, finish in spans)
    return Speed(round(rate, 1), round(batch_ms, 2), round(cores, 2))


def decode_ms(jpegs: Sequence[bytes], size: int = 224) -> float:
    """Median milliseconds to decode and resize one photo, on one thread."""
    spans = []
    for number in range(DECODES):
        began = time.perf_counter()
        decode(jpegs[number % len(jpegs)], size, WIDTH * HEIGHT)
        spans.append(time.perf_counter() - began)
    return round(1e3 * median(spans), 2)
