"""The CUDA engine beside the bare model on the same GPU, without Ray or HTTP.

    python -m benchmarks.cuda [--seconds 1] [--precision auto] [--batches 1,5,8,27,32,128,256]

`bare` replays the network over tensors that stay on the GPU, at exactly the batch's shape: what the hardware
gives. The others start from pixels and tokens in the process's memory and end with vectors there: `eager`
launches every kernel from Python, `graphs` is the engine with one batch at a time, `in flight` the engine as
it serves. Batches that are no bucket (5, 27) show what padding costs.
"""

import argparse
import copy
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.engine import POOL, Networks, load, measure, works
from benchmarks.payloads import Photos, build_photos
from configs.settings import Precision, Settings
from deployments.engines.cuda import CudaEngine

BATCHES: Final = (1, 5, 8, 27, 32, 128, 256)
KINDS: Final = {"image": "images", "text": "texts", "classify": "texts", "classify-long": "texts"}


@dataclass(frozen=True)
class Measured:
    """Items per second of one kind of work at one batch size."""

    kind: str
    batch: int
    bare: float
    eager: float
    graphs: float
    in_flight: float


class Recorder:
    """An engine that keeps what it was called with, and answers nothing of use."""

    name, precision, concurrency, buckets = "recorder", "fp32", 1, False

    def __init__(self) -> None:
        self.inputs: tuple[NDArray[Any], ...] = ()

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        self.inputs = inputs
        return np.zeros((len(inputs[0]), 1), np.float32)


def with_engines(networks: Networks, engines: Sequence[Any]) -> Networks:
    """The same towers over other engines, for images, texts and the classifier."""

    def over(tower: Any, engine: Any) -> Any:
        tower = copy.copy(tower)
        tower.engine = engine
        return tower

    encoder, classifier = networks.encoder, networks.classifier
    image, text, labels = engines
    return replace(
        networks,
        encoder=replace(encoder, image=over(encoder.image, image), text=over(encoder.text, text)),
        classifier=replace(classifier, text=over(classifier.text, labels)),
    )


@torch.inference_mode()
def bare(
    module: torch.nn.Module, inputs: Sequence[NDArray[Any]], stream: torch.cuda.Stream, seconds: float
) -> float:
    """Rows per second of the network alone, captured once and replayed for `seconds` on `stream`.

    No engine may use that stream: what it captured would not outlive this graph.
    """
    with torch.cuda.stream(stream):
        tensors = [torch.from_numpy(array).cuda() for array in inputs]
        for tensor in tensors:
            if tensor.ndim == 2:
                tensor[:, -1] = 0  # so that the warm-up does not leave out the mask, which the capture needs
        for _ in range(3):
            module(*tensors)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            module(*tensors)
        graph.replay()
        stream.synchronize()
        began, replays = time.perf_counter(), 0
        while time.perf_counter() < began + seconds:
            for _ in range(4):  # launched ahead, but not by more than a few batches
                graph.replay()
            stream.synchronize()
            replays += 4
        elapsed = time.perf_counter() - began
    return replays * len(inputs[0]) / elapsed


def measure_all(networks: Networks, jpegs: Sequence[bytes], options: argparse.Namespace) -> list[Measured]:
    encoder, classifier = networks.encoder, networks.classifier
    engines = [encoder.image.engine, encoder.text.engine, classifier.text.engine]
    modules = [engine.module for engine in engines if isinstance(engine, CudaEngine)]
    recorders = [Recorder() for _ in engines]
    recorded = works(with_engines(networks, recorders), jpegs)
    # Copies, for an engine reorders the weights of its module, which the graphs of another go on reading.
    plain = [
        CudaEngine(copy.deepcopy(module), precision=options.precision, max_graphs=0) for module in modules
    ]
    eager = works(with_engines(networks, plain), jpegs)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    served = [works(networks, jpegs) for _ in range(networks.concurrency)]
    place = {"image": 0, "text": 1, "classify": 2, "classify-long": 2}
    results = []
    for kind in KINDS:
        for batch in options.batches:
            recorded[kind](batch)
            at = place[kind]
            workers = [work[kind] for work in served]
            for work in workers:
                work(batch)  # captures, for each lane
            results.append(
                Measured(
                    kind,
                    batch,
                    round(bare(modules[at], recorders[at].inputs, stream, options.seconds), 1),
                    measure([eager[kind]], batch, options.seconds).items_per_s,
                    measure(workers[:1], batch, options.seconds).items_per_s,
                    measure(workers, batch, options.seconds).items_per_s,
                )
            )
    return results


def summary(results: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """By kind: the best rate as served, the bare model's best, and the share that the one is of the other."""
    found = {}
    for kind, unit in KINDS.items():
        same = [result for result in results if result.kind == kind]
        served = max(same, key=lambda result: result.in_flight)
        best = max(same, key=lambda result: result.bare)
        found[kind] = {
            f"{unit}_per_s": served.in_flight,
            "batch": served.batch,
            "bare_per_s": best.bare,
            "bare_batch": best.batch,
            "share": round(served.in_flight / best.bare, 3),
        }
    return found


def table(results: Sequence[Measured]) -> str:
    lines = [f"{'':15}{'batch':>7}{'bare':>12}{'eager':>12}{'graphs':>12}{'in flight':>12}   items/s"]
    lines += [
        f"{r.kind:15}{r.batch:7}{r.bare:12.1f}{r.eager:12.1f}{r.graphs:12.1f}{r.in_flight:12.1f}"
        for r in results
    ]
    return "\n".join(lines)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each kind, batch size and column")
    precisions = [precision for precision in get_args(Precision) if precision != "int8"]  # OpenVINO's alone
    parser.add_argument("--precision", choices=precisions, default="auto")
    parser.add_argument("--batches", type=lambda value: [int(n) for n in value.split(",")], default=BATCHES)
    parser.add_argument("--cache-dir", type=Path, default=Settings().cache_dir)
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; benchmarks.roof measures a CPU")
    return options


def main() -> None:
    options = parse()
    photos = Photos(build_photos(options.cache_dir / "bench" / "photos"))
    networks = load(options.cache_dir, options.precision, threads=1)
    results = measure_all(networks, [photos.jpeg(number) for number in range(POOL)], options)
    networks.decoders.shutdown()
    print(table(results))
    line = {
        "benchmark": "cuda",
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "precision": networks.encoder.info.precision,
        "best": summary(results),
        "measured": [asdict(result) for result in results],
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
