"""Requests to an application that runs in this very process, in Serve's local testing mode."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


class LocalClient:
    """Calls the ingress's ASGI app through its handle: Serve's own path, less the sockets."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

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
        return self.submit(method, path, json_body, content, headers, params).result(timeout_s=120)

    def submit(
        self,
        method: str,
        path: str,
        json_body: Any = None,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> "_Pending":
        """Start a request; `.result()` waits for its answer, `.cancel()` hangs up."""
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
            "headers": [(k.lower().encode(), v.encode()) for k, v in given.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        messages: list[dict[str, Any]] = []
        sent = False

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if sent:
                await asyncio.Event().wait()  # the caller stays until the answer is complete
            sent = True
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        response = self._handle.remote(scope, receive, send)
        return _Pending(response, messages)


class _Pending:
    def __init__(self, response: Any, messages: list[dict[str, Any]]) -> None:
        self._response = response
        self._messages = messages

    def cancel(self) -> None:
        self._response.cancel()

    def result(self, timeout_s: float) -> Answer:
        self._response.result(timeout_s=timeout_s)
        start = next(m for m in self._messages if m["type"] == "http.response.start")
        body = b"".join(m.get("body", b"") for m in self._messages if m["type"] == "http.response.body")
        headers = {k.decode(): v.decode() for k, v in start["headers"]}
        return Answer(start["status"], headers, body)
