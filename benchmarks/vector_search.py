"""Sightline's vector index beside its peers: Chroma, LanceDB, PostgreSQL with pgvector, and FAISS alone.

    make bench-index                                                      # 100 000 vectors
    make bench-index OPTIONS="--systems sightline,chroma --kind flat,hnsw --count 1000000"
    make bench-index OPTIONS=--quick                                         # 10 000 vectors, for trying

All run here, one after the other, on loopback, with the same vectors (vector_peers/mixture.py says how they
are made) and the same question: the ten nearest by cosine, each with id, score and metadata. Each keeps
its defaults but for what vector_peers/NAME.py says, and but for its search parameters: of those that reach
recall@10 of 0.95 on 500 queries the fastest counts. Everything reported is measured on 1000 others; a filter
is tuned by itself, and compared with the true neighbours among what passes. Clients are a closed loop in
one separate process (vector_peers/client.py), the same for every server; LanceDB and FAISS are libraries, so
their clients are threads of their own process and pay for no socket and no encoding.

Memory is PSS over all processes of a system while the most clients search it, without the kernel's page
cache; Sightline's holds the Ray runtime and the image and text models too. Each scenario ends in a JSON line
that is also kept in .cache/bench/vector_search.jsonl; the table and the picture show the latest of each, so
that systems can be measured one at a time.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks.vector_peers import mixture, report
from benchmarks.vector_peers.bare_faiss import KINDS, BareFaiss
from benchmarks.vector_peers.chroma import Chroma
from benchmarks.vector_peers.lancedb import INDEXES, LanceDb
from benchmarks.vector_peers.measure import TARGET_RECALL, Plan, machine, scenarios
from benchmarks.vector_peers.pgvector import Pgvector
from benchmarks.vector_peers.sightline import Sightline
from benchmarks.vector_peers.system import Context, System
from benchmarks.vector_peers.worker import Worker

BENCH = Path(".cache/bench")
PEERS_PYTHON = Path(".cache/peers/venv/bin/python")
RESULTS = BENCH / "vector_search.jsonl"
DIMENSIONS = 512

SYSTEMS = ("sightline", "chroma", "lancedb", "pgvector", "faiss")


def chosen(options: argparse.Namespace) -> Iterator[Callable[[Context], System]]:
    """Makers of the systems asked for; one with several kinds of index comes once for each."""
    for name in options.systems:
        match name:
            case "sightline":
                yield from (partial(Sightline, kind=kind) for kind in options.kind)
            case "lancedb":
                yield from (partial(LanceDb, kind=kind) for kind in options.lancedb_kind)
            case "faiss":
                yield from (partial(BareFaiss, kind=kind) for kind in options.faiss_kind)
            case "chroma":
                yield Chroma
            case "pgvector":
                yield Pgvector


def listed(text: str) -> list[str]:
    return text.split(",")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", default=list(SYSTEMS), type=listed, help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--count", type=int, help="of vectors (100000)")
    parser.add_argument("--kind", default=["auto"], type=listed, help="of Sightline's index (auto)")
    parser.add_argument("--faiss-kind", default=["flat"], type=listed, help=f"of {', '.join(KINDS)} (flat)")
    parser.add_argument(
        "--lancedb-kind", default=["IVF_HNSW_SQ"], type=listed, help=f"of {', '.join(INDEXES)}"
    )
    parser.add_argument("--clients", default=["1", "16"], type=listed, help="numbers of clients (1,16)")
    parser.add_argument("--seconds", type=float, help="of each search measurement (10)")
    parser.add_argument("--quick", action="store_true", help="10000 vectors and 2 s: for trying")
    parser.add_argument("--seed", type=int, default=0, help="of the vectors and queries (%(default)s)")
    parser.add_argument("--picture", type=Path, default=BENCH / "vector_search.png", help="(%(default)s)")
    options = parser.parse_args()
    for given, known in (
        (options.systems, SYSTEMS),
        (options.faiss_kind, KINDS),
        (options.lancedb_kind, INDEXES),
    ):
        if unknown := {*given} - {*known}:
            parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    options.count = options.count or (10_000 if options.quick else 100_000)
    seconds = options.seconds or (2.0 if options.quick else 10.0)
    options.plan = Plan([int(number) for number in options.clients], warm_up_s=seconds / 5, seconds=seconds)
    return options


def main() -> None:
    options = arguments()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    if not PEERS_PYTHON.exists():
        sys.exit(f"{PEERS_PYTHON} is missing: run this through `make bench-index`, which installs the peers")
    data = mixture.prepare(BENCH, options.count, DIMENSIONS, options.seed)
    about = {"count": options.count, "dimensions": DIMENSIONS, "seed": options.seed, "data": mixture.VERSION}
    with _context() as context:
        for make in chosen(options):
            with make(context) as system:
                described = {
                    "benchmark": "vector_search",
                    "label": system.label,
                    "version": system.version,
                    "transport": system.transport,
                    **about,
                }
                for record in scenarios(system, data, options.plan):
                    time = datetime.now(UTC).isoformat(timespec="seconds")
                    line = json.dumps({**described, **record, **machine(), "time": time})
                    print(line, flush=True)
                    with RESULTS.open("a") as file:
                        file.write(line + "\n")
    results = report.read(RESULTS, **about)
    heading = f"{options.count:,} vectors of {DIMENSIONS} dimensions; recall@10 at least {TARGET_RECALL}"
    print(f"\n{heading}", *report.table(results), sep="\n")
    report.draw(results, heading, options.picture)
    print(f"\n{options.picture}")


@contextmanager
def _context() -> Iterator[Context]:
    directory = Path(tempfile.mkdtemp(prefix="run-", dir=BENCH)).absolute()
    directory.chmod(0o755)  # PostgreSQL runs as another user
    try:
        with Worker(PEERS_PYTHON) as client:
            yield Context(PEERS_PYTHON.absolute(), client, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _end(number: int, _: object) -> None:
    """The first Ctrl-C stops every system in order; further ones do not cut that short."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
