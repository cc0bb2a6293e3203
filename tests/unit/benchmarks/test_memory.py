"""Memory of a server's processes, and what a soak makes of it."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from benchmarks.load.summary import Latency, Summary
from benchmarks.memory import Process, processes
from benchmarks.soak import BOUND_MIB, Sample, judge

LOAD = Summary(1, 1, 1, 1, 1, Latency(), Latency(), {"200": 10}, {}, {}, 0, 0)


def test_processes_are_found_by_their_environment_and_weighed() -> None:
    held = 64  # MiB
    code = f"x = bytearray({held} << 20); print('ready', flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"SIGHTLINE_TEST_MARK": "yes"},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == b"ready\n"
        found = processes("SIGHTLINE_TEST_MARK", "yes")
        assert [process.pid for process in found] == [child.pid]
        assert held <= found[0].own_mib < found[0].pss_mib < held + 100
        assert not processes("SIGHTLINE_TEST_MARK", "ye")
        child.stdin.close()


def sample(second: float, *mib: float, pids: tuple[int, ...] = (1, 2)) -> Sample:
    def process(pid: int, size: float) -> Process:
        mapped = 100 * second  # of files, which is nobody's leak
        return Process(pid, f"Replica{pid}", size + mapped, size, replica=True)

    return Sample(second, tuple(process(pid, size) for pid, size in zip(pids, mib, strict=True)))


def test_a_leak_fails_and_a_burst_does_not() -> None:
    leak = [sample(i, 500, 100 + i) for i in range(60)]
    result = judge(leak, LOAD, bound_mib=50)
    assert result.total.mib == 59
    assert result.total.mib_per_hour == 3600
    assert result.by_process["Replica1 (1)"].mib == 0
    assert len(result.problems) == 1
    assert "all by 59" in result.problems[0]
    assert not judge(leak, LOAD, bound_mib=60).problems
    burst = [sample(i, 500, 100 if i != 59 else 400) for i in range(60)]
    assert not judge(burst, LOAD, bound_mib=50).problems


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda i: 0, lambda i: 2048 * (i >= 16)),
        (lambda i: 0, lambda i: 2048 * (i >= 48)),
        (lambda i: 0, lambda i: 85 * max(0, i - 48)),
        (lambda i: -8 * i, lambda i: 8 * i),
    ],
    ids=["an early step", "a late step", "a late leak", "a leak that another process makes up for"],
)
def test_memory_that_grew_fails_however_it_did(
    first: Callable[[int], float], second: Callable[[int], float]
) -> None:
    rng = random.Random(0)

    def at(i: int, *more: float) -> Sample:
        noisy = (mib + extra + rng.uniform(-3, 3) for mib, extra in zip((500, 300), more, strict=True))
        return sample(30 * i, *noisy)

    (problem,) = judge([at(i, first(i), second(i)) for i in range(60)], LOAD, BOUND_MIB).problems
    assert "Replica2 (2)" in problem
    assert "Replica1" not in problem
    assert not judge([at(i, 0, 0) for i in range(60)], LOAD, BOUND_MIB).problems


def test_processes_that_keep_coming_fail() -> None:
    def at(second: int) -> Sample:
        more = tuple(Process(100 + n, "worker", 10, 10) for n in range(second // 5))
        return Sample(second, (Process(1, "Replica1", 500, 500, replica=True), *more))

    samples = [at(second) for second in range(60)]
    assert "came in the meantime hold 110 MiB" in judge(samples, LOAD, bound_mib=50).problems[0]
    assert not judge(samples, LOAD, bound_mib=120).problems


def test_a_lost_replica_or_a_failed_request_fails() -> None:
    replaced = [sample(i, 500, 100, pids=(1, 2 if i < 5 else 3)) for i in range(10)]
    assert "Replica2, Replica3" in judge(replaced, LOAD, bound_mib=50).problems[0]
    steady = [sample(i, 500, 100) for i in range(10)]
    refused = replace(LOAD, statuses={"200": 9, "503": 1})
    assert "503" in judge(steady, refused, bound_mib=50).problems[0]
