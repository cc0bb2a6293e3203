"""A folder per class becomes a served image classifier."""

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.settings import ClipSettings
from deployments.models import image_head
from deployments.models.images import decode
from deployments.models.loading import load_encoder
from deployments.models.sources import ENCODER, resolve
from deployments.models.towers import Encoder
from tests.assets import CACHE, starter
from tests.photos import encoded, photos
from training.data import DataError
from training.head import Features
from training.image_folder import embed_folder, read_folder
from training.images import HeadOptions, fit, main, train_folder

CLASSES = ("chelsea", "rocket", "flower", "motorcycle")
CROPS = 20  # of each photo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of four photographs, a directory each; one file is broken and one stands in it twice."""
    root = tmp_path_factory.mktemp("folder")
    random = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir()
        pixels = photos()[name]
        height, width = pixels.shape[:2]
        for number in range(CROPS):
            side = int(random.uniform(0.6, 0.95) * min(height, width))
            top, left = random.integers(height - side), random.integers(width - side)
            crop = np.ascontiguousarray(pixels[top : top + side, left : left + side])
            (root / name / f"{number:02}.jpg").write_bytes(encoded(crop, "JPEG"))
    (root / "rocket" / "broken.jpg").write_bytes((root / "rocket" / "00.jpg").read_bytes()[:500])
    (root / "flower" / "again.jpg").write_bytes((root / "flower" / "00.jpg").read_bytes())
    return root


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    starter()
    settings = ClipSettings(source="starter")
    return load_encoder(resolve(settings, CACHE, starter=ENCODER), settings, CACHE, threads=2)


@pytest.mark.parametrize("hidden", [0, 16])
def test_a_head_is_trained_saved_and_classifies_what_it_never_saw(
    folder: Path, encoder: Encoder, tmp_path: Path, hidden: int
) -> None:
    starter()
    options = HeadOptions(hidden=hidden, epochs=60, lr=1e-2)
    published = train_folder(folder, tmp_path / "photos", "starter", options, "command", CACHE)
    assert published == tmp_path / "photos" / "1"
    head = image_head.load("photos", published, "here", "1")
    assert head.info.labels == tuple(sorted(CLASSES))
    assert head.info.encoder_fingerprint == encoder.info.fingerprint
    whole = [decode(encoded(photos()[name], "JPEG"), encoder.image.size, 10**7) for name in CLASSES]
    vectors = np.stack(encoder.image.run([encoder.image.pre(pixels) for pixels in whole]))
    found = [head.info.labels[i] for i in head.logits(vectors).argmax(1)]
    assert found == list(CLASSES)
    card = (published / "README.md").read_text()
    assert "Accuracy" in card
    assert "- left out: flower/again.jpg: same picture as flower/00.jpg" in card
    assert "- left out: rocket/broken.jpg: " in card
    assert "(line" not in card
    assert (published / "confusion.png").stat().st_size > 0


def test_embeddings_are_computed_once(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    listed = read_folder(folder)
    rows, vectors, left_out = embed_folder(listed, encoder, tmp_path)
    assert len(rows) == len(CLASSES) * CROPS
    assert list(left_out) == ["flower/again.jpg", "rocket/broken.jpg"]
    assert left_out["flower/again.jpg"] == "same picture as flower/00.jpg"
    calls: list[int] = []

    class Counting(type(encoder.image)):  # type: ignore[misc]
        def run(self, batch: object) -> object:
            calls.append(1)
            return super().run(batch)

    again = Encoder(encoder.info, Counting(encoder.image.engine, encoder.image.size), encoder.text)
    rows_again, vectors_again, _ = embed_folder(listed, again, tmp_path)
    assert (rows_again, calls) == (rows, [])
    assert np.array_equal(vectors_again, vectors)


@pytest.mark.parametrize(
    ("layout", "message"),
    [((), "not a directory"), (("",), "no class directories"), (("only/a.jpg",), "at least two")],
)
def test_a_folder_nothing_can_be_learned_from(
    tmp_path: Path, layout: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "folder"
    for path in layout:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if path:
            file.write_bytes(encoded(photos()["coffee"], "JPEG"))
        else:
            root.mkdir(exist_ok=True)
    arguments = ["--folder", str(root), "--output", str(tmp_path / "out"), "--encoder", "starter"]
    assert main([*arguments, "--cache-dir", str(CACHE)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_reading_a_missing_folder() -> None:
    with pytest.raises(DataError, match="not a directory"):
        read_folder(Path("nowhere"))


def test_a_loss_that_is_never_a_number_is_told() -> None:
    part = Features(torch.full((20, 4), torch.inf), torch.arange(20) % 2)
    with pytest.raises(DataError, match="never a number"):
        fit(part, part, 2, HeadOptions(epochs=3))
