"""Memory of a server's processes: PSS, in which a page that n processes share counts a n-th in each."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PSS: Final = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)
_PROC: Final = Path("/proc")


@dataclass(frozen=True)
class Process:
    pid: int
    name: str
    pss_mib: float
    replica: bool = False  # of a Serve deployment


def processes(variable: str, value: str) -> list[Process]:
    """This user's processes that were started with an environment variable, largest first.

    By environment, because a cluster's processes outlive their parents and change their sessions.
    """
    wanted = f"{variable}={value}".encode()
    found = []
    for directory in _PROC.iterdir():
        if not directory.name.isdigit():
            continue
        try:
            if wanted not in (directory / "environ").read_bytes().split(b"\0"):
                continue
            kilobytes = _PSS.search((directory / "smaps_rollup").read_bytes())
            title = (directory / "cmdline").read_bytes()
        except OSError:
            continue  # somebody else's, or gone by now
        if kilobytes:
            pss_mib = int(kilobytes[1]) / 1024
            replica = title.startswith(b"ray::ServeReplica")
            found.append(Process(int(directory.name), _name(title), pss_mib, replica))
    return sorted(found, key=lambda process: -process.pss_mib)


def report(found: list[Process]) -> str:
    lines = [f"{process.pss_mib:9.1f} MiB  {process.name}" for process in found]
    total = sum(process.pss_mib for process in found)
    return "\n".join([*lines, f"{total:9.1f} MiB  PSS of {len(found)} processes"])


def _name(command: bytes) -> str:
    """`Gateway` of a Serve replica, else the program or the script or module it runs."""
    parts = [part for part in command.decode(errors="replace").split("\0") if part]
    if not parts:
        return "?"
    if parts[0].startswith("ray::"):
        title = parts[0].removeprefix("ray::").strip()  # of a replica ServeReplica:application:name.method
        return title.split(":")[-1].split(".")[0]
    if "python" in Path(parts[0]).name:
        interesting = [part for part in parts[1:] if not part.startswith("-")]
        return Path(interesting[0]).name if interesting else Path(parts[0]).name
    return Path(parts[0]).name
