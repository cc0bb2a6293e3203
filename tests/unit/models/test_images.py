"""decode: every format and mode, orientation, limits, damage, and equality with transformers."""

import resource
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from deployments.errors import BadInput, TooLarge
from deployments.models.base import Pixels
from deployments.models.images import decode, media_type
from tests.photos import encoded, jpeg, photos

SIZE = 224
LIMIT = 64_000_000
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
PHOTOS = list(photos())


def reference(image: NDArray[np.uint8] | Image.Image) -> Pixels:
    """Pixels as the transformers CLIP processor makes them, before it normalises."""
    processor = CLIPImageProcessorPil(do_rescale=False, do_normalize=False)
    pixels: Pixels = processor(image)["pixel_values"][0].transpose(1, 2, 0)
    return pixels


def mean_error(a: Pixels, b: Pixels) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def assert_equals_reference(pixels: Pixels, expected: Pixels, wide: bool) -> None:
    """Every value, but for wide images, of which only the centre is resized: those all but equal it."""
    difference = np.abs(pixels.astype(int) - expected.astype(int))
    assert difference.max() <= (2 if wide else 0)
    assert difference.mean() <= 0.002


def flat(pixels: Pixels) -> list[int]:
    """The one colour of an image of one colour."""
    colours = np.unique(pixels.reshape(-1, 3), axis=0)
    assert len(colours) == 1
    return [int(channel) for channel in colours[0]]


@pytest.mark.parametrize("name", PHOTOS)
def test_equals_the_transformers_processor(name: str) -> None:
    image = photos()[name]
    wide = image.shape[1] > image.shape[0]
    assert_equals_reference(decode(encoded(image), SIZE, LIMIT), reference(image), wide)
    jpeg = encoded(image, "JPEG", quality=90)
    if min(image.shape[:2]) < 4 * SIZE:  # too small for DCT scaling
        assert_equals_reference(decode(jpeg, SIZE, LIMIT), reference(Image.open(BytesIO(jpeg))), wide)


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("scale", [3.3, 5])
def test_scaled_jpeg_decoding_stays_close(name: str, scale: float) -> None:
    image = Image.fromarray(photos()[name])
    large = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
    jpeg = encoded(large, "JPEG", quality=90)
    # 0.31 is the measured mean for a photograph at 1920x1280 (levels of 255).
    assert mean_error(decode(jpeg, SIZE, LIMIT), reference(Image.open(BytesIO(jpeg)))) < 0.5


@pytest.mark.parametrize(
    "shape", [(300, 223), (224, 224), (225, 224), (31, 97), (427, 640), (223, 300), (500, 63), (7, 5)]
)
def test_sizes_round_as_the_processor_does(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert_equals_reference(decode(encoded(image), SIZE, LIMIT), reference(image), shape[1] > shape[0])


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (1, 1), (2, 3), (65_000, 3)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    assert flat(decode(encoded(Image.new("RGB", size, (10, 20, 30))), SIZE, LIMIT)) == [10, 20, 30]


def test_a_long_strip_shows_its_centre() -> None:
    strip = np.zeros((10, 1000, 3), np.uint8)
    strip[:, 495:505] = 200
    pixels = decode(encoded(strip), SIZE, LIMIT)
    assert pixels[:, 30:-30].min() >= 190
    assert mean_error(pixels, reference(strip)) < 0.01


@pytest.mark.parametrize("format", FORMATS)
def test_every_format(format: str) -> None:
    image = photos()["chelsea"]
    data = encoded(image, format)
    assert media_type(data) == f"image/{format.lower()}"
    pixels = decode(data, SIZE, LIMIT)
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels.dtype == np.uint8
    assert mean_error(pixels, reference(image)) < 12  # a GIF has 256 colours; the others are closer


@pytest.mark.parametrize(
    ("mode", "colour", "format", "wanted"),
    [
        ("L", 100, "PNG", [100] * 3),
        ("1", 1, "PNG", [255] * 3),
        ("1", 0, "TIFF", [0] * 3),
        ("LA", (100, 0), "PNG", [255] * 3),
        ("LA", (100, 255), "PNG", [100] * 3),
        ("RGBA", (255, 0, 0, 0), "PNG", [255] * 3),
        ("RGBA", (255, 0, 0, 255), "PNG", [255, 0, 0]),
        ("RGBA", (255, 0, 0, 128), "PNG", [255, 127, 127]),
        ("RGBA", (255, 0, 0, 0), "WEBP", [255] * 3),
        ("RGBA", (255, 0, 0, 128), "TIFF", [255, 127, 127]),
        ("CMYK", (255, 0, 0, 0), "TIFF", [0, 255, 255]),
        ("CMYK", (0, 0, 0, 255), "JPEG", [0, 0, 0]),
        ("YCbCr", (128, 128, 128), "TIFF", [128] * 3),
        ("LAB", (255, 128, 128), "TIFF", None),
        ("I;16", 65_535, "PNG", [255] * 3),
        ("I;16", 32_896, "PNG", [128] * 3),
        ("I;16", 257, "TIFF", [1] * 3),
        ("I;16B", 65_535, "TIFF", [255] * 3),
        ("I", 65_535, "TIFF", [255] * 3),
        ("I", 2**31 - 1, "TIFF", [128] * 3),
        ("F", 0.5, "TIFF", [128] * 3),
        ("F", 200.0, "TIFF", [200] * 3),
    ],
)
def test_every_mode(
    mode: str, colour: float | tuple[int, ...], format: str, wanted: list[int] | None
) -> None:
    data = encoded(Image.new(mode, (300, 250), colour), format)
    pixels = decode(data, SIZE, LIMIT)
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels.dtype == np.uint8
    if wanted is not None:
        assert flat(pixels) == wanted


def test_unsigned_numbers_of_32_bits_reach_white() -> None:
    ramp = np.linspace(0, 2**32 - 1, 300, dtype=np.uint32)[None].repeat(300, 0)
    file = encoded(Image.fromarray(ramp.view(np.int32)), "TIFF")
    signed = struct.pack("<HHIHH", 339, 3, 1, 2, 0)  # which is what Pillow writes: SampleFormat 2
    unsigned = file.replace(signed, struct.pack("<HHIHH", 339, 3, 1, 1, 0))
    assert unsigned != file
    eight_bit = np.minimum(np.rint(ramp / 2**24), 255).astype(np.uint8)
    assert mean_error(decode(unsigned, SIZE, LIMIT), decode(encoded(eight_bit), SIZE, LIMIT)) == 0


def ramp_of(white: int) -> NDArray[np.float64]:
    return np.linspace(0, white, 300)[None].repeat(300, 0)


def tiff(content: bytes, tags: dict[int, int], order: Literal["<", ">"] = "<") -> bytes:
    """Of 300 by 300 pixels in one strip."""
    fields = {256: 300, 257: 300, 259: 1, 262: 1, 273: 8, 277: 1, 278: 300, 279: len(content)} | tags
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, fields[tag]) for tag in sorted(fields))
    directory = struct.pack(f"{order}H", len(fields)) + entries + bytes(4)
    start = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(content))
    return start + content + directory


def test_grey_of_12_bits_reaches_white() -> None:
    grey = np.rint(ramp_of(4095)).astype(int)
    first, second = grey[:, 0::2], grey[:, 1::2]
    packed = np.stack([first >> 4, ((first & 15) << 4) | (second >> 8), second & 255], -1).astype(np.uint8)
    wanted = np.rint(grey / 4095 * 255).astype(np.uint8)
    pixels = decode(tiff(packed.tobytes(), {258: 12}), SIZE, LIMIT)
    assert mean_error(pixels, decode(encoded(wanted), SIZE, LIMIT)) < 0.1


def test_the_least_of_16_bits_may_be_white() -> None:
    grey = np.rint(ramp_of(65_535)).astype("<u2")
    pixels = decode(tiff((65_535 - grey).tobytes(), {258: 16, 262: 0}), SIZE, LIMIT)
    assert mean_error(pixels, decode(encoded(Image.fromarray(grey)), SIZE, LIMIT)) < 0.1


def test_what_pillow_gives_other_pixels_of_is_refused() -> None:
    content = zlib.compress(ramp_of(1).astype(">f4").tobytes())
    with pytest.raises(BadInput, match="compressed big-endian TIFF"):
        decode(tiff(content, {258: 32, 259: 8, 339: 3}, ">"), SIZE, LIMIT)
    planes = np.zeros((3, 300, 300), "<u2").tobytes()
    deep = Image.new("RGB", (300, 300))
    file = encoded(deep, "TIFF", tiffinfo={284: 2})
    wide = file.replace(struct.pack("<3H", 8, 8, 8), struct.pack("<3H", 16, 16, 16))
    with pytest.raises(BadInput, match=r"separate planes|header cannot be read"):
        decode(wide + planes, SIZE, LIMIT)


def test_the_colour_key_of_16_bits_lies_over_white() -> None:
    grey = np.full((300, 300), 20_000, np.uint16)
    grey[:, :150] = 40_000
    pixels = decode(encoded(Image.fromarray(grey), transparency=40_000), SIZE, LIMIT)
    assert pixels[:, 10].min() == 255
    assert (pixels[:, -10] == 78).all()


def test_16_bit_keeps_its_gradient() -> None:
    ramp = np.linspace(0, 65_535, 300, dtype=np.uint16)[None].repeat(300, 0)
    pixels = decode(encoded(Image.fromarray(ramp)), SIZE, LIMIT)
    eight_bit = np.rint(ramp / 257).astype(np.uint8)
    assert mean_error(pixels, decode(encoded(eight_bit), SIZE, LIMIT)) == 0
    assert len(np.unique(pixels)) >= 200


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_palette_transparency_lies_over_white(transparency: int | bytes) -> None:
    image = Image.new("P", (50, 50), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    assert flat(decode(encoded(image), SIZE, LIMIT)) == [200, 0, 0]
    assert flat(decode(encoded(image, transparency=transparency), SIZE, LIMIT)) == [255] * 3
    assert flat(decode(encoded(image, "GIF", transparency=1), SIZE, LIMIT)) == [255] * 3


def test_colour_key_transparency_lies_over_white() -> None:
    image = Image.new("RGB", (50, 50), (9, 8, 7))
    assert flat(decode(encoded(image, transparency=(9, 8, 7)), SIZE, LIMIT)) == [255] * 3
    assert flat(decode(encoded(Image.new("L", (50, 50), 9), transparency=9), SIZE, LIMIT)) == [255] * 3


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_counts(format: str) -> None:
    frames = [Image.new("RGB", (60, 60), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert flat(decode(data, SIZE, LIMIT)) == [250, 0, 0]


# What each orientation tells a viewer to do (EXIF 2.32, tag 0x0112), here undone when writing.
UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def turned(image: Image.Image, orientation: int, format: str, **options: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose(UNDO[orientation]) if orientation in UNDO else image
    return encoded(stored, format, exif=exif, **options)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("wide", [True, False])
def test_exif_orientation(orientation: int, format: str, wide: bool) -> None:
    image = Image.fromarray(photos()["china"])
    upright = image if wide else image.transpose(Image.Transpose.ROTATE_90)
    pixels = decode(turned(upright, orientation, format), SIZE, LIMIT)
    assert_equals_reference(pixels, reference(upright), wide)


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_lossy_formats(orientation: int, format: str) -> None:
    image = Image.fromarray(photos()["china"])
    pixels = decode(turned(image, orientation, format, quality=95), SIZE, LIMIT)
    assert mean_error(pixels, reference(image)) < 2.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_a_scaled_jpeg(orientation: int) -> None:
    # 2445x1650: a quarter is 611.25x412.5, so the last row and column are pieces of pixels.
    image = Image.fromarray(photos()["motorcycle"]).resize((2445, 1650), Image.Resampling.BICUBIC)
    data = turned(image, orientation, "JPEG", quality=95)
    assert mean_error(decode(data, SIZE, LIMIT), reference(image)) < 1.5


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow's own remark
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff"]
)
def test_broken_exif_refuses_no_image(exif: bytes) -> None:
    image = photos()["chelsea"]
    pixels = decode(encoded(image, "JPEG", exif=exif, quality=95), SIZE, LIMIT)
    assert mean_error(pixels, reference(image)) < 3


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
def test_a_truncated_file_is_bad_input(format: str, share: float) -> None:
    data = encoded(photos()["coffee"], format)
    with pytest.raises(BadInput, match=r"truncated or corrupt|cannot be read"):
        decode(data[: int(len(data) * share)], SIZE, LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"%PDF-1.7 not an image",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"P6 1 1 255 abc",
    ],
)
def test_what_is_no_image_says_what_is_accepted(data: bytes) -> None:
    assert media_type(data) is None
    with pytest.raises(BadInput, match="JPEG, PNG, WebP, GIF, BMP and TIFF"):
        decode(data, SIZE, LIMIT)


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_bytes_never_escape_as_another_error(format: str) -> None:
    data = encoded(Image.fromarray(photos()["coffee"]).resize((60, 40)), format)
    random = np.random.default_rng(1)
    for _ in range(150):
        damaged = bytearray(data)
        for position in random.integers(4, len(data), random.integers(1, 20)):
            damaged[position] = random.integers(256)
        try:
            pixels = decode(bytes(damaged), SIZE, 1_000_000)
        except BadInput:
            continue
        assert pixels.shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("format", FORMATS)
def test_the_pixel_limit_is_read_from_the_header(format: str) -> None:
    data = encoded(Image.new("RGB", (200, 100)), format)
    assert decode(data, SIZE, 20_000).shape == (SIZE, SIZE, 3)
    with pytest.raises(TooLarge, match="20000 pixels; at most 19999"):
        decode(data, SIZE, 19_999)


def test_a_decompression_bomb_is_refused_by_our_limit_alone() -> None:
    bomb = encoded(Image.new("1", (20_000, 20_000)))  # 400 megapixels in 49 KB
    with pytest.raises(BadInput, match="400000000 pixels"):
        decode(bomb, SIZE, LIMIT)
    large = encoded(Image.new("1", (10_000, 9_500)))  # above the limit at which Pillow itself warns
    assert flat(decode(large, SIZE, 95_000_000)) == [0] * 3


def test_threads_decode_alike() -> None:
    files = [encoded(image, format) for image in photos().values() for format in ("JPEG", "PNG", "WEBP")]
    wanted = [decode(file, SIZE, LIMIT) for file in files]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            for pixels, expected in zip(
                pool.map(lambda f: decode(f, SIZE, LIMIT), files), wanted, strict=True
            ):
                np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("size", [64, 336])
def test_other_sizes(size: int) -> None:
    assert decode(encoded(photos()["coffee"]), size, LIMIT).shape == (size, size, 3)


def jpeg_of_scans(scans: int, after: bytes = b"") -> bytes:
    """A progressive one whose last scan comes again and again."""
    whole = encoded(Image.fromarray(photos()["coffee"]).convert("L"), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * (scans - whole.count(b"\xff\xda") + 1) + whole[-2:] + after


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    few = jpeg_of_scans(20)
    assert decode(few, SIZE, LIMIT).shape == (SIZE, SIZE, 3)
    decode(jpeg_of_scans(20, after=b"\xff\xda" * 200), SIZE, LIMIT)  # such as the film behind a photo
    with pytest.raises(BadInput, match="more than 100 scans; at most 100"):
        decode(jpeg_of_scans(101), SIZE, LIMIT)


def test_what_a_file_has_once_may_not_come_by_the_thousand() -> None:
    whole = jpeg("coffee")
    exif = b"\xff\xe1" + struct.pack(">H", 10) + b"Exif\0\0II"
    assert decode(whole[:2] + exif * 64 + whole[2:], SIZE, LIMIT).shape == (SIZE, SIZE, 3)
    decode(whole + (whole[:2] + exif + whole[2:]) * 65, SIZE, LIMIT)  # behind the picture, as of a burst
    with pytest.raises(BadInput, match="more than 64 Exif segments"):
        decode(whole[:2] + exif * 65 + whole[2:], SIZE, LIMIT)
    png = encoded(photos()["coffee"], "PNG")
    profile = b"\0\0\0\x03iCCPk\0\0" + struct.pack(">I", zlib.crc32(b"iCCPk\0\0"))
    with pytest.raises(BadInput, match="1000 colour profiles"):
        decode(png[:33] + profile * 1000 + png[33:], SIZE, LIMIT)


@pytest.mark.parametrize("big", [True, False])
def test_a_tiff_of_very_many_strips_is_refused_before_it_is_parsed(big: bool) -> None:
    tall = Image.new("L", (1, 70_000))
    wide = encoded(tall, "TIFF", big_tiff=big)
    assert decode(wide, SIZE, LIMIT).shape == (SIZE, SIZE, 3)
    rows = encoded(tall, "TIFF", big_tiff=big, tiffinfo={278: 1}, compression="tiff_deflate", strip_size=1)
    with pytest.raises(BadInput, match="70000 strips or tiles; at most 65536"):
        decode(rows, SIZE, LIMIT)


@pytest.mark.parametrize("side", [30_000, 65_535])
def test_a_gif_whose_canvas_is_filled_before_it_can_be_measured_is_refused(side: int) -> None:
    screen = b"GIF89a" + struct.pack("<HHBBB", side, side, 0, 0, 0)
    disposed = b"\x21\xf9\x04" + bytes([2 << 2, 0, 0, 0, 0])
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\x00\x3b"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TooLarge):
        decode(screen + disposed + frame, SIZE, LIMIT)
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
    )  # KiB; it would be 900 MiB or more


def test_a_tile_larger_than_the_limit_is_refused() -> None:
    tile, size = zlib.compress(bytes(4096 * 4096)), 4096
    tags = [(256, 1), (257, 1), (258, 8), (259, 8), (262, 1), (277, 1)]
    tags += [(322, size), (323, size), (324, 8 + 2 + 12 * 10 + 4), (325, len(tile))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + tile
    assert decode(data, SIZE, 4096 * 4096).shape == (SIZE, SIZE, 3)
    with pytest.raises(TooLarge, match="tiles of 4096 by 4096"):
        decode(data, SIZE, 4096 * 4096 - 1)


def test_a_bmp_in_runs_may_have_fewer_pixels() -> None:
    def bmp(width: int, height: int) -> bytes:
        runs, palette = b"\x01\x01\0\0\0\x01", bytes(1024)
        about = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
        start = 14 + len(about) + len(palette)
        return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + about + palette + runs

    assert decode(bmp(50_000, 1), SIZE, LIMIT).shape == (SIZE, SIZE, 3)
    with pytest.raises(TooLarge, match="run-length encoded and has 8000000 pixels"):
        decode(bmp(8_000_000, 1), SIZE, LIMIT)
