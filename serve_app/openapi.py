"""The OpenAPI document: what FastAPI cannot see, since routes here read their own bodies."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve_app import schemas

REF = "#/components/schemas/{model}"
DESCRIPTION = (
    "Images and text to embeddings, labels and search results. "
    "Every error is `{error: {message, type, param, code}}`."
)
ERRORS = {
    "400": "The body is not what its content type says",
    "401": "Missing or wrong API key",
    "404": "Unknown route, model, collection or item",
    "408": "The request took longer than its time limit",
    "409": "The model or settings do not match the collection",
    "413": "Body, image count, text count or pixel count over its limit",
    "415": "Content type not supported",
    "422": "Valid JSON that fails validation, or an image that cannot be decoded",
    "429": "Overloaded; Retry-After says when to come back",
    "503": "What this needs is not ready",
}
NOT_FIELDS = {"input", "modality", "aggregate"}  # of what has meaning in a JSON body alone
QUERY = {"labels": "separated by commas"}
BINARY = {"schema": {"type": "string", "format": "binary"}}

_requests: set[type[BaseModel]] = set()


def accepts(
    schema: type[BaseModel], *, images: bool = False, also: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The `requestBody` of a route that takes `schema` as JSON, and what `also` has by media type.

    With `images` it also takes them raw or as form files, and the schema's other fields as query
    parameters or form fields.
    """
    _requests.add(schema)
    content: dict[str, Any] = {
        "application/json": {"schema": {"$ref": REF.format(model=schema.__name__)}},
        **(also or {}),
    }
    extra: dict[str, Any] = {"requestBody": {"required": True, "content": content}}
    if images:
        fields = {name: {"type": "string"} for name in schema.model_fields if name not in NOT_FIELDS}
        content |= {"image/*": BINARY, "application/octet-stream": BINARY}
        files = {"type": "array", "items": {"type": "string", "format": "binary"}}
        content["multipart/form-data"] = {
            "schema": {"type": "object", "properties": {"files": files, **fields}}
        }
        extra["parameters"] = [
            {
                "name": name,
                "in": "query",
                "schema": kind,
                "description": QUERY.get(name, "as in the JSON body"),
            }
            for name, kind in fields.items()
        ]
    return extra


def describe(app: FastAPI) -> None:
    """Have `app.openapi()` include the request schemas, the errors and the key."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    components = document.setdefault("components", {})
    models: list[type[BaseModel]] = [schemas.Error, *sorted(_requests, key=lambda model: model.__name__)]
    _, definitions = models_json_schema([(m, "validation") for m in models], ref_template=REF)
    known = components.setdefault("schemas", {})
    known |= definitions["$defs"]
    for unused in ("HTTPValidationError", "ValidationError"):
        known.pop(unused, None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if not path.startswith("/health"):
                operation["security"] = [{"key": []}, {}]
                for status, meaning in ERRORS.items():
                    operation["responses"][status] = _error(meaning)
    return document


def _error(meaning: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": REF.format(model="Error")}}}
    return {"description": meaning, "content": content}
