"""One table from every error a request can meet to its status, and the body that tells the caller."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from deployments import errors as model_errors
from index import errors as index_errors
from serve_app.responses import json_response


class ApiError(Exception):
    """An error found by the gateway itself.

    `param` names the offending part of the request, for instance `input[3]`; with `retry` the answer says
    when to come back.
    """

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, *, retry: bool = False
    ) -> None:
        super().__init__(status, code, message, param)  # what a copy is made from
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry = retry

    def __str__(self) -> str:
        return self.message


# error type → (status, code); the first match along an error's class hierarchy counts.
TABLE: Mapping[type[Exception], tuple[int, str]] = {
    model_errors.TooLarge: (413, "too_large"),
    model_errors.BadInput: (422, "invalid_input"),
    model_errors.Overloaded: (429, "overloaded"),
    model_errors.NotReady: (503, "not_ready"),
    model_errors.ModelFailed: (503, "model_failed"),
    model_errors.EncoderMismatch: (409, "encoder_mismatch"),
    index_errors.CollectionNotFound: (404, "collection_not_found"),
    index_errors.CollectionExists: (409, "collection_exists"),
    index_errors.ItemNotFound: (404, "item_not_found"),
    index_errors.ModelMismatch: (409, "model_mismatch"),
    index_errors.BadFilter: (422, "invalid_filter"),
    index_errors.BadVector: (422, "invalid_vector"),
    index_errors.BadItem: (422, "invalid_item"),
    index_errors.AnswerTooLarge: (413, "too_many_results"),
    index_errors.BadLocation: (422, "invalid_location"),
    index_errors.SnapshotExists: (409, "snapshot_exists"),
    index_errors.IndexUnavailable: (503, "index_unavailable"),
    BackPressureError: (429, "overloaded"),
    DeploymentUnavailableError: (503, "not_ready"),
    RayActorError: (503, "not_ready"),
}

Handler = Callable[[Request, Exception], Awaitable[Response]]

KNOWN: tuple[type[Exception], ...] = (ApiError, *TABLE)

TYPES: Mapping[int, str] = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
}

CODES: Mapping[int, str] = {404: "unknown_route", 405: "method_not_allowed"}


def api_error(error: Exception, named: Callable[[int], str] | None = None) -> ApiError:
    """What a caller is told of an error in KNOWN; `named` is the request's word for a place in its list."""
    if isinstance(error, ApiError):
        return error
    cause = model_errors.cause_of(error)
    status, code = next(TABLE[kind] for kind in type(cause).__mro__ if kind in TABLE)
    index = getattr(cause, "index", None)
    param = None if index is None or named is None else named(index)
    if param is not None and isinstance(cause, index_errors.BadVector):
        param += ".vector"
    message = getattr(cause, "message", None) or _IN_WORDS.get(status, str(cause))
    return ApiError(status, code, message, param, retry=status in (429, 503))


def error_response(
    status: int,
    code: str,
    message: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """`{"error":{"message","type","param","code"}}`, the shape the openai package reads."""
    body = {
        "message": message,
        "type": TYPES.get(status, "invalid_request_error"),
        "param": param,
        "code": code,
    }
    return json_response({"error": body}, status=status, headers=headers)


def install(app: FastAPI, retry_after_s: int) -> None:
    """Have `app` answer every error of the table, FastAPI's own and the gateway's."""

    def answered_by(handler: Handler) -> Handler:
        async def answer(request: Request, error: Exception) -> Response:
            response = await handler(request, error)
            let_go(error)
            return response

        return answer

    async def known(request: Request, error: Exception) -> Response:
        # A route whose list is not called `input` says so.
        return await api(request, api_error(error, getattr(request.state, "named", "input[{}]".format)))

    async def api(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        headers = {"retry-after": str(retry_after_s)} if error.retry else None
        return error_response(error.status, error.code, error.message, error.param, headers)

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = CODES.get(error.status_code, "invalid_request")
        return error_response(error.status_code, code, _explain(error), headers=error.headers)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return error_response(422, "invalid_request", f"{name}: {first['msg']}", name)

    app.add_exception_handler(RequestValidationError, answered_by(invalid))
    for kind in TABLE:
        app.add_exception_handler(kind, answered_by(known))
    app.add_exception_handler(ApiError, answered_by(api))
    app.add_exception_handler(HTTPException, answered_by(http))


def let_go(error: BaseException) -> None:
    """Free what an answered error, and those behind it, keep alive: their frames and all that these hold.

    Where a frame leads back to its error, as that of whoever awaited a future does, all of it, with the
    request's body, would stay until a garbage collection.
    """
    behind = [error]
    while behind:
        one = behind.pop()
        behind += one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        behind += [other for other in (one.__cause__, one.__context__) if other is not None]
        one.__traceback__ = one.__cause__ = one.__context__ = None


_IN_WORDS = {503: "the part of Sightline that this needs is not answering; try again shortly"}


def _explain(error: HTTPException) -> str:
    if error.status_code == 404:
        return "no such route; GET /docs lists the routes there are"
    if error.status_code == 405:
        allowed: Any = (error.headers or {}).get("Allow", "another method")
        return f"this route does not take that method; it takes {allowed}"
    return str(error.detail)
