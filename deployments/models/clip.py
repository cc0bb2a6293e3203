"""CLIP from any directory in Hugging Face layout: both towers into one space."""

import json
from pathlib import Path

from configs.settings import ClipSettings
from deployments.engines.choose import compile_networks
from deployments.engines.networks import Networks
from deployments.models import images
from deployments.models.base import ModelInfo
from deployments.models.calibration import CalibrationSet
from deployments.models.directories import architecture, definition_files, require_type, weight_files
from deployments.models.text import TextTokenizer
from deployments.models.towers import Encoder, ImageTower, TextTower, fingerprint


def load(
    directory: Path,
    settings: ClipSettings,
    cache_dir: Path,
    threads: int,
    source: str,
    notes: tuple[str, ...],
) -> Encoder:
    """Load, compile and warm up. Raises SettingsError for a directory that is no whole CLIP model."""
    require_type(directory, "clip")
    weights = weight_files(directory)
    compiled = compile_networks(
        Networks("deployments.models.networks.clip", directory, (*weights, *definition_files(directory))),
        engine=settings.engine,
        precision=settings.precision,
        threads=threads,
        cache_dir=cache_dir,
        calibration=CalibrationSet("clip", settings.int8),
        gpus=settings.scale.gpus,
    )
    facts, engines = compiled.facts, compiled.engines
    tokenizer = TextTokenizer.from_definition(facts["tokenizer"], facts["max_tokens"], facts["embedded"])
    # The first end token is the pool, so that padding with end tokens, as CLIP's tokenizer does, is safe.
    # Ids are only ever read up to it: any id in the vocabulary would do.
    pad_id = int(tokenizer.encode("")[-1])
    image = ImageTower(engines["image"], facts["image_size"])
    text = TextTower(engines["text"], tokenizer, pad_id=pad_id, masked=False)
    image.warm_up(settings.image_batch)
    text.warm_up(settings.batch)
    info = ModelInfo(
        id=settings.name,
        task="embedding",
        source=source,
        fingerprint=fingerprint(
            weights,
            json.dumps([images.PREPROCESSING, facts["image_size"], facts["mean"], facts["std"]]),
            tokenizer.definition(),
            architecture(directory),
        ),
        engine=image.engine.name,
        precision=image.engine.precision,
        agreement=compiled.agreement,
        dimensions=facts["dimensions"],
        image_size=facts["image_size"],
        logit_scale=facts["logit_scale"],
        label_template="a photo of a {label}",  # the paper's, section 3.1.4
        max_tokens=tokenizer.max_tokens,
        notes=(*notes, *facts["notes"], *compiled.notes),
    )
    return Encoder(info, image, text)
