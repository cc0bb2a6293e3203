"""Every scenario on a real, small system, and what is made of the records."""

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import processes
from benchmarks.vector_peers import mixture, report, sightline
from benchmarks.vector_peers.bare_faiss import BareFaiss
from benchmarks.vector_peers.client import Measured
from benchmarks.vector_peers.dataset import Dataset, Floats
from benchmarks.vector_peers.measure import Plan, _load, cheapest, recall, scenarios
from benchmarks.vector_peers.system import Context, Ids, Setting
from benchmarks.vector_peers.worker import Worker

ABOUT = {"count": 2000, "dimensions": 80, "seed": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return mixture.prepare(tmp_path_factory.mktemp("bench"), **ABOUT)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    with Worker(sys.executable) as client:
        yield Context(Path(sys.executable), client, tmp_path)


@pytest.mark.parametrize(("kind", "clients"), [("flat", (1, 3)), ("hnsw", (3,))])
def test_a_system_goes_through_every_scenario_and_leaves_nothing(
    context: Context, data: Dataset, kind: str, clients: tuple[int, ...], tmp_path: Path
) -> None:
    plan = Plan(clients, warm_up_s=0.05, seconds=0.3)
    with BareFaiss(context, kind) as system:
        records = [{"label": system.label, **ABOUT, **record} for record in scenarios(system, data, plan)]
        running = system.processes()
    assert running
    assert not processes.marked(system.mark)
    assert not list(tmp_path.iterdir())

    searches = [record for record in records if record["scenario"] == "search"]
    assert [(record["filter"], record["clients"]) for record in searches] == [
        (filter, count) for filter in ("common", "rare", None) for count in clients
    ]
    for record in searches:
        assert record["recall"] == 1.0 if kind == "flat" else record["recall"] > 0.9
        assert 0 < record["p50_ms"] <= record["p99_ms"]
        assert record["throughput_per_s"] > 0
    assert [record["scenario"] for record in records if record not in searches] == [
        *("load", "memory", "disk", "restart")
    ]
    results = report.Results(records)
    file = results.value(f"faiss {kind}", "disk", "bytes")
    assert file is not None
    assert file > 2000 * 80 * 4
    lines = list(report.table(results))
    assert len({len(line) for line in lines}) == 1
    assert not any("-" in line.split() for line in lines)
    report.draw(results, "a heading", tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert np.asarray(picture).std() > 0


class Sometimes(BareFaiss):
    """Finds the share of the neighbours that the setting names, in percent, and takes the time it names."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, "flat")
        self.tried: list[Setting] = []

    def search(
        self,
        queries: Floats,
        setting: Setting,
        category: str | None,
        clients: int,
        window: tuple[float, float] | None,
    ) -> tuple[Measured, Ids]:
        self.tried.append(setting)
        measured, ids = super().search(queries, {}, category, clients, window)
        measured.latencies = [setting["ms"] / 1e3]
        wrong = {number for number in ids if number % 100 >= setting["percent"]}
        return measured, {number: [] if number in wrong else found for number, found in ids.items()}


class Restarting(Sometimes):
    setting_takes_restart = True


def test_the_fastest_setting_that_reaches_the_target_is_taken(context: Context, data: Dataset) -> None:
    with Sometimes(context) as system:
        system.load(data)
        tuning, _ = data.queries()

        def choose(*tried: tuple[int, int]) -> tuple[int, float]:
            settings = [{"percent": percent, "ms": ms} for percent, ms in tried]
            setting, reached = cheapest(system, tuning, settings, None)
            return setting["percent"], round(reached, 6)

        assert choose((50, 1), (94, 1), (96, 3), (100, 2), (98, 5)) == (100, 1.0)
        assert choose((50, 1), (94, 1), (96, 3), (100, 4)) == (96, 0.96)
        assert choose((50, 1), (90, 9), (80, 1)) == (90, 0.9)  # none reaches it: the nearest


def test_where_a_setting_takes_a_restart_few_are_tried(context: Context, data: Dataset) -> None:
    with (system := Restarting(context)):
        system.load(data)
        tuning, _ = data.queries()
        for reached_by in (10, 70, 100):
            system.tried.clear()
            settings = [
                {"percent": 100 if percent >= reached_by else percent * 9 // 10, "ms": percent}
                for percent in range(10, 110, 10)
            ]
            setting, reached = cheapest(system, tuning, settings, None)
            assert (setting["ms"], reached) == (reached_by, 1.0)
            assert len(system.tried) <= 4
        never = [{"percent": percent, "ms": percent} for percent in range(10, 90, 10)]
        assert cheapest(system, tuning, never, None)[0]["percent"] == 80


def test_the_wait_that_shows_a_build_to_be_over_is_no_part_of_it(
    data: Dataset, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled_s = 0.3
    monkeypatch.setattr(sightline, "SETTLED_S", settled_s)
    states = iter(["ready", "building", "building"])

    class Collection(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            info = dict.fromkeys(("kind", "actual_kind", "effort", "recall", "segments", "bytes_in_memory"))
            body = json.dumps({**info, "state": next(states, "ready"), "count": data.count}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    class Loaded(sightline.Sightline):
        def load(self, data: Dataset) -> None:
            """It is."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Collection) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(server.serve_forever, 0.01)
        try:
            system = Loaded(context, "auto")
            system.port = server.server_port
            began = time.perf_counter()
            (record,) = _load(system, data)
            took_s = time.perf_counter() - began
        finally:
            server.shutdown()
    assert next(states, None) is None
    assert 0 < record["build_s"] <= took_s - settled_s + 0.01


def test_recall_counts_distinct_true_neighbours_of_the_answered_queries() -> None:
    truth = np.arange(20).reshape(2, 10)
    assert recall({0: list(range(10))}, truth) == 1
    assert recall({0: [0] * 10, 1: [10, 11, 0, 1, 2]}, truth) == pytest.approx((0.1 + 0.2) / 2)
    assert recall({0: [0, 1, 2]}, np.arange(4).reshape(1, 4)) == 0.75  # no more than four pass the filter


def test_a_bar_is_empty_where_the_recall_is_below_the_target(tmp_path: Path) -> None:
    def filled(recall: float) -> int:
        record = {"label": "x", "scenario": "search", "filter": None, "clients": 1, "recall": recall}
        record |= {"throughput_per_s": 5, "p50_ms": 5, "p99_ms": 5}
        report.draw(report.Results([record]), "a heading", tmp_path / "picture.png")
        with Image.open(tmp_path / "picture.png") as picture:
            return int((np.asarray(picture) == report.COLOURS[False]).all(2).sum())

    assert filled(0.95) > 3 * filled(0.9499) > 0


def test_of_equal_scenarios_the_latest_counts(tmp_path: Path) -> None:
    def line(**fields: Any) -> str:
        return json.dumps({"label": "x", "scenario": "disk", "count": 1, **fields}) + "\n"

    path = tmp_path / "results.jsonl"
    path.write_text(line(bytes=1) + line(bytes=2) + line(bytes=3, count=7))
    assert report.read(path, count=1).value("x", "disk", "bytes") == 2
    assert report.read(path, count=7).value("x", "disk", "bytes") == 3
    assert report.read(path, count=8).labels == []
    assert report.read(tmp_path / "absent", count=1).labels == []
