"""Model directories with random weights, built on the spot, and the starter's weights."""

import gzip
import json
import shutil
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from deployments.models.packages import download_wheel, fetch_starter

CACHE: Final = Path(__file__).parent.parent / ".cache"
CONVERTED: Final = CACHE / "tests"
"""A cache directory for models made on the spot: the next run finds the same ones converted."""
CALIBRATION_TEXTS: Final = (
    "a cat",
    "two dogs on a beach",
    "a rocket",
    "coffee",
    "a street in China",
    "a red flower",
    "an astronaut",
    "night",
)


def starter() -> Path:
    """The starter's directory, fetched if absent."""
    return fetch_starter(CACHE)


def clip_directory(directory: Path, *, tiny: bool = True, seed: int = 0, eos_token_id: int = 49407) -> Path:
    """A CLIP model with random weights and CLIP's real tokenizer; ViT-B/32 unless `tiny`.

    `eos_token_id=2` gives the configuration of models saved before transformers 4.31, which pool at
    the largest id.
    """
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    ends: dict[str, Any] = {"bos_token_id": 49406, "eos_token_id": eos_token_id, "pad_token_id": 1}
    if tiny:
        small: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "projection_dim": 16,
        }
        config = CLIPConfig(
            text_config=CLIPTextConfig(**small, **ends).to_dict(),
            vision_config=CLIPVisionConfig(**small, image_size=64, patch_size=16).to_dict(),
            projection_dim=16,
        )
    else:
        config = CLIPConfig(text_config=CLIPTextConfig(**ends).to_dict())
    torch.manual_seed(seed)
    CLIPModel(config).save_pretrained(directory)
    for file in clip_tokenizer().iterdir():
        shutil.copy(file, directory)
    return directory


def distilbert_directory(
    directory: Path, labels: tuple[str, ...] = ("negative", "positive"), *, tiny: bool = True, seed: int = 0
) -> Path:
    """A DistilBERT classifier with random weights and BERT's real tokenizer; base size unless `tiny`."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    small: dict[str, Any] = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4} if tiny else {}
    config = DistilBertConfig(
        **small, id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)}
    )
    torch.manual_seed(seed)
    DistilBertForSequenceClassification(config).save_pretrained(directory)
    shutil.copy(bert_tokenizer(), directory / "tokenizer.json")
    return directory


def calibration_directory(directory: Path, images: int = 8) -> Path:
    """A set to quantise with: `images` of noise and stripes, in formats in turn, and `CALIBRATION_TEXTS`."""
    directory.mkdir()
    random = np.random.default_rng(0)
    for number in range(images):
        pixels = random.integers(0, 256, (90, 120, 3), dtype=np.uint8)
        pixels[:, :: number + 2] = 255 * (number % 2)
        Image.fromarray(pixels).save(directory / f"{number}.{('jpg', 'png', 'webp')[number % 3]}")
    (directory / "texts.txt").write_text("\n".join(CALIBRATION_TEXTS), encoding="utf-8")
    return directory


def bert_tokenizer() -> Path:
    """BERT's tokenizer.json, kept in the cache on its own: all of the starter is not always to be had."""
    target = CACHE / "bert_tokenizer" / "tokenizer.json"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            Path(shutil.copy(starter() / "minilm" / "tokenizer.json", scratch)).rename(target)
    return target


@cache
def clip_tokenizer() -> Path:
    """A directory with CLIP's tokenizer.json, made from OpenAI's merges once and kept in the cache."""
    target = CACHE / "clip_tokenizer"
    if (target / "tokenizer.json").is_file():
        return target
    from transformers import AutoTokenizer

    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        files = clip_vocabulary(Path(scratch) / "files")
        built = Path(scratch) / "built"
        (files / "config.json").write_text('{"model_type": "clip"}')
        AutoTokenizer.from_pretrained(files).save_pretrained(built)
        try:
            built.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first, with the same file
                raise
    return target


def clip_vocabulary(directory: Path) -> Path:
    """vocab.json and merges.txt as OpenAI's CLIP builds them from its list of merges."""
    directory.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = download_wheel("open-clip-torch==3.3.0", Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            text = gzip.decompress(archive.read("open_clip/bpe_simple_vocab_16e6.txt.gz")).decode()
    # 49152 ids less 256 bytes, each also as the end of a word, and the two special tokens.
    merges = text.split("\n")[1 : 49152 - 256 - 2 + 1]
    symbols = _byte_symbols()
    vocabulary = [*symbols, *(s + "</w>" for s in symbols), *("".join(m.split()) for m in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(vocabulary)}
    (directory / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return directory


def _byte_symbols() -> list[str]:
    """GPT-2's printable character for each byte, printable bytes first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
