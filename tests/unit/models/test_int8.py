"""int8: what it is calibrated on, how near it stays to fp32, and when it is refused."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from configs.settings import ClassifierSettings, ClipSettings, Int8Settings, SettingsError
from deployments.engines import openvino
from deployments.engines.protocol import Agreement
from deployments.models.calibration import CalibrationSet
from deployments.models.loading import load_classifier, load_encoder
from deployments.models.sources import Source
from deployments.models.towers import Encoder
from tests import assets

ANY = {"min_cosine": 0.0, "min_agreement": 0.0}


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assets.calibration_directory(tmp_path_factory.mktemp("calibration") / "set")


def load(directory: Path, cache: Path, calibration: Path | None, **bounds: float) -> Encoder:
    settings = ClipSettings(precision="int8", int8=Int8Settings(calibration=calibration, **(ANY | bounds)))
    return load_encoder(Source("directory", str(directory)), settings, cache, threads=1)


def facts(size: int) -> dict[str, Any]:
    """As they come with an encoder's networks."""
    definition = Tokenizer.from_file(str(assets.bert_tokenizer())).to_str()
    return {"image_size": size, "tokenizer": definition, "max_tokens": 77}


def networks(cache: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (cache / "engines").rglob("*.xml")}


def test_an_encoder_is_quantised_once_and_judged_at_every_start(
    tiny: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "_cpu_features", lambda: {"avx2"})
    encoder = load(tiny, tmp_path, calibration)
    assert any("no faster than fp32" in note for note in encoder.info.notes)
    made = networks(tmp_path)
    assert len(made) == 2
    assert all("FakeQuantize" in Path(path).read_text() for path in made)

    source = Source("directory", str(tiny))
    exact = load_encoder(source, ClipSettings(precision="fp32"), assets.CONVERTED, threads=1)
    assert encoder.info.precision == "int8"
    assert encoder.info.fingerprint == exact.info.fingerprint
    assert exact.info.agreement is None
    agreement = encoder.info.agreement
    assert agreement is not None
    assert 0.9 < agreement.cosine < 1
    texts = [encoder.text.pre(text) for text in ("something else", "a longer text than those " * 3)]
    for found, wanted in zip(encoder.text.run(texts), exact.text.run(texts), strict=True):
        assert 0.9 < found @ wanted < 0.999999

    with pytest.raises(SettingsError, match="agrees too little with fp32"):
        load(tiny, tmp_path, calibration, min_cosine=1)
    assert load(tiny, tmp_path, calibration, min_cosine=agreement.cosine).info.agreement == agreement
    assert networks(tmp_path) == made


def test_a_classifier_is_quantised_on_the_texts_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "_cpu_features", lambda: {"avx2"})
    directory = assets.distilbert_directory(tmp_path / "model", ("one", "two", "three"))
    settings = ClassifierSettings(precision="int8", int8=Int8Settings(**ANY))
    source = Source("directory", str(directory))
    info = load_classifier("topics", source, settings, tmp_path / "cache", threads=1).info
    assert info.precision == "int8"
    assert any("no faster than fp32" in note for note in info.notes)
    assert info.agreement is not None
    assert info.agreement.cosine > 0.99
    assert info.agreement.top1 > 0.5


def test_the_agreement_is_of_nearest_texts_or_of_labels() -> None:
    images = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    texts = np.array([[0.8, 0.6], [0.6, 0.8]], np.float32)
    turned = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    judged = CalibrationSet("clip", Int8Settings())
    agreement = judged.compare({}, {"image": images, "text": texts}, {"image": turned, "text": texts})
    assert agreement == Agreement(cosine=0.6667, top1=0.6667)

    logits = np.array([[2, -1, 0], [0, 3, 1]], np.float32)
    facts = {"scores": "softmax"}
    assert judged.compare(facts, {"text": logits}, {"text": logits + 5}) == Agreement(1, 1)
    assert judged.compare(facts, {"text": logits}, {"text": logits[:, ::-1]}).top1 == 0.5
    # Of labels that do not exclude each other each counts: it matters that all are found where few are.
    facts = {"scores": "sigmoid"}
    assert judged.compare(facts, {"text": logits}, {"text": logits + 5}).cosine < 0.95


@pytest.mark.parametrize("scores", ["sigmoid", "none"])
def test_the_agreement_of_one_output_alone_is_of_what_tells_rows_apart(scores: str) -> None:
    judged, facts = CalibrationSet("classifiers.stars", Int8Settings()), {"scores": scores}
    stars = np.array([[1], [2], [4], [5]], np.float32)
    assert judged.compare(facts, {"text": stars}, {"text": stars}) == Agreement(1, 1)
    turned = judged.compare(facts, {"text": stars}, {"text": 6 - stars})
    assert (turned.cosine, turned.top1) == (-1, 0)
    alike = np.ones((8, 1), np.float32)
    assert judged.compare(facts, {"text": alike}, {"text": alike}) == Agreement(1, 1)
    shuffled = judged.compare(facts, {"text": stars}, {"text": stars[[0, 2, 1, 3]]})
    assert shuffled.top1 == 0.5
    assert 0 < shuffled.cosine < 0.9


@pytest.mark.parametrize("agreement", [Agreement(0.9799, 1), Agreement(1, 0.8999)])
def test_either_bound_refuses_with_both_numbers_and_what_to_do(agreement: Agreement) -> None:
    judged = CalibrationSet("classifiers.news", Int8Settings(min_cosine=0.98, min_agreement=0.9))
    judged.judge(Agreement(0.98, 0.9))
    with pytest.raises(SettingsError) as refused:
        judged.judge(agreement)
    bounds = ("(int8.min_cosine 0.98)", "(int8.min_agreement 90.0%)", "classifiers.news.int8.calibration")
    for part in (f"{agreement.cosine:.4f}", f"{agreement.top1:.1%}", *bounds):
        assert part in str(refused.value)


def test_a_calibration_set_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    def refused(directory: Path) -> str:
        with pytest.raises(SettingsError) as error:
            CalibrationSet("clip", Int8Settings(calibration=directory)).rows(facts(64))
        return str(error.value)

    assert refused(tmp_path / "absent").endswith("absent is not a directory")
    assert "holds 7 images; at least 8" in refused(assets.calibration_directory(tmp_path / "few", images=7))
    wordless = assets.calibration_directory(tmp_path / "wordless")
    (wordless / "texts.txt").write_text("one\n\none\ntwo\n")
    assert "holds 2 texts" in refused(wordless)
    broken = assets.calibration_directory(tmp_path / "broken")
    whole = (broken / "0.jpg").read_bytes()
    (broken / "0.jpg").write_bytes(whole[: len(whole) // 2])
    assert "0.jpg: the JPEG image is truncated" in refused(broken)


def test_the_digest_is_of_images_and_texts_wherever_they_lie(tmp_path: Path) -> None:
    def digest(directory: Path | None) -> str:
        return CalibrationSet("clip", Int8Settings(calibration=directory)).digest()

    one, two = assets.calibration_directory(tmp_path / "one"), assets.calibration_directory(tmp_path / "two")
    assert digest(one) == digest(two) != digest(None)
    (two / "texts.txt").write_text("\n".join((*assets.CALIBRATION_TEXTS, "another")))
    assert digest(one) != digest(two)
    fewer = assets.calibration_directory(tmp_path / "fewer")
    (fewer / "3.jpg").unlink()
    assert digest(one) != digest(fewer)


def test_the_set_at_hand_is_varied_and_always_the_same() -> None:
    first, again = (CalibrationSet("clip", Int8Settings()).rows(facts(32)) for _ in range(2))
    assert {name: len(rows) for name, rows in first.items()} == {"image": 128, "text": 128}
    assert len({rows[0].tobytes() for rows in first["image"]}) == 128
    assert {row[0].shape for row in first["image"]} == {(1, 32, 32, 3)}
    lengths = [row[0].shape[1] for row in first["text"]]
    assert min(lengths) < 5 < 40 < max(lengths)
    for name in first:
        assert all(np.array_equal(a[0], b[0]) for a, b in zip(first[name], again[name], strict=True))


def test_without_nncf_the_message_says_what_to_install(
    tiny: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else find(name))
    with pytest.raises(
        SettingsError, match=r"needs NNCF: install the int8 extra, `pip install -e '\.\[int8\]'`"
    ):
        load(tiny, tmp_path, calibration)


def test_serving_imports_no_nncf_and_nothing_opens_a_connection(
    tiny: Path, calibration: Path, tmp_path: Path
) -> None:
    """NNCF and OpenVINO would both report to an analytics host."""
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*arguments, **options): raise SystemExit(f'connects: {arguments}')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
    )
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(tmp_path)!r})  # the process that quantises gets it as well
import sitecustomize
from configs.settings import ClipSettings, Int8Settings
from deployments.models.loading import load_encoder
from deployments.models.sources import Source
int8 = Int8Settings(calibration=Path({str(calibration)!r}), min_cosine=0, min_agreement=0)
settings = ClipSettings(precision="int8", int8=int8)
load_encoder(Source("directory", {str(tiny)!r}), settings, Path({str(tmp_path / "cache")!r}), threads=1)
assert not {{"nncf", "torch", "sklearn", "openvino_telemetry.main"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "connects" not in done.stderr
    assert "quantising the image network to int8 on 8 rows" in done.stderr
    assert len(networks(tmp_path / "cache")) == 2
