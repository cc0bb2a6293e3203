"""The benchmark's processes: found, weighed, and gone afterwards."""

import os
import subprocess
import sys

import pytest

from benchmarks import processes
from benchmarks.vector_peers.worker import Worker


def answer(value: int) -> tuple[int, int]:
    os.write(1, b"what a library prints")
    return os.getpid(), value + 1


def fail() -> None:
    raise ValueError("no such luck")


def leave() -> None:
    os._exit(3)


def test_a_worker_calls_functions_and_ends_with_its_block() -> None:
    mark = processes.new_mark()
    with Worker(sys.executable, mark) as worker:
        pid, value = worker.call(answer, 41)
        assert (pid, value) == (worker.call(answer, value=0)[0], 42)
        assert pid != os.getpid()
        assert processes.marked(mark) == [pid]
        with pytest.raises(RuntimeError, match="ValueError: no such luck"):
            worker.call(fail)
        assert worker.call(answer, 1) == (pid, 2)  # and it lives on
    assert processes.marked(mark) == []


def test_a_worker_that_died_is_reported() -> None:
    with Worker(sys.executable) as worker, pytest.raises(RuntimeError, match="ended with 3"):
        worker.call(leave)


def test_children_that_dropped_the_mark_are_found_and_ended() -> None:
    mark = processes.new_mark()
    script = "import subprocess, sys; subprocess.Popen(['sleep', '600'], env={}); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env=processes.environment(mark),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        found, memory = processes.marked(mark), processes.memory(parent.pid)
        command = processes.command(parent.pid)
        processes.end_all(mark, timeout_s=0)
    assert parent.pid in found
    assert len(found) == 2
    assert memory["total"] > memory["anonymous"] > 0
    assert command.split("\0")[:2] == [sys.executable, "-c"]
    assert processes.marked(mark) == []
    assert processes.memory(parent.pid) == dict.fromkeys(("total", "anonymous", "file", "shared"), 0)
