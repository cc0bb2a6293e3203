"""Real photographs for tests, and their encodings."""

import base64
import io
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

# What a person would type to find each photo. The starter puts at least five of the six first.
WORDS = {
    "chelsea": "a cat",
    "coffee": "coffee",
    "rocket": "a rocket",
    "china": "a temple",
    "flower": "a flower",
    "motorcycle": "a motorcycle",
}


@cache
def photos() -> Mapping[str, NDArray[np.uint8]]:
    """Sample photographs of scikit-image and scikit-learn, uint8[height, width, 3]."""
    data: Any = skimage.data  # it publishes few types
    return {
        "chelsea": data.chelsea(),
        "coffee": data.coffee(),
        "rocket": data.rocket(),
        "astronaut": data.astronaut(),
        "motorcycle": data.stereo_motorcycle()[0],
        "china": load_sample_image("china.jpg"),
        "flower": load_sample_image("flower.jpg"),
    }


@cache
def jpeg(name: str, quality: int = 90) -> bytes:
    return encoded(photos()[name], "JPEG", quality=quality)


def stamped(data: bytes, number: int) -> bytes:
    """The same JPEG with a number in a comment: the picture is the same, and no cache knows it."""
    return data[:2] + b"\xff\xfe\x00\x0e%012d" % number + data[2:]


def encoded(pixels: NDArray[Any] | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Image file bytes."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def data_uri(data: bytes, media_type: str = "image/jpeg") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
