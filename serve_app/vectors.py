"""Vectors as callers write them: a JSON list of numbers, or base64 of little-endian float32."""

import binascii
import struct
from base64 import b64decode
from typing import Annotated, Any, Final

import numpy as np
from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from deployments.models.base import Vectors

ACCEPTED: Final = "a vector is a list of finite numbers, or base64 of them as little-endian float32"
_BEYOND: Final = 2.0**128  # the first power of two that float32 does not reach


def read_vector(value: Any) -> Vectors:
    """float32[d] of a list or a base64 string. Whether it is finite and of the right length, the index sees.

    Raises:
        PydanticCustomError: something else.
    """
    if isinstance(value, np.ndarray):  # read before
        return value
    if isinstance(value, str):
        return _from_base64(value)
    if isinstance(value, list):
        return _from_numbers(value)
    raise _wrong(f"got {_KINDS.get(type(value), 'something else')}")


def _from_numbers(values: list[Any]) -> Vectors:
    kinds = list(map(type, values))
    if kinds.count(float) != len(kinds) and not set(kinds) <= {int, float}:
        place = next(i for i, kind in enumerate(kinds) if kind not in (int, float))
        raise _wrong(f"element {place} is {_KINDS.get(kinds[place], 'no number')}")
    try:
        # Twice as fast as numpy's own reading of a list, which would go by way of float64.
        return np.frombuffer(struct.pack(f"<{len(values)}f", *values), "<f4")
    except (OverflowError, struct.error):
        with np.errstate(over="ignore"):
            return np.array([number if abs(number) < _BEYOND else np.inf for number in values], "<f4")


def _from_base64(value: str) -> Vectors:
    try:
        content = b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _wrong(f"broken base64 ({error})") from None
    if len(content) % 4:
        raise _wrong(f"the base64 holds {len(content)} bytes, which is no multiple of 4")
    return np.frombuffer(content, "<f4")


def _wrong(problem: str) -> PydanticCustomError:
    # In a context, for braces of the message itself would be taken for places to fill.
    return PydanticCustomError("vector", "{problem}; {accepted}", {"problem": problem, "accepted": ACCEPTED})


_KINDS: Final[dict[type, str]] = {
    str: "a string",
    bool: "a boolean",
    list: "a list",
    dict: "an object",
    int: "a number",
    float: "a number",
    type(None): "null",
}

Vector = Annotated[
    Vectors,
    PlainValidator(read_vector),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "number"}},
                {"type": "string", "format": "byte", "description": "base64 of little-endian float32"},
            ]
        }
    ),
]
