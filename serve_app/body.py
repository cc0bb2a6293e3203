"""Request bodies: read under a size limit, taken apart by content type, validated."""

from collections.abc import AsyncIterator
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serve_app.errors import ApiError

Schema = TypeVar("Schema", bound=BaseModel)

JSON = "application/json"
MULTIPART = "multipart/form-data"
RAW_IMAGE = ("application/x-image", "application/octet-stream")


def media_type_of(request: Request) -> str:
    """The body's media type, lower case and without parameters; JSON where none is given."""
    return request.headers.get("content-type", JSON).split(";")[0].strip().lower()


def is_raw_image(media_type: str) -> bool:
    return media_type.startswith("image/") or media_type in RAW_IMAGE


def is_json(media_type: str) -> bool:
    return media_type == JSON or media_type.endswith("+json")


async def read(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises 413 as soon as it is known to exceed `max_bytes`."""
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdecimal() else 0
    chunks: list[bytes] = []
    received = 0
    if size <= max_bytes:
        async for chunk in request.stream():
            chunks.append(chunk)
            received += len(chunk)
            if received > max_bytes:
                break
    if max(size, received) > max_bytes:
        message = f"the body is larger than {max_bytes} bytes; send less in one request"
        raise ApiError(413, "body_too_large", message)
    return b"".join(chunks)


async def read_json(request: Request, schema: type[Schema], max_bytes: int) -> Schema:
    """The JSON body as `schema`. Raises 415, 413, 400 (not JSON) or 422 (JSON that does not validate)."""
    media_type = media_type_of(request)
    if not is_json(media_type):
        raise unsupported(media_type, JSON)
    return validate(parse_json(await read(request, max_bytes)), schema)


def parse_json(text: bytes | str, param: str | None = None) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "invalid_json", f"not valid JSON: {error}", param) from None


def validate(value: Any, schema: type[Schema]) -> Schema:
    """`value` as `schema`; 422 says which part is wrong and what it may be."""
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        location = _path(first["loc"])
        raise ApiError(422, "invalid_request", f"{location or 'body'}: {first['msg']}", location) from None


async def read_form(request: Request, max_bytes: int, max_files: int) -> FormData:
    """A multipart body, read under the size limit first. Raises 413 and 400."""
    content = await read(request, max_bytes)

    async def stream() -> AsyncIterator[bytes]:
        yield content

    # One more than the limit, so that the count check can say what the limit is.
    parser = MultiPartParser(
        request.headers, _as_generator(stream()), max_files=max_files + 1, max_part_size=max_bytes
    )
    try:
        return await parser.parse()
    except (MultiPartException, MultipartParseError, KeyError, UnicodeDecodeError) as error:
        raise ApiError(400, "invalid_multipart", f"not a valid multipart/form-data body: {error}") from None


def unsupported(media_type: str, *accepted: str) -> ApiError:
    return ApiError(
        415,
        "unsupported_media_type",
        f"content type {media_type!r} is not supported here; send {', '.join(accepted)}",
    )


async def _as_generator(chunks: AsyncIterator[bytes]) -> Any:
    async for chunk in chunks:
        yield chunk


def _path(location: tuple[int | str, ...]) -> str:
    """`("input", 3, "image")` as `input[3].image`; pydantic's own names for union members are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part.islower() and part not in _UNION_MEMBERS:
            path += f".{part}" if path else part
    return path


_UNION_MEMBERS = {"str", "int", "float", "bool", "list", "dict"}
