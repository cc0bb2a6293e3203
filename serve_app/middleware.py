"""What wraps every request: its clock, its time limit, its metrics and its log line."""

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.settings import LimitSettings
from deployments.errors import Overloaded
from deployments.metrics import RequestMetrics
from deployments.timing import StageTimes
from serve_app.errors import error_response, let_go
from serve_app.limits import Admissions

logger = logging.getLogger("ray.serve")


class Timing:
    """The stage times of one request, added to by whatever handles it, and when it was out of the gateway."""

    def __init__(self) -> None:
        self.total = StageTimes()
        self._arrived = time.perf_counter()
        self._left: float | None = None  # the first call to a deployment
        self._back: float | None = None  # the last one's answer
        self.cache: Counter[str] = Counter()  # contents by where their embeddings came from

    def add(self, times: StageTimes) -> None:
        self.total = self.total.then(times)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """While the block runs a deployment is at work on this request."""
        if self._left is None:
            self._left = time.perf_counter()
        try:
            yield
        finally:
            self._back = time.perf_counter()

    def gateway(self) -> dict[str, float]:
        """Milliseconds until now: reading the request, calls to deployments, making the answer."""
        now = time.perf_counter()
        left = now if self._left is None else self._left
        back = now if self._back is None else self._back
        spans = {"parse": left - self._arrived, "calls": back - left, "answer": now - back}
        return {name: seconds * 1e3 for name, seconds in spans.items()}


# The request whose task this is, for what has no request at hand.
CURRENT: ContextVar[Timing | None] = ContextVar("timing", default=None)


def waiting_for_a_call() -> AbstractContextManager[None]:
    """Counts the block as a call to a deployment, for the request whose task this is, if it is one's."""
    timing = CURRENT.get()
    return timing.calling() if timing else nullcontext()


def timing_of(request: Request) -> Timing:
    """The clock that RequestContext gave this request."""
    timing = request.state.timing
    assert isinstance(timing, Timing)
    return timing


def extend_time_limit(request: Request, limit_s: float) -> None:
    """Give this request `limit_s` from now, for work that is known to take long."""
    _limit_of(request).reschedule(asyncio.get_running_loop().time() + limit_s)


def lift_time_limit(request: Request) -> float:
    """Let this request take as long as it likes; returns the limit in seconds, for parts of it."""
    _limit_of(request).reschedule(None)
    timeout_s: float = request.state.timeout_s
    return timeout_s


def _limit_of(request: Request) -> asyncio.Timeout:
    limit = request.state.time_limit
    assert isinstance(limit, asyncio.Timeout)
    return limit


def request_id_of(scope: Scope) -> str:
    """The caller's request id, or one made here or by Serve; who took the request puts it on the answer."""
    state = scope.setdefault("state", {})
    if "request_id" not in state:
        state["request_id"] = Headers(scope=scope).get("x-request-id") or uuid.uuid4().hex
    request_id: str = state["request_id"]
    return request_id


def log_here(scope: Scope) -> None:
    """Have RequestContext log this request at INFO, which Serve does of those that it hands on."""
    scope.setdefault("state", {})["log_here"] = True


class RequestContext:
    """ASGI middleware, the outermost: nothing that goes wrong inside leaves a caller without an answer."""

    def __init__(self, app: ASGIApp, limits: LimitSettings, admissions: Admissions) -> None:
        self._app = app
        self._timeout_s = limits.request_timeout_s
        self._retry_after_s = limits.retry_after_s
        self._admissions = admissions
        self._metrics = RequestMetrics()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        timing = Timing()
        CURRENT.set(timing)  # the server gives every request a task, and so a context, of its own
        entered, limit = asyncio.get_running_loop().time(), asyncio.timeout(self._timeout_s)
        state = scope.setdefault("state", {})
        state |= {"timing": timing, "timeout_s": self._timeout_s, "time_limit": limit}
        status = 499  # unless an answer starts, the caller went away

        async def send_with_timing(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).append("server-timing", server_timing(timing))
            await send(message)

        try:
            # Health is asked about most when there is too much to do, so it takes no room.
            room = 0 if scope["path"].startswith("/health") else 1
            with self._admissions.requests.admit(room), self._admissions.memory.holding():
                async with limit:
                    await self._app(scope, receive, send_with_timing)
        except Overloaded as error:
            headers = {"retry-after": str(self._retry_after_s)}
            response = error_response(429, "overloaded", error.message, headers=headers)
            await response(scope, receive, send_with_timing)
        except asyncio.CancelledError as error:
            let_go(error)  # the caller went away while it was being worked on
            raise
        except ClientDisconnect as error:
            let_go(error)  # in the middle of its body; there is nobody to answer
        except TimeoutError as error:
            if status != 499:
                raise  # the answer had begun; all that is left is to cut it short
            limit_s = (limit.when() or 0) - entered
            message = f"the request took longer than {limit_s:.3g} s; send less in one request"
            await error_response(408, "timeout", message)(scope, receive, send_with_timing)
            let_go(error)
        except Exception as error:
            logger.exception("request %s to %s failed", request_id_of(scope), scope["path"])
            if status != 499:
                raise
            message = "Sightline failed at this request; the log has the details under its request id"
            await error_response(500, "internal", message)(scope, receive, send_with_timing)
            let_go(error)
        finally:
            total_ms = (time.perf_counter() - start) * 1e3
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.record(route, scope["method"], status, total_ms, timing.total)
            if "log_here" in state:
                done = scope["method"], route, status, total_ms, request_id_of(scope)
                logger.info("%s %s %s %.1fms, request %s", *done)


def server_timing(timing: Timing) -> str:
    """The Server-Timing header's value (W3C Server Timing), milliseconds: the stages, which lie within
    `calls`, and what the gateway itself took before and after it. `cache` counts contents."""
    durations = vars(timing.total) | timing.gateway()
    entries = [f"{name};dur={duration:.2f}" for name, duration in durations.items()]
    if timing.cache:
        found = " ".join(f"{result}={count}" for result, count in timing.cache.items())
        entries.append(f'cache;desc="{found}"')
    return ", ".join(entries)
