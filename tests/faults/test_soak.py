"""Three minutes of mixed load: every answer is right, no replica is lost, and memory does not run away.

`make soak` does the same for half an hour, with as much load as the machine takes.
"""

from benchmarks import soak
from benchmarks.servers import Target, fill_collection
from tests.server import Server

WARM_UP_S = 10.0  # allocators and kernels for the shapes of this traffic
WATCHED_S = 180.0
RATE = 5.0  # requests a second: far below what two cores do, the rest is for the tests that run beside it
# A leak of every decoded photo would show as 280 MiB; what quiet traffic shows is below 100 MiB.
BOUND_MIB = 180.0


def test_mixed_load_leaves_memory_where_it_was(server: Server) -> None:
    target = Target("sightline", server.url, ("RAY_TMPDIR", str(server.directory)))
    fill_collection(target.url)
    try:
        result = soak.soak(target, WATCHED_S, WARM_UP_S, BOUND_MIB, rate=RATE)
    finally:
        server.delete("/v1/collections/bench").raise_for_status()
    assert not result.problems, soak.report(result)
    assert result.load.answers_per_s >= 0.5 * RATE, soak.report(result)  # those that came in time
