"""Real photographs for tests, and their encodings."""

import base64
import io
from functools import cache

import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_image

# What a person would type to find each photo.
WORDS = {
    "chelsea": "a cat",
    "coffee": "coffee",
    "rocket": "a rocket",
    "china": "a temple",
    "flower": "a flower",
    "motorcycle": "a motorcycle",
}


@cache
def photo(name: str) -> Image.Image:
    """One of the sample photos of scikit-image and scikit-learn, RGB."""
    if name in ("china", "flower"):
        return Image.fromarray(load_sample_image(f"{name}.jpg"))
    if name == "motorcycle":
        return Image.fromarray(skimage.data.stereo_motorcycle()[0])  # type: ignore[no-untyped-call]
    return Image.fromarray(getattr(skimage.data, name)())


@cache
def jpeg(name: str, quality: int = 90) -> bytes:
    return encode(photo(name), "JPEG", quality=quality)


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def data_uri(data: bytes, media_type: str = "image/jpeg") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
