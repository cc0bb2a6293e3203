"""How many threads a replica may use."""

import os


def threads_for(asked: int | None, cpus: float) -> int:
    """Threads set in the settings, else the whole CPUs the replica owns, else all it can run on.

    Ray gives an actor OMP_NUM_THREADS from its `num_cpus` whatever the machine has, so every
    engine is told its threads explicitly.
    """
    if asked is not None:
        return asked
    if cpus >= 1:
        return int(cpus)
    return len(os.sched_getaffinity(0))
