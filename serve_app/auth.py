"""API keys: who may call, compared in constant time."""

import hashlib
import hmac
import os
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from configs.settings import AuthSettings, SettingsError
from serve_app.errors import error_response

ALWAYS_OPEN = ("/health", "/v1/health", "/health/live", "/health/ready")
DOCS = ("/", "/docs", "/docs/oauth2-redirect", "/openapi.json")
DOCS_FILES = "/static-offline-docs/"


class BearerAuth:
    """ASGI middleware: answers 401 unless the request carries a configured key."""

    def __init__(self, app: ASGIApp, digests: Sequence[bytes], open_docs: bool) -> None:
        """`digests` of the keys, from `key_digests`; with none, every route is open."""
        self._app = app
        self._digests = digests
        self._open_docs = open_docs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed = (
            scope["type"] != "http"
            or not self._digests
            or self._is_open(scope["path"])
            or self._known(Headers(scope=scope).get("authorization", ""))
        )
        if allowed:
            await self._app(scope, receive, send)
            return
        response = error_response(
            401,
            "invalid_api_key",
            "missing or wrong API key; send `Authorization: Bearer <key>` with a configured key",
            headers={"www-authenticate": "Bearer"},
        )
        await response(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        docs = path in DOCS or path.startswith(DOCS_FILES)
        return path in ALWAYS_OPEN or (self._open_docs and docs)

    def _known(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        digest = key_digest(key.strip(" \t").encode("latin-1"))  # as headers are decoded, whatever they hold
        # Every key is compared, so that the time taken tells nothing about which one was close.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(matches)


def key_digests(settings: AuthSettings) -> tuple[bytes, ...]:
    """SHA-256 of each key of the environment variable and the file; empty when neither is configured.

    Raises:
        SettingsError: the variable is set, or a file configured, that holds no key or cannot be read.
    """
    return tuple(key_digest(key.encode("utf-8", "surrogateescape")) for key in _keys(settings))


def _keys(settings: AuthSettings) -> list[str]:
    variable = os.environ.get(settings.keys_env)
    keys = [key.strip() for key in (variable or "").split(",") if key.strip()]
    if variable is not None and not keys:
        raise SettingsError(f"{settings.keys_env} is set but holds no key; split keys by commas, or unset it")
    if settings.keys_file is not None:
        try:
            lines = settings.keys_file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise SettingsError(f"auth.keys_file: cannot read {settings.keys_file}: {error}") from None
        from_file = [key for line in lines if (key := line.strip()) and key[0] != "#"]
        if not from_file:
            raise SettingsError(f"auth.keys_file: {settings.keys_file} holds no key; put one on each line")
        keys += from_file
    return keys


def key_digest(key: bytes) -> bytes:
    """What is kept of a key: its SHA-256."""
    return hashlib.sha256(key).digest()
