"""Requests to an application that runs in this very process, in Serve's local testing mode."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar, Self
from urllib.parse import urlencode, urlsplit

from ray import serve
from ray.serve import Application

from tests.waiting import PATIENCE_S


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


def error_of(answer: Answer, status: int, code: str) -> dict[str, Any]:
    """What the API says of an error, which must be this one."""
    assert answer.status == status, answer.content
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code, error
    assert error["message"]
    return error


class LocalClient:
    """Calls the ingress's ASGI app through its handle: Serve's own path, less the sockets."""

    _fresh = count()

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @classmethod
    def serving(cls, app: Application, name: str) -> Self:
        """Of an application that is loaded when this returns, which Serve does not wait for here.

        A model converted while tests begin and end meets their warning filters, which are the
        process's, and whose warnings are errors.
        """
        client = cls(serve.run(app, name=name, _local_testing_mode=True))
        client.get("/v1/models")  # answers once all are loaded, or at once where it wants a key
        return client

    @contextmanager
    def collection(self, **spec: Any) -> Iterator[str]:
        """The path of a new collection, which ends with the block."""
        path = f"/v1/collections/fresh-{next(self._fresh)}"
        answer = self.put(path, json_body=spec)
        assert answer.status == 200, answer.content
        yield path
        self.delete(path)

    def get(self, path: str, **kwargs: Any) -> Answer:
        return self.request("GET", path, **kwargs)

    def put(self, path: str, **kwargs: Any) -> Answer:
        return self.request("PUT", path, **kwargs)

    def post(self, path: str, **kwargs: Any) -> Answer:
        return self.request("POST", path, **kwargs)

    def delete(self, path: str, **kwargs: Any) -> Answer:
        return self.request("DELETE", path, **kwargs)

    def request(
        self,
        method: str,
        path: str,
        *,
        json_body: Any = None,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Answer:
        return self.submit(method, path, json_body, content, headers, params).result()

    def submit(
        self,
        method: str,
        path: str,
        json_body: Any = None,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        hangs_up: bool = False,
        stalls: bool = False,
    ) -> "_Pending":
        """Start a request; `.result()` waits for its answer, `.cancel()` hangs up.

        One that `stalls` never sends what should come after `content`.
        """
        given = {"host": "local", **(headers or {})}
        if json_body is not None:
            content = json.dumps(json_body).encode()
            given.setdefault("content-type", "application/json")
        given.setdefault("content-length", str(len(content)))
        parts = urlsplit(path)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": parts.path,
            "raw_path": parts.path.encode(),
            "query_string": (urlencode(params) if params else parts.query).encode(),
            "root_path": "",
            "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in given.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        exchange = _Exchange(content, hangs_up, stalls)
        return _Pending(self._handle.remote(scope, exchange.receive, exchange.send), exchange)


class _Exchange:
    """One request's ASGI channels. Handles copy their arguments even in one process, but not these."""

    _all: ClassVar[dict[int, "_Exchange"]] = {}

    def __init__(self, content: bytes, hangs_up: bool, stalls: bool) -> None:
        self._content: bytes | None = content
        self._hangs_up = hangs_up
        self._stalls = stalls
        self.messages: list[dict[str, Any]] = []
        self._all[id(self)] = self

    def __reduce__(self) -> Any:
        return _the_same, (id(self),)

    async def receive(self) -> dict[str, Any]:
        if self._hangs_up:
            return {"type": "http.disconnect"}
        if self._content is None:
            await asyncio.Event().wait()  # the caller stays until the answer is complete
        body, self._content = self._content, None
        return {"type": "http.request", "body": body, "more_body": self._stalls}

    async def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)


def _the_same(key: int) -> _Exchange:
    return _Exchange._all[key]


class _Pending:
    def __init__(self, response: Any, exchange: _Exchange) -> None:
        self._response = response
        self._messages = exchange.messages

    def cancel(self) -> None:
        self._response.cancel()

    def end(self) -> list[dict[str, Any]]:
        """Wait for the end without expecting an answer; the messages there were."""
        self._response.result(timeout_s=PATIENCE_S)
        return self._messages

    def result(self) -> Answer:
        self._response.result(timeout_s=PATIENCE_S)
        start = next(m for m in self._messages if m["type"] == "http.response.start")
        body = b"".join(m.get("body", b"") for m in self._messages if m["type"] == "http.response.body")
        headers = {k.decode(): v.decode() for k, v in start["headers"]}
        return Answer(start["status"], headers, body)
