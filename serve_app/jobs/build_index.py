"""Fill a collection of a running server from a folder or bucket of images, or from Parquet with vectors.

    python -m serve_app.jobs.build_index photos/ COLLECTION
    python -m serve_app.jobs.build_index s3://bucket/photos COLLECTION --workers 8 --address auto
    python -m serve_app.jobs.build_index vectors.parquet COLLECTION --vector-column embedding --id-column sku

Images are embedded here by the code that serves, in parallel on Ray Data, and only vectors are sent. Rows of
Parquet files are read and sent without Ray, for there is nothing to compute. What the server has already, by
id, is not done again, so a job that was stopped is simply run again. An image's id is made from its content,
as the server does for an image without an id. What cannot be used is listed at the end. The API key, where
the server wants one, is taken from SIGHTLINE_API_KEY.
"""

import argparse
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from configs.files import real, whole
from configs.settings import ClipSettings, SettingsError
from configs.threads import cores
from deployments.errors import SightlineError, cause_of
from deployments.models.sources import ENCODER, resolve
from deployments.ray_cluster import connected
from serve_app.jobs.images import THERE, Embed, Folder, Read
from serve_app.jobs.server import KEY_VARIABLE, Collection, Item, Refused
from serve_app.jobs.vectors import Layout, Table, parquet_files
from serve_app.schemas import MISSING_IDS

READ_AT_ONCE: Final = 32  # files; one question to the server for each
EMBED_AT_ONCE: Final = 32  # images a forward; larger batches gain nothing on a CPU
LISTED: Final = 100  # problems


@dataclass
class Outcome:
    """What became of the items."""

    stored: int = 0
    there: int = 0
    problems: dict[str, str] = field(default_factory=dict)

    def store(self, items: Sequence[Item], collection: Collection, fingerprint: str | None) -> None:
        """Of items that share an id the collection keeps one. Raises Refused."""
        refusals = collection.store(items, fingerprint)
        self.stored += len({item.id for item in items if item.name not in refusals})
        self.problems |= refusals

    def report(self) -> None:
        write = sys.stderr.write
        for name, reason in islice(self.problems.items(), LISTED):
            write(f"left out: {name}: {reason}\n")
        if len(self.problems) > LISTED:
            write(f"left out: {len(self.problems) - LISTED} more\n")
        sys.stdout.write(f"stored {self.stored}, there already {self.there}, left out {len(self.problems)}\n")


@dataclass(frozen=True)
class Workers:
    """How many encoders embed, on which Ray cluster (None: one of our own), each with how many CPUs."""

    count: int = 1
    cpus: float = 1
    address: str | None = None


def index_images(
    source: str,
    collection: Collection,
    settings: ClipSettings,
    cache_dir: Path,
    workers: Workers,
    outcome: Outcome,
) -> None:
    """Embed and store the images under `source` that the collection does not have; `outcome` is added to.

    Raises:
        Refused: the server does not take them, or does not answer.
        SettingsError, NotReady: the encoder cannot be loaded.
        ValueError, OSError: the source cannot be listed.
    """
    folder = Folder.at(source)
    files = list(folder.files(outcome.problems))
    if not files:
        raise ValueError(f"{source} holds no files")
    found = collection.open({})  # tells what is wrong with the server before anything is started
    source_of = resolve(settings, cache_dir, starter=ENCODER)
    encoder = source_of, settings, cache_dir, workers.cpus, found["thumbnails"]
    one_for_reading = 1
    wanted = workers.count * workers.cpus + one_for_reading
    with (
        connected(workers.address, math.ceil(wanted)),
        tqdm(total=len(files), desc="indexing", unit="image") as bar,
    ):
        if workers.address:  # a cluster of its own has just what is wanted
            import ray

            free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
            every: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            bar.write(cpus_wanted(wanted, free.get("CPU", 0), every.get("CPU", 0)), file=sys.stderr)
        for batch in _embedded(files, Read(folder, collection), encoder, workers):
            _store_batch(batch, collection, outcome)
            bar.update(len(batch["id"]))


def cpus_wanted(wanted: float, free: float, every: float) -> str:
    """What to tell whoever watches: Ray waits for CPUs that a server's replicas keep, and says nothing."""
    needs = f"{wanted:g} CPUs are wanted (--workers times --cpus, and one to read)"
    found = f"{needs}, {free:g} of {every:g} are free"
    if wanted > every:
        return f"{found}; unless the cluster grows, give fewer --workers or --cpus"
    return found if wanted <= free else f"{found}; waiting for the others"


def _embedded(
    files: Sequence[tuple[str, int]], read: Read, encoder: tuple[Any, ...], workers: Workers
) -> Iterator[dict[str, Any]]:
    """What `Embed` makes of the files, a batch after the other, while the next ones are made."""
    import pyarrow as pa
    import ray.data
    from ray.exceptions import RayTaskError

    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one already
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # of its plans; what fails is raised
    columns = {"path": [path for path, _ in files], "size": [size for _, size in files]}
    embedded = (
        ray.data.from_arrow(pa.table(columns))
        .repartition(target_num_rows_per_block=READ_AT_ONCE)
        .map_batches(read, batch_size=READ_AT_ONCE, batch_format="numpy")
        .map_batches(
            Embed,
            fn_constructor_args=encoder,
            batch_size=EMBED_AT_ONCE,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=workers.count),
            num_cpus=workers.cpus,
        )
    )
    try:
        yield from embedded.iter_batches(batch_size=None, batch_format="numpy")
    except RayTaskError as error:
        cause = cause_of(error)
        if cause is error:
            raise
        raise cause from None


def _store_batch(batch: dict[str, Any], collection: Collection, outcome: Outcome) -> None:
    items = []
    for row, problem in enumerate(batch["problem"]):
        path = str(batch["path"][row])
        if problem == THERE:
            outcome.there += 1
        elif problem:
            outcome.problems[path] = str(problem)
        else:
            vector = np.frombuffer(batch["vector"][row], "<f4")
            metadata = {"path": path, "size": int(batch["size"][row])}
            thumbnail = batch["thumbnail"][row] or None
            items.append(Item(str(batch["id"][row]), path, vector, metadata, thumbnail))
    if items:
        outcome.store(items, collection, max(map(str, batch["fingerprint"])))


def index_vectors(
    source: str,
    collection: Collection,
    layout: Layout,
    fingerprint: str | None,
    batch: int,
    outcome: Outcome,
) -> None:
    """Store the rows of Parquet files, one or those of a folder, that the collection does not have.

    `outcome` is added to.

    Raises:
        Refused: as for images.
        ValueError, OSError: the source cannot be listed.
    """
    folder, files = parquet_files(source, outcome.problems)
    opened = False
    total = sum(size for _, size in files)
    with tqdm(total=total, desc="indexing", unit="B", unit_scale=True) as bar:
        for path, size in files:
            table = Table(folder, path, f"{path}: " if len(files) > 1 else "")
            for items, share in table.items(layout, batch, outcome.problems):
                if items and not opened:
                    collection.open({"dimensions": len(items[0].vector)})
                    opened = True
                missing = collection.missing([item.id for item in items])
                new = [item for item in items if item.id in missing]
                outcome.store(new, collection, fingerprint)
                outcome.there += len(items) - len(new)
                bar.update(size * share)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; 1 when nothing could be done, or the server refused."""
    given = _parser().parse_args(arguments)
    collection = Collection(given.url.rstrip("/"), given.collection, os.environ.get(KEY_VARIABLE))
    outcome, problem = Outcome(), None
    try:
        if given.vector_column:
            metadata = tuple(given.metadata_columns.split(",")) if given.metadata_columns else None
            layout = Layout(given.vector_column, given.id_column, metadata)
            index_vectors(given.source, collection, layout, given.fingerprint, given.batch, outcome)
        else:
            settings = ClipSettings(source=given.model)
            workers = Workers(given.workers, given.cpus, given.address)
            index_images(given.source, collection, settings, given.cache_dir.resolve(), workers, outcome)
    except (Refused, SettingsError, SightlineError, ValueError, OSError) as error:
        problem = str(error)
    outcome.report()
    if problem is not None:
        sys.stderr.write(f"{problem}\n")
    return 0 if problem is None and (outcome.stored or outcome.there) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serve_app.jobs.build_index",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="a folder or a URI of pyarrow's (s3://, gs://, hdfs://) of images")
    parser.add_argument("collection", help="is made if there is none")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server")
    images = parser.add_argument_group("images")
    images.add_argument("--model", default=ClipSettings().source, help="as the server's `clip.source`")
    images.add_argument("--workers", type=whole(1), default=1, help="encoders, each a process")
    images.add_argument("--cpus", type=real(0), default=cores(), help="of each worker")
    images.add_argument("--address", help="a running Ray cluster; without it one is started on this machine")
    images.add_argument("--cache-dir", type=Path, default=Path(".cache"), help="of weights")
    vectors = parser.add_argument_group("vectors in Parquet files")
    vectors.add_argument("--vector-column", help="a list of numbers in each row")
    vectors.add_argument("--id-column", help="without it ids are made from the vectors")
    vectors.add_argument("--metadata-columns", help="separated by commas (default: all others)")
    vectors.add_argument("--fingerprint", help="of the model that made them, for a collection of a model")
    vectors.add_argument(
        "--batch", type=whole(1, MISSING_IDS), default=500, help="rows sent at once (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
