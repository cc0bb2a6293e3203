"""A running server as a job sees it: one collection, and which items it still lacks."""

import base64
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from deployments.models.base import Vectors

KEY_VARIABLE: Final = "SIGHTLINE_API_KEY"
PATIENCE_S: Final = 60  # how long a server may be overloaded or restarting
_TIMEOUT_S: Final = 120
_RETRY_S: Final = 1
_ITEM: Final = re.compile(r"items\[(\d+)\]")


class Refused(Exception):  # noqa: N818 — named like the errors of the deployments
    """The server does not take what is sent, or does not answer; `status` 0 stands for no answer."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(status, message, param)
        self.status = status
        self.message = message
        self.param = param

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Item:
    """What is sent; `name` is what a person knows it by."""

    id: str
    name: str
    vector: Vectors
    metadata: Mapping[str, Any]
    thumbnail: bytes | None = None


@dataclass(frozen=True)
class Collection:
    """One collection of the server at `url`. Picklable, so that workers can ask as well."""

    url: str
    name: str
    key: str | None = field(default=None, repr=False)

    def open(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What the server says of the collection, made with `settings` if there is none. Raises Refused."""
        try:
            return self._request("GET", "")
        except Refused as refused:
            if refused.status != http.client.NOT_FOUND:
                raise
        return self._request("PUT", "", settings)

    def missing(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that no item has. Raises Refused."""
        return set(self._request("POST", "/missing", {"ids": list(ids)})["missing"]) if ids else set()

    def evaluate(self, queries: int, k: int) -> dict[str, Any]:
        """The server's own measurement of the collection's recall and latency. Raises Refused."""
        return self._request("POST", "/evaluate", {"queries": queries, "k": k})

    def store(self, items: Sequence[Item], fingerprint: str | None) -> dict[str, str]:
        """Stores the items; returns the names of those the server would not have, and why.

        Raises:
            Refused: it takes none of them, whatever is left out.
        """
        left = list(items)
        refusals: dict[str, str] = {}
        while left:
            sent = [_sent(item) for item in left]
            body = {"items": sent} | ({"fingerprint": fingerprint} if fingerprint else {})
            try:
                self._request("POST", "/items", body)
                break
            except Refused as refused:
                place = _ITEM.match(refused.param or "") if refused.status == 422 else None
                if place is None:
                    raise
                refusals[left.pop(int(place[1])).name] = refused.message
        return refusals

    def _request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The answer's JSON; asks again while the server is overloaded, not ready or away."""
        headers = {"content-type": "application/json"}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        data = None if body is None else orjson.dumps(body, default=str)
        url = f"{self.url}/v1/collections/{self.name}{path}"
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                request = urllib.request.Request(url, data, headers, method=method)
                with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                    content: dict[str, Any] = json.load(answer)
                    return content
            except urllib.error.HTTPError as error:
                refused = _refused(error)
                if refused.status not in (408, 429, 503):
                    raise refused from None
            except (OSError, http.client.HTTPException) as error:
                refused = Refused(0, f"{self.url} does not answer: {error}")
            if time.monotonic() > give_up:
                raise refused
            time.sleep(_RETRY_S)


def _sent(item: Item) -> dict[str, Any]:
    vector = base64.b64encode(item.vector.astype("<f4").tobytes()).decode()
    sent = {"id": item.id, "vector": vector, "metadata": item.metadata}
    if item.thumbnail:
        sent["thumbnail"] = base64.b64encode(item.thumbnail).decode()
    return sent


def _refused(error: urllib.error.HTTPError) -> Refused:
    try:
        told = json.load(error)["error"]
        return Refused(error.code, f"the server answers {error.code}: {told['message']}", told["param"])
    except (ValueError, KeyError, TypeError):
        return Refused(error.code, f"the server answers {error.code}")
