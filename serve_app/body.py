"""Request bodies: read under a size limit, taken apart by content type, validated."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from configs.settings import LimitSettings, problem
from serve_app.errors import ApiError
from serve_app.limits import check_counts, hold

Schema = TypeVar("Schema", bound=BaseModel)

# A larger body is parsed in a thread: 1 MiB of JSON takes about 5 ms, in which nobody else is answered.
PARSED_AT_ONCE = 1024 * 1024

JSON = "application/json"
MULTIPART = "multipart/form-data"
CHARSETS = (b"utf-8", b"utf8", b"us-ascii", b"ascii", b"iso-8859-1", b"latin-1", b"latin1")
RAW_IMAGE = ("application/x-image", "application/octet-stream")


def media_type_of(request: Request) -> str:
    """The body's media type, lower case and without parameters; JSON where none is given."""
    return request.headers.get("content-type", JSON).split(";")[0].strip().lower()


def is_json(media_type: str) -> bool:
    return media_type == JSON or media_type.endswith("+json")


async def read(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises 413 as soon as it is known to exceed `max_bytes`, and as `hold` does."""
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdecimal() and len(declared) < 20 else 0
    chunks: list[bytes] = []
    received = 0
    if size <= max_bytes:
        async for chunk in request.stream():
            chunks.append(chunk)
            received += len(chunk)
            if received > max_bytes:
                break
            hold(len(chunk))
    if max(size, received) > max_bytes:
        message = f"the body is larger than {max_bytes} bytes; send less in one request"
        raise ApiError(413, "body_too_large", message)
    return b"".join(chunks)


async def read_json(
    request: Request,
    schema: type[Schema],
    max_bytes: int,
    check: Callable[[Schema], None] = lambda _: None,
) -> Schema:
    """The JSON body as `schema`. Raises 415, 413, 400 (not JSON) or 422 (JSON that does not validate).

    `check` raises for what is wrong beyond the schema; of a large body it is done beside the event loop too.
    """
    media_type = media_type_of(request)
    if not is_json(media_type):
        raise unsupported(media_type, JSON)
    content = await read(request, max_bytes)

    def parse() -> Schema:
        asked = validate(parse_json(content), schema)
        check(asked)
        return asked

    return parse() if len(content) < PARSED_AT_ONCE else await asyncio.to_thread(parse)


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
        problems = [(_path(e["loc"]), len(e["loc"]), problem(e)) for e in error.errors(include_url=False)]
        # Of a value that may be several things, the deepest complaint is about what it most nearly was.
        deepest = max(problems, key=lambda problem: problem[1])[0]
        messages = dict.fromkeys(message for path, _, message in problems if path == deepest)
        text = f"{deepest or 'body'}: {'; or '.join(messages)}"
        raise ApiError(422, "invalid_request", text, deepest or None) from None


async def read_images(
    request: Request, limits: LimitSettings, *also: str
) -> tuple[list[bytes], dict[str, str]]:
    """The images of a raw or multipart body, and the fields beside them: query, then form.

    `also` names content types the route takes by other means, for the message.

    Raises:
        ApiError: 413 too much, 400 a broken form, 415 anything but images.
    """
    media_type = media_type_of(request)
    if media_type not in RAW_IMAGE and media_type != MULTIPART and not media_type.startswith("image/"):
        raise unsupported(media_type, *also, "image/*", *RAW_IMAGE, MULTIPART)
    content = await read(request, limits.max_body_bytes)
    fields = dict(request.query_params)
    if media_type != MULTIPART:
        return [content], fields
    images, form_fields = await _take_apart(request.headers, content, limits)
    if not images:
        raise ApiError(422, "no_files", "the form has no files; send each image as a file part", "files")
    return images, fields | form_fields


async def _take_apart(
    headers: Headers, content: bytes, limits: LimitSettings
) -> tuple[list[bytes], dict[str, str]]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield content

    charset = parse_options_header(headers.get("content-type"))[1].get(b"charset", b"utf-8").lower()
    if charset not in CHARSETS:  # there are some that take minutes to decode
        accepted = ", ".join(name.decode() for name in CHARSETS)
        message = f"a form of charset {charset.decode('latin-1')!r} is not read; accepted are {accepted}"
        raise ApiError(400, "invalid_multipart", message)
    parser = MultiPartParser(
        headers, stream(), max_files=limits.max_images, max_part_size=limits.max_body_bytes
    )
    try:
        form = await parser.parse()
    except (MultiPartException, MultipartParseError, LookupError, ValueError) as error:
        if "Too many files" in str(error):
            check_counts(limits.max_images + 1, 0, limits, "files")
        raise ApiError(400, "invalid_multipart", f"not a valid multipart/form-data body: {error}") from None
    try:
        parts = form.multi_items()
        files = [await part.read() for _, part in parts if isinstance(part, UploadFile)]
        return files, {key: part for key, part in parts if isinstance(part, str)}
    finally:
        await form.close()


def unsupported(media_type: str, *accepted: str) -> ApiError:
    return ApiError(
        415,
        "unsupported_media_type",
        f"content type {media_type!r} is not supported here; send {', '.join(accepted)}",
    )


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
