"""How many cores and threads a process may use."""

import os


def cores() -> int:
    """Those that this process may run on, which a container can make fewer than there are."""
    return len(os.sched_getaffinity(0))


def threads_for(asked: int | None, cpus: float) -> int:
    """Threads set in the settings, else the whole CPUs the replica owns, else all it can run on: below one
    CPU the number is a scheduling fraction of a shared machine.

    Ray gives an actor OMP_NUM_THREADS from its `num_cpus` whatever the machine has, so every
    engine is told its threads explicitly.
    """
    if asked is not None:
        return asked
    return int(cpus) if cpus >= 1 else cores()
