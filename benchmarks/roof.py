"""The roof: the bare engine in one process, without Ray or HTTP, at its best batch size on the same cores.

What a server adds can only cost; how near it comes to this is what serving is measured by.

    python -m benchmarks.roof [--seconds 1] [--precisions bf16,fp32,int8] [--layouts 1x2,2x1]

A layout is networks x threads: `1x2` is one network on two threads, `2x1` two on one thread each, with no
barrier between them. A network gets as many batches at once as its engine takes. On a CUDA machine one
network is all there is; benchmarks.cuda tells what the GPU gives without the engine.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, get_args

import torch

from benchmarks.engine import POOL, Speed, decode_ms, load, measure, works
from benchmarks.payloads import HEIGHT, WIDTH, Photos, build_photos
from configs.settings import Precision, Settings
from configs.threads import cores

CPU_BATCHES: Final = (1, 8, 32)
CUDA_BATCHES: Final = (1, 32, 256)


@dataclass(frozen=True)
class Measured:
    """One kind of work on one layout. `photo` is decoding and the forward, `image` the forward alone."""

    kind: str
    precision: str
    layout: str
    engine: str
    batch: int
    speed: Speed


def measure_layout(
    cache_dir: Path, precision: Precision, layout: str, jpegs: Sequence[bytes], options: argparse.Namespace
) -> list[Measured]:
    count, threads = (int(number) for number in layout.split("x"))
    networks = [load(cache_dir, precision, threads) for _ in range(count)]
    info = networks[0].encoder.info
    each = [works(network, jpegs) for network in networks for _ in range(network.concurrency)]
    results = []
    for kind in each[0]:
        for batch in options.batches:
            speed = measure([work[kind] for work in each], batch, options.seconds)
            results.append(Measured(kind, info.precision, layout, info.engine, batch, speed))
    for network in networks:
        network.decoders.shutdown()
    return results


def best(results: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """By precision and kind: the fastest of all layouts and batches, and the latency of one item alone."""
    found: dict[str, dict[str, Any]] = {}
    for precision, kind in {(result.precision, result.kind): None for result in results}:
        same = [result for result in results if (result.precision, result.kind) == (precision, kind)]
        top = asdict(max(same, key=lambda result: result.speed.items_per_s))
        alone = min((result.speed.batch_ms for result in same if result.batch == 1), default=None)
        speed = top.pop("speed")
        found.setdefault(precision, {})[kind] = {**top, **speed, "alone_ms": alone}
    return found


def table(results: Sequence[Measured]) -> str:
    lines = [
        f"{'':15}{'precision':>10}{'layout':>8}{'batch':>7}{'items/s':>10}{'ms a batch':>12}{'cores':>7}"
    ]
    lines += [
        f"{r.kind:15}{r.precision:>10}{r.layout:>8}{r.batch:7}{r.speed.items_per_s:10.1f}"
        f"{r.speed.batch_ms:12.2f}{r.speed.cores:7.2f}"
        for r in results
    ]
    return "\n".join(lines)


def _list(value: str) -> list[str]:
    return [part for part in value.split(",") if part]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    threads = cores()
    layouts = [f"1x{threads}"] if cuda or threads == 1 else [f"1x{threads}", f"{threads}x1"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each kind, layout and batch size")
    parser.add_argument("--precisions", type=_list, default=["bf16", "fp32"])
    parser.add_argument("--layouts", type=_list, default=layouts)
    parser.add_argument("--batches", type=lambda value: [int(n) for n in _list(value)])
    parser.add_argument("--cache-dir", type=Path, default=Settings().cache_dir)
    options = parser.parse_args(argv)
    options.batches = options.batches or list(CUDA_BATCHES if cuda else CPU_BATCHES)
    if unknown := set(options.precisions) - set(get_args(Precision)):
        parser.error(f"no such precision: {', '.join(sorted(unknown))}")
    if not cuda:  # without bf16, fp32 would be measured twice
        from deployments.engines.openvino import native_precision

        options.precisions = list(dict.fromkeys(map(native_precision, options.precisions)))
    return options


def main() -> None:
    options = parse()
    photos = Photos(build_photos(options.cache_dir / "bench" / "photos"))
    jpegs = [photos.jpeg(number) for number in range(POOL)]
    results = [
        result
        for precision in options.precisions
        for layout in options.layouts
        for result in measure_layout(options.cache_dir, precision, layout, jpegs, options)
    ]
    decoding = decode_ms(jpegs)
    print(table(results))
    print(f"decoding a photo of {WIDTH}x{HEIGHT} on one thread: {decoding} ms")
    print(json.dumps({"benchmark": "roof", "decode_ms": decoding, "best": best(results)}))


if __name__ == "__main__":
    main()
