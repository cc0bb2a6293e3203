"""Image bytes to the square of pixels an image tower takes: checked, oriented, resized, cropped."""

import re
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import islice, takewhile
from typing import Any, Final, Literal

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from deployments.errors import BadInput, TooLarge
from deployments.models.base import Pixels

ACCEPTED: Final = "accepted are JPEG, PNG, WebP, GIF, BMP and TIFF"

# Part of every image model's fingerprint: raise it when `decode` changes the pixels by more than rounding.
PREPROCESSING: Final = "shortest side, bicubic with antialias, centre crop; version 1"

_ORIENTATION_TAG: Final = 0x0112
# What turns an image of each orientation upright (EXIF 2.32, 4.6.5.1.6).
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_THUMBNAIL_QUALITY: Final = 80  # about 10 KB at 256 pixels

MAX_SCANS: Final = 100
"""Of a JPEG; progressive ones have some ten. Each is a pass over the whole picture: 5 ms of 64 megapixels."""
_JPEG_MARKER: Final = re.compile(rb"\xff+[^\x00\xff\xd0-\xd8\x01]")  # but for those without a length
_JPEG_SCAN: Final = 0xDA
_JPEG_END: Final = 0xD9
MAX_REPEATS: Final = 64
"""Exif segments or colour profiles; a file needs one. Pillow joins all segments, and unpacks each profile."""
_EXIF: Final = b"Exif\0\0"
MAX_PARTS: Final = 65_536
"""Strips or tiles of a TIFF, each of which Pillow goes through in Python."""
_TIFF_OFFSETS: Final = (273, 279, 324, 325)  # of strips and of tiles, and their byte counts
_BIG_TIFF: Final = 43
# Tags of a TIFF, and values of theirs.
_BITS: Final = 258
_PHOTOMETRIC: Final = 262
_MIN_IS_WHITE: Final = 0
_SAMPLES: Final = 277
_PLANES: Final = 284
_SEPARATE: Final = 2
_TILE_WIDTH: Final = 322
_TILE_LENGTH: Final = 323
_SAMPLE_FORMAT: Final = 339
_RESAVE: Final = "save it as PNG"
MAX_RLE_PIXELS: Final = 4_000_000
"""Of a BMP in runs: a kilobyte may stand for as many pixels as there are, which Pillow writes one by one."""

_AT_ONCE: Final = 1_000_000  # pixels that are floats between

Box = tuple[float, float, float, float]  # left, top, right, bottom; fractions of pixels count

# What is wider than high is resized only where the centre square comes from, and so are strips taller than
# this: a 1x10000 image would otherwise become 224x2240000 first. Between them Pillow, which orders its two
# passes by the sizes it is given, would round one value in six otherwise than the transformers processor.
_TALLEST_ASPECT: Final = 8

# The plugins are called directly, not through `Image.open`: nothing but these six formats can be reached.
# Those that look at Pillow's own limit of pixels (GIF, WebP, TIFF) do so where ours comes too late: a GIF of
# 43 bytes fills its canvas before its size can be asked.
_OPENERS: Final[dict[str, Callable[[BytesIO, str], ImageFile]]] = {
    "image/jpeg": JpegImagePlugin.JpegImageFile,
    "image/png": PngImagePlugin.PngImageFile,
    "image/webp": WebPImagePlugin.WebPImageFile,
    "image/gif": GifImagePlugin.GifImageFile,
    "image/bmp": BmpImagePlugin.BmpImageFile,
    "image/tiff": TiffImagePlugin.TiffImageFile,
}


def media_type(data: bytes) -> str | None:
    """The media type by the first bytes, or None for anything that is not an accepted image."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data.startswith(b"BM"):
        return "image/bmp"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0")):  # + is BigTIFF; Pillow reads no big-endian ones
        return "image/tiff"
    return None


def decode(data: bytes, size: int, max_pixels: int) -> Pixels:
    """Decode one image to uint8[size, size, 3] RGB, as CLIP's own preprocessing does.

    The EXIF orientation is applied, transparency is laid over white, the shortest side becomes
    `size` (bicubic with antialias) and the centre is cut out. JPEGs are decoded at a reduced DCT
    scale of at least twice `size`. Of an animation or a multi-page file, the first frame counts.

    Raises:
        BadInput: not an accepted format, truncated or corrupt.
        TooLarge: more than `max_pixels`, by its header.
    """
    return _decode(data, size, max_pixels, None)[0]


def decode_with_thumbnail(data: bytes, size: int, max_pixels: int, longest: int) -> tuple[Pixels, bytes]:
    """`decode`, and from the same pixels the whole image as a JPEG, its longest side at most `longest`.

    It is smaller where the image is, or a JPEG was decoded at a smaller scale. Raises as `decode` does.
    """
    pixels, thumbnail = _decode(data, size, max_pixels, longest)
    assert thumbnail is not None
    return pixels, thumbnail


def check_jpeg(data: bytes, longest: int) -> None:
    """Raises BadInput for what is no whole JPEG, or has a side of more than `longest` pixels."""
    if media_type(data) != "image/jpeg":
        raise BadInput("it is no JPEG")
    _check_parts(data, "image/jpeg")
    try:
        image = JpegImagePlugin.JpegImageFile(BytesIO(data), "")
        small = max(image.size) <= longest
        if small:
            image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise BadInput(f"it is truncated or corrupt ({_reason(error)})") from error
    if not small:
        raise BadInput(f"it has {image.width} by {image.height} pixels")


def _decode(data: bytes, size: int, max_pixels: int, longest: int | None) -> tuple[Pixels, bytes | None]:
    kind = media_type(data)
    if kind is None:
        found = "it is empty" if not data else f"it begins with {data[:8].hex(' ')}"
        raise BadInput(f"the data is not an image of a known format ({found}); {ACCEPTED}")
    name = kind.removeprefix("image/").upper()
    _check_parts(data, kind)
    try:
        image = _OPENERS[kind](BytesIO(data), "")
    except Image.DecompressionBombError as error:
        raise TooLarge(f"the {name} image has too many pixels ({error})") from None
    except Exception as error:  # Pillow's parsers raise whatever the broken bytes lead them to
        raise BadInput(f"the {name} image's header cannot be read ({_reason(error)}); {ACCEPTED}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise TooLarge(
            f"the image has {width} by {height} = {width * height} pixels; at most {max_pixels} are accepted"
        )
    if width < 1 or height < 1:
        raise BadInput(f"the image is empty: {width} by {height} pixels")
    _check_decoder(image, max_pixels)
    try:
        # A reduced JPEG is rounded up to whole pixels; its picture ends within the last of them.
        drafted = image.draft(None, (2 * size, 2 * size)) if kind == "image/jpeg" else None
        extent = drafted[1][2:] if drafted else (width, height)
        image.load()
        orientation = _orientation(image)
        rgb = _to_rgb(image)
        if orientation in _UPRIGHT:
            rgb = rgb.transpose(_UPRIGHT[orientation])
        if orientation >= 5:
            width, height = height, width
        box = _box(extent, rgb.size, orientation)
        thumbnail = _thumbnail(rgb, box, longest) if longest else None
        return np.asarray(_square(rgb, box, (width, height), size)), thumbnail
    except MemoryError:
        raise
    except Exception as error:
        raise BadInput(
            f"the {name} image is truncated or corrupt ({_reason(error)}); send a complete file"
        ) from error


def _check_parts(data: bytes, kind: str) -> None:
    """Raises BadInput for a few bytes that stand for minutes of decoding, which no pixel limit sees."""
    if kind == "image/jpeg":
        if (found := _jpeg_scans(data)) > MAX_SCANS:
            raise BadInput(
                f"the JPEG image has more than {found - 1} scans; at most {MAX_SCANS} are accepted"
            )
        if data.count(_EXIF) > MAX_REPEATS and _jpeg_exifs(data) > MAX_REPEATS:
            raise BadInput(f"the JPEG image has more than {MAX_REPEATS} Exif segments; one is usual")
    if kind == "image/png" and (found := data.count(b"iCCP")) > MAX_REPEATS:
        raise BadInput(f"the PNG image has {found} colour profiles; one is usual")
    if kind == "image/tiff" and (found := _tiff_parts(data)) > MAX_PARTS:
        raise BadInput(f"the TIFF image has {found} strips or tiles; at most {MAX_PARTS} are accepted")


def _jpeg_scans(data: bytes) -> int:
    """How often the picture is gone over, or a little more; counts to one more than is accepted."""
    if (most := data.count(b"\xff\xda")) <= MAX_SCANS:  # what follows the picture may hold these bytes too
        return most
    scans = (True for kind, _ in _jpeg_segments(data) if kind == _JPEG_SCAN)
    return sum(islice(scans, MAX_SCANS + 1))


def _jpeg_exifs(data: bytes) -> int:
    """The Exif segments before the picture; counts to one more than is accepted."""
    before = takewhile(lambda segment: segment[0] != _JPEG_SCAN, _jpeg_segments(data))
    exifs = (True for _, place in before if data.startswith(_EXIF, place))
    return sum(islice(exifs, MAX_REPEATS + 1))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The marker of each segment up to the picture's end, and where its content begins."""
    place = 2
    while (marker := _JPEG_MARKER.search(data, place)) and data[marker.end() - 1] != _JPEG_END:
        place = marker.end()
        yield data[place - 1], place + 2
        place += int.from_bytes(data[place : place + 2])


def _tiff_parts(data: bytes) -> int:
    """The strips or tiles of the first image, by its directory; 0 where there is none to be read."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"

    def number(place: int, size: int) -> int:
        return int.from_bytes(data[place : place + size], order)

    large = number(2, 2) == _BIG_TIFF and order == "little"
    start = number(8, 8) if large else number(4, 4)
    first, step, width = (start + 8, 20, 8) if large else (start + 2, 12, 4)
    entries = range(first, first + step * min(number(start, 8 if large else 2), len(data) // step), step)
    counts = [number(entry + 4, width) for entry in entries if number(entry, 2) in _TIFF_OFFSETS]
    return max(counts, default=0)


def _check_decoder(image: ImageFile, max_pixels: int) -> None:
    """Raises TooLarge for what takes far more to decode than its pixels tell, BadInput for what Pillow
    decodes to other pixels."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        width, height = image.tag_v2.get(_TILE_WIDTH, 0), image.tag_v2.get(_TILE_LENGTH, 0)
        if width * height > max_pixels:
            raise TooLarge(
                f"the image has tiles of {width} by {height} pixels; at most {max_pixels} are accepted"
            )
        bits, packed = image.tag_v2.get(_BITS, (1,)), image.info.get("compression", "raw") != "raw"
        if image.mode in ("I", "F") and packed and image.tag_v2.prefix == b"MM":
            raise BadInput(f"a compressed big-endian TIFF image of such numbers is not read; {_RESAVE}")
        if max(bits) > 8 and image.tag_v2.get(_SAMPLES, 1) > 1 and image.tag_v2.get(_PLANES) == _SEPARATE:
            raise BadInput(f"a TIFF image of more than 8 bits in separate planes is not read; {_RESAVE}")
    tiles: Any = image.tile
    if tiles and tiles[0][0] == "bmp_rle" and image.width * image.height > MAX_RLE_PIXELS:
        raise TooLarge(
            f"the BMP image is run-length encoded and has {image.width * image.height} pixels; of such at "
            f"most {MAX_RLE_PIXELS} are accepted: send it as PNG"
        )


def _thumbnail(image: Image.Image, box: Box, longest: int) -> bytes:
    """`box` of the image as a JPEG."""
    width, height = box[2] - box[0], box[3] - box[1]
    scale = min(1.0, longest / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # reducing_gap: whole pixels are averaged first, which makes little difference in looks and much in time.
    small = image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    file = BytesIO()
    small.save(file, "JPEG", quality=_THUMBNAIL_QUALITY)
    return file.getvalue()


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. Damaged EXIF data is no reason to refuse the pixels."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _box(extent: tuple[float, float], size: tuple[int, int], orientation: int) -> Box:
    """Where the picture lies within an upright image of `size`, given its extent before it was turned."""
    width, height = extent if orientation < 5 else extent[::-1]
    left = size[0] - width if orientation in (2, 3, 6, 7) else 0.0
    top = size[1] - height if orientation in (3, 4, 7, 8) else 0.0
    return (left, top, left + width, top + height)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bit(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(image, mask=image)
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or of floats, to 8 bits; Pillow's own convert would clip at 255.

    Integers up to 65535 keep the 16-bit scale and larger ones the 32-bit scale; floats up to 1.0 are
    taken as 0 to 1, larger ones as 0 to 255. NaN becomes black, and what a PNG calls transparent white.
    """
    grey = np.asarray(image)
    tags: Any = getattr(image, "tag_v2", {})
    if grey.dtype == np.int32 and 1 in tags.get(
        _SAMPLE_FORMAT, (1,)
    ):  # unsigned, which Pillow has no mode for
        grey = grey.view(np.uint32)
    if grey.dtype.kind == "f":
        white = 1.0 if np.nanmax(grey, initial=0) <= 1 else 255.0
    elif tags.get(_BITS) == (12,):
        white = 4095.0
    else:
        # 65535 / 257 = 255 and 2^32 / 2^24 = 256: the whole range maps onto 0 to 255.
        white = 65535.0 if grey.max() <= 65535 else 255 * 2.0**24
    inverted = tags.get(_PHOTOMETRIC) == _MIN_IS_WHITE and grey.dtype.kind != "f"
    transparent = image.info.get("transparency")
    small = np.empty(grey.shape, np.uint8)
    for start in range(0, len(grey), rows := max(1, _AT_ONCE // grey.shape[1])):
        part = grey[start : start + rows]
        scaled = np.nan_to_num(part.astype(np.float32), copy=False, nan=0.0)
        scaled *= np.float32(255 / white)
        np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled)
        if inverted:
            scaled = 255 - scaled
        if isinstance(transparent, int):
            scaled[part == transparent] = 255
        small[start : start + rows] = scaled
    return Image.fromarray(small)


def _square(image: Image.Image, box: Box, original: tuple[int, int], size: int) -> Image.Image:
    """Resize the shortest side to `size` and cut out the centre square.

    `box` is where the picture lies in `image`; `original` is its full width and height, from which
    every length is rounded as transformers does it, whatever scale it was decoded at. Where only the centre
    is resized, which takes a third less time for a photo of 3:2, one value of a photo in a thousand to
    ten thousand, and of a small image that is enlarged at most one in a hundred, differs from that of the
    whole image resized, by a level of 255, seldom two: Pillow keeps the box in float32. In a small
    strip taller than 8:1 those of noise differ by four on average.
    """
    width, height = original
    short = min(width, height)
    scaled_width, scaled_height = int(size * width / short), int(size * height / short)
    left, top = (scaled_width - size) // 2, (scaled_height - size) // 2
    if width <= height <= _TALLEST_ASPECT * width:
        whole = image.resize((scaled_width, scaled_height), Image.Resampling.BICUBIC, box=box)
        return whole.crop((left, top, left + size, top + size))
    x_scale, y_scale = (box[2] - box[0]) / scaled_width, (box[3] - box[1]) / scaled_height
    centre = (
        box[0] + left * x_scale,
        box[1] + top * y_scale,
        # Rounding must not carry the box past the edge, which Pillow refuses.
        min(box[0] + (left + size) * x_scale, image.width),
        min(box[1] + (top + size) * y_scale, image.height),
    )
    return image.resize((size, size), Image.Resampling.BICUBIC, box=centre)
