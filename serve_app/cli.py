"""The command line: `sightline serve` runs a cluster of its own on this machine until stopped."""

import argparse
import os
import secrets
import signal
import sys
import tempfile
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from configs.files import add_set, laid_over, parse_overrides, read_config
from configs.settings import Settings, SettingsError
from serve_app.listening import Listening, listening

# Read by Ray when it is imported, so they are set before. The caller's own values win.
ENVIRONMENT = {
    # Arguments between deployments go over gRPC and not through the object store, and user code runs
    # on the replica's main loop: two hops of 150 KB went from 74 to 497 requests/s on two cores.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_LOG_TO_STDERR": "1",
    # gRPC's own limit is 4 MiB; a whole request body must fit.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(256 * 1024 * 1024),
    # The proxy takes no more of a long body than the gateway can use.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.backpressure.bound_proxy",
    # A one-machine cluster, as Ray makes on a Mac: its node is 127.0.0.1 and not the network's address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Of glibc, for every process: eight for each core leave more of freed memory unused, 60 MB over all.
    "MALLOC_ARENA_MAX": "2",
    # Workers started ahead of a first task are not the ones that Serve's actors take: they idle, 44 MB each.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}

READY_TIMEOUT_S = 30.0


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="sightline", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve on this machine until interrupted")
    serve.add_argument("config", type=Path, nargs="?", default=Path("serve_config.yaml"))
    add_set(serve)
    serve.add_argument("--host", help="address to listen on (default: the file's)")
    serve.add_argument("--port", type=int, help="port to listen on (default: the file's)")
    serve.add_argument("--metrics-port", type=int, help="port of Prometheus metrics (default: any free one)")
    restore = commands.add_parser("restore", help="fill a new data directory from snapshots")
    restore.add_argument("source", help="the directory or URI that the snapshots were written to")
    restore.add_argument("data_dir", type=Path, help="a data_dir whose index was never used")
    check = commands.add_parser("check", help="look for damage in a data directory that is not in use")
    check.add_argument("data_dir", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.command == "check":
        return run_check(arguments.data_dir)
    if arguments.command == "restore":
        return run_restore(arguments.source, arguments.data_dir)
    return run_server(arguments.config, arguments.set, arguments.host, arguments.port, arguments.metrics_port)


def run_server(
    config: Path, overrides: list[str], host: str | None, port: int | None, metrics_port: int | None
) -> int:
    """Serve `config`'s first application on a Ray cluster that lives and dies with this process."""
    try:
        file = read_config(config)
        args = laid_over(file.args, parse_overrides(overrides))
    except SettingsError as error:
        return _refuse(str(error))
    http = {"host": "127.0.0.1", "port": 8000, **file.http_options}
    http |= {key: value for key, value in {"host": host, "port": port}.items() if value is not None}
    try:
        place = listening(http, Settings.from_args(args).gateway.scale)
    except SettingsError as error:
        return _refuse(str(error))
    with tempfile.TemporaryDirectory(prefix="sightline-") as private:
        for name, value in (ENVIRONMENT | place.environment).items():
            os.environ.setdefault(name, value)
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            # Its own token: ray.init() alone would write one to the home directory, and with that turn
            # authentication on for every later cluster of this user.
            token = Path(private) / "token"
            token.write_text(secrets.token_hex(32))
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        return _serve(args, place, metrics_port)


def run_restore(source: str, data_dir: Path) -> int:
    """Restore every collection and shard at `source`; a server on `data_dir` then serves them."""
    from index.errors import IndexUnavailable
    from index.locations import Location
    from index.restore import restore_all

    place = Location(source if "://" in source else str(Path(source).absolute()))
    try:
        shards, names = restore_all(place, data_dir.absolute() / "index")
    except IndexUnavailable as error:
        return _refuse(error.message)
    print(f"restored {', '.join(names)}; serve them with index.shards={shards}")
    return 0


def run_check(data_dir: Path) -> int:
    """Print what is wrong with the index under `data_dir`, a line each; 1 if anything is."""
    from index.check import index_problems
    from index.errors import IndexUnavailable

    found = 0
    try:
        for problem in index_problems(data_dir / "index"):
            print(problem)
            found += 1
    except IndexUnavailable as error:
        return _refuse(error.message)
    print(f"{found} problems" if found else "everything is as it was written")
    return min(found, 1)


def _wait_for_rehearsal(url: str) -> None:
    """/health/ready answers once the gateway has its own first requests behind it, whatever it says then."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=READY_TIMEOUT_S)
    with closing(connection), suppress(OSError, HTTPException):
        connection.request("GET", "/health/ready")
        connection.getresponse()


def _refuse(message: str) -> int:
    print(f"sightline: {message}", file=sys.stderr)
    return 2


def _stop_in_order_when_asked() -> None:
    """SIGTERM as Ctrl-C. Ray sets a SIGTERM handler of its own while it starts, which would abort; and
    a shell starts background jobs with SIGINT ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def _serve(args: dict[str, Any], place: Listening, metrics_port: int | None) -> int:
    import ray

    from serve_app.workers import go_without_pandas

    go_without_pandas()
    from ray import serve

    from serve_app.app import build_app

    _stop_in_order_when_asked()
    try:
        app = build_app(args)
    except SettingsError as error:
        return _refuse(str(error))
    ray.init(
        address="local",
        namespace="serve",
        include_dashboard=False,
        log_to_driver=True,
        _metrics_export_port=metrics_port,
        runtime_env={"worker_process_setup_hook": "serve_app.workers.set_up"},
    )
    try:
        _stop_in_order_when_asked()
        serve.start(
            proxy_location="HeadOnly", http_options=place.proxy, logging_config={"log_level": "WARNING"}
        )
        serve.run(app, name="sightline", route_prefix="/")
        _stop_in_order_when_asked()
        _wait_for_rehearsal(place.url)
        print(f"Sightline is ready on {place.url} (API: /docs)", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        print("Sightline is stopping", flush=True)
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
