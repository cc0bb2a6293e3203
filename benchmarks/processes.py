"""Processes of a system: found, weighed, and seen to be gone.

Needs nothing but Python, for the peers' own processes import it too.
"""

import os
import secrets
import signal
import time
from pathlib import Path

MARK = "VECTOR_SEARCH_BENCHMARK"
PARTS = {"total": "Pss", "anonymous": "Pss_Anon", "file": "Pss_File", "shared": "Pss_Shmem"}


def new_mark() -> dict[str, str]:
    """An environment variable by which `marked` finds the processes that inherit it."""
    return {MARK: secrets.token_hex(8)}


def environment(mark: dict[str, str], **extra: str) -> dict[str, str]:
    return {**os.environ, **mark, **extra}


def marked(mark: dict[str, str]) -> list[int]:
    """The living processes that were started with these environment variables, and their descendants.

    By environment, because a cluster's processes outlive their parents and change their sessions.
    """
    entries = {f"{name}={value}".encode() for name, value in mark.items()}
    parents: dict[int, int] = {}
    found: set[int] = set()
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            try:
                state, parent = (directory / "stat").read_text().rsplit(")", 1)[1].split()[:2]
                if state == "Z":
                    continue
                parents[int(directory.name)] = int(parent)
                if entries <= {*(directory / "environ").read_bytes().split(b"\0")}:
                    found.add(int(directory.name))
            except (OSError, ValueError):
                continue  # ended meanwhile, or another user's
    # PostgreSQL's processes write their titles over their environment.
    while children := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= children
    return sorted(found)


def memory(pid: int) -> dict[str, int]:
    """Bytes of proportional set size, in total and by kind; a shared page counts once over all its processes.

    All zero if the process has ended.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        lines = []
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return {part: kilobytes.get(field, 0) * 1024 for part, field in PARTS.items()}


def command(pid: int) -> str:
    """How the process was called or calls itself, its arguments separated by NUL; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def bytes_on_disk(directory: Path) -> int:
    """What the files take, counted in blocks."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except OSError:
                continue  # compacted away meanwhile
    return total


def end_all(mark: dict[str, str], timeout_s: float = 10.0) -> None:
    """Waits for the marked processes to end, and kills those that do not."""
    deadline = time.monotonic() + timeout_s
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
