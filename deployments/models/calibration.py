"""What int8 networks are calibrated on: images and texts of the user's, or photographs and class names."""

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from configs.settings import Int8Settings, LimitSettings, SettingsError
from deployments.engines.protocol import Agreement
from deployments.engines.quantization import Outputs, Row
from deployments.errors import BadInput, SightlineError
from deployments.models.base import Pixels
from deployments.models.images import ACCEPTED, decode
from deployments.models.scores import scores_of
from deployments.models.text import TextTokenizer

_LEAST: Final = 8  # images, and texts: with fewer the agreement would say nothing
_MOST: Final = 256  # of each; more take longer and change the ranges no further
_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

# Photographs that the int8 extra brings: scikit-learn is NNCF's own dependency.
_PHOTOS: Final = (
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),  # a cat
    ("skimage", "data/coffee.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/rocket.jpg"),
)
_CROPS: Final = 128
_TEXTS: Final = 128


@dataclass(frozen=True)
class CalibrationSet:
    """A model's calibration set; `setting` is where its settings stand, for messages."""

    setting: str
    settings: Int8Settings

    def digest(self) -> str:
        """Of the images and texts, and of how rows are made of them. Raises SettingsError."""
        digest = hashlib.sha256(Path(__file__).read_bytes())
        for file in self._image_files():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        digest.update(json.dumps(self._texts()).encode())
        return digest.hexdigest()

    def rows(self, facts: Mapping[str, Any]) -> dict[str, list[Row]]:
        """One image or text a row: pixels uint8[1, size, size, 3], or ids and mask int64[1, length].

        Raises:
            SettingsError: too few of them, or an image that cannot be decoded.
        """
        tokenizer = TextTokenizer.from_definition(
            facts["tokenizer"], facts["max_tokens"], facts.get("embedded")
        )
        try:
            ids = [tokenizer.encode(text)[None] for text in self._enough(self._texts(), "texts")]
        except BadInput as error:
            place = self.settings.calibration
            raise SettingsError(f"{self.setting}.int8.calibration: a text of {place}: {error}") from None
        rows: dict[str, list[Row]] = {"text": [(row, np.ones_like(row)) for row in ids]}
        if "image_size" in facts:
            images = self._enough(list(self._images(facts["image_size"])), "images")
            rows["image"] = [(pixels[None],) for pixels in images]
        return rows

    def compare(
        self, facts: Mapping[str, Any], wanted: Mapping[str, Outputs], found: Mapping[str, Outputs]
    ) -> Agreement:
        """An encoder's labels are the texts, an image's the nearest of them; a classifier's are its own.

        Of one output alone, a label's or a regression's, it is how far each row's lies from fp32's mean: the
        cosine over all rows, and the share on the same side.
        """
        if "image" in wanted:
            cosine = min(float(_cosines(wanted[name], found[name]).mean()) for name in wanted)
            before, after = (each["image"] @ each["text"].T for each in (wanted, found))
        elif np.array_equal(wanted["text"], found["text"]):
            return Agreement(1.0, 1.0)  # of rows that are all alike too, which have no direction
        elif wanted["text"].shape[1] == 1:
            mean = wanted["text"].mean()
            before, after = ((each["text"] - mean) @ [[1.0, -1.0]] for each in (wanted, found))
            cosine = float(_cosines(before.reshape(1, -1), after.reshape(1, -1))[0])
        else:
            before, after = (scores_of(each["text"], facts["scores"]) for each in (wanted, found))
            cosine = float(_cosines(before, after).mean())
        top1 = float((before.argmax(1) == after.argmax(1)).mean())
        return Agreement(round(cosine, 4), round(top1, 4))

    def judge(self, agreement: Agreement) -> None:
        """Raises SettingsError below either bound."""
        least = self.settings
        if agreement.cosine >= least.min_cosine and agreement.top1 >= least.min_agreement:
            return
        raise SettingsError(
            f"{self.setting}.precision: int8 agrees too little with fp32 on the calibration set: mean cosine "
            f"{agreement.cosine:.4f} (int8.min_cosine {least.min_cosine:g}), the same label first for "
            f"{agreement.top1:.1%} (int8.min_agreement {least.min_agreement:.1%}); choose another precision, "
            f"name images and texts like those to be served under {self.setting}.int8.calibration, or lower "
            "the bounds"
        )

    def _enough(self, items: list[Any], kind: str) -> list[Any]:
        if len(items) < _LEAST:
            raise SettingsError(
                f"{self.setting}.int8.calibration: {self.settings.calibration} holds {len(items)} {kind}; at "
                f"least {_LEAST} are needed (images in files, {ACCEPTED}; texts a line each in *.txt)"
            )
        return items

    def _files(self) -> list[Path]:
        directory = self.settings.calibration
        assert directory is not None
        if not directory.is_dir():
            raise SettingsError(f"{self.setting}.int8.calibration: {directory} is not a directory")
        return sorted(path for path in directory.rglob("*") if path.is_file())

    def _image_files(self) -> list[Path]:
        if self.settings.calibration is not None:
            return _spread([path for path in self._files() if path.suffix.lower() in _SUFFIXES], _MOST)
        files = []
        for package, path in _PHOTOS:
            spec = importlib.util.find_spec(package)
            if spec is None or spec.origin is None:
                raise SettingsError(
                    f"{self.setting}.int8.calibration: the photographs at hand come with {package}, which is "
                    "not installed: install the int8 extra, `pip install -e '.[int8]'`, or name a directory"
                )
            files.append(Path(spec.origin).parent / path)
        return files

    def _images(self, size: int) -> Iterator[Pixels]:
        files = self._image_files()
        if self.settings.calibration is None:
            yield from _crops(files, size)
            return
        for file in files:
            try:
                yield decode(file.read_bytes(), size, LimitSettings().max_image_pixels)
            except SightlineError as error:
                raise SettingsError(f"{self.setting}.int8.calibration: {file}: {error}") from error

    def _texts(self) -> list[str]:
        if self.settings.calibration is None:
            return _starter_texts()
        lines = (
            line.strip()
            for path in self._files()
            if path.suffix.lower() == ".txt"
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        )
        return _spread(list(dict.fromkeys(filter(None, lines))), _MOST)


def _starter_texts() -> list[str]:
    """Names of classes, and of others the definitions, alone and three together; no two of the same class."""
    from deployments.models.starter import class_lines

    classes = [line.split("\t") for line in class_lines().splitlines()]
    lines = iter(_spread(classes, _TEXTS // 8 * (4 + 3 + 3)))
    texts = []
    for _ in range(_TEXTS // 8):
        texts += [next(lines)[0] for _ in range(4)]
        texts += [next(lines)[1] for _ in range(3)]
        texts.append(". ".join(next(lines)[1] for _ in range(3)))
    return texts


def _crops(files: list[Path], size: int) -> Iterator[Pixels]:
    """Random parts of the photographs, mirrored and made lighter or darker, the same at every call."""
    random = np.random.default_rng(0)
    photos = []
    for file in files:
        with Image.open(file) as opened:
            photos.append(opened.convert("RGB"))
    for number in range(_CROPS):
        photo = photos[number % len(photos)]
        area = random.uniform(0.1, 1) * photo.width * photo.height
        ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        width = min(photo.width, float(np.sqrt(area * ratio)))
        height = min(photo.height, float(np.sqrt(area / ratio)))
        left, top = random.uniform(0, photo.width - width), random.uniform(0, photo.height - height)
        part = photo.resize(
            (size, size), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
        )
        pixels = np.asarray(part)[:, :: random.choice((1, -1))] * random.uniform(0.6, 1.4)
        yield np.clip(pixels, 0, 255).astype(np.uint8)


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most so many, evenly over all of them."""
    if len(items) <= most:
        return items
    return [items[number * len(items) // most] for number in range(most)]


def _cosines(a: Outputs, b: Outputs) -> NDArray[np.float32]:
    cosines: NDArray[np.float32] = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return cosines
