"""Three minutes of mixed load: every answer is right, no replica is lost, and memory does not run away.

`make soak` does the same for half an hour.
"""

from benchmarks import soak
from benchmarks.servers import Target, fill_collection
from tests.server import Server

WARM_UP_S = 10.0  # allocators and kernels for the shapes of this traffic
WATCHED_S = 180.0
# A leak of one decoded photo a request would show as gigabytes; what quiet traffic shows is below 100 MiB.
BOUND_MIB = 400.0


def test_mixed_load_leaves_memory_where_it_was(server: Server) -> None:
    target = Target("sightline", server.url, ("RAY_TMPDIR", str(server.directory)))
    fill_collection(target.url)
    try:
        result = soak.soak(target, WATCHED_S, WARM_UP_S, clients=8, bound_mib=BOUND_MIB)
    finally:
        server.delete("/v1/collections/bench").raise_for_status()
    assert not result.problems, soak.report(result)
    assert result.load.statuses["200"] >= 2 * WATCHED_S, soak.report(result)
