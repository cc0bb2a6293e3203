"""Photos and texts to load a server with: real, and no two alike, so that no cache can help."""

import io
import json
import random
from base64 import b64encode
from pathlib import Path
from typing import Final

WIDTH: Final = 640
HEIGHT: Final = 427
PHOTOS: Final = 48  # cut from seven originals; what is sent is made unique by a comment in the JPEG
QUALITY: Final = 90

# Each is one token in CLIP's vocabulary and in BERT's, so that words are tokens.
WORDS: Final = (  # noqa: SIM905 (as a list they would fill a page)
    "apple bird blue boat book bridge brown car cat chair church city cloud coffee cold dog door "
    "dress fast field fire fish flower forest garden girl glass gold grass green hand happy hat hill "
    "home horse hot house island king kitchen lake large light line man map market moon morning "
    "mountain music new night ocean old orange paper park party people picture plane plant queen rain "
    "red river road rock room sea ship shop silver sky small snow star station stone street summer "
    "sun table tall tower town train tree valley village wall warm water white wind window winter "
    "woman wood"
).split()


def build_photos(directory: Path) -> Path:
    """Write the photos once: crops of scikit-image's and scikit-learn's samples, as JPEGs of 640 by 427."""
    if not (directory / f"{PHOTOS - 1}.jpg").is_file():
        from PIL import Image

        from tests.photos import photos

        directory.mkdir(parents=True, exist_ok=True)
        originals = [Image.fromarray(pixels) for pixels in photos().values()]
        rng = random.Random(0)
        for number in range(PHOTOS):
            image = originals[number % len(originals)]
            scale = rng.uniform(0.6, 1.0) * min(image.width / WIDTH, image.height / HEIGHT)
            left = rng.uniform(0, image.width - scale * WIDTH)
            top = rng.uniform(0, image.height - scale * HEIGHT)
            box = (left, top, left + scale * WIDTH, top + scale * HEIGHT)
            buffer = io.BytesIO()
            image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box).save(buffer, "JPEG", quality=QUALITY)
            temporary = directory / f"{number}.part"
            temporary.write_bytes(buffer.getvalue())
            temporary.rename(directory / f"{number}.jpg")
    return directory


class Photos:
    """Endless different JPEGs. Only a comment of 12 bytes is made per request, the rest is prepared."""

    def __init__(self, directory: Path) -> None:
        """Raises FileNotFoundError before `build_photos` has run."""
        files = [(directory / f"{number}.jpg").read_bytes() for number in range(PHOTOS)]
        self._tails = [file[2:] for file in files]  # what follows the start-of-image marker
        self._tails64 = [b64encode(tail) for tail in self._tails]

    def jpeg(self, number: int) -> bytes:
        return _stamp(number) + self._tails[number % PHOTOS]

    def data_uri(self, number: int) -> bytes:
        # The stamp is a multiple of three bytes long, so base64 of the two parts can be joined.
        return b"data:image/jpeg;base64," + b64encode(_stamp(number)) + self._tails64[number % PHOTOS]


def _stamp(number: int) -> bytes:
    """Start of image and a comment segment (ITU T.81, B.2.4.5) of 18 bytes together."""
    return b"\xff\xd8\xff\xfe\x00\x0e" + f"{number:012d}".encode()


def text(number: int, words: int) -> str:
    """`words` words, the same for the same number, and practically never for another."""
    return " ".join(random.Random(number).choices(WORDS, k=words))


def json_strings(strings: list[str]) -> bytes:
    """A JSON list of strings."""
    return json.dumps(strings, separators=(",", ":")).encode()
