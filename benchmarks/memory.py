"""Memory of a server's processes: PSS, in which a page that n processes share counts a n-th in each."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import command, marked, memory


@dataclass(frozen=True)
class Process:
    pid: int
    name: str
    pss_mib: float
    own_mib: float  # of it what is no file's
    replica: bool = False  # of a Serve deployment


def processes(variable: str, value: str) -> list[Process]:
    """The living processes that were started with an environment variable, largest first."""
    found = []
    for pid in marked({variable: value}):
        title = command(pid)
        size = memory(pid)
        if pss := size["total"]:  # none if it is gone by now
            own = pss - size["file"]
            replica = title.startswith("ray::ServeReplica")
            found.append(Process(pid, _name(title), pss / 2**20, own / 2**20, replica))
    return sorted(found, key=lambda process: -process.pss_mib)


def report(found: list[Process]) -> str:
    lines = [f"{process.pss_mib:9.1f} MiB  {process.name}" for process in found]
    total = sum(process.pss_mib for process in found)
    return "\n".join([*lines, f"{total:9.1f} MiB  PSS of {len(found)} processes"])


def _name(title: str) -> str:
    """`Gateway` of a Serve replica, else the program or the script or module it runs."""
    parts = [part for part in title.split("\0") if part]
    if not parts:
        return "?"
    if parts[0].startswith("ray::"):
        called = parts[0].removeprefix("ray::").strip()  # of a replica ServeReplica:application:name.method
        return called.split(":")[-1].split(".")[0]
    if "python" in Path(parts[0]).name:
        interesting = [part for part in parts[1:] if not part.startswith("-")]
        return Path(interesting[0]).name if interesting else Path(parts[0]).name
    return Path(parts[0]).name
