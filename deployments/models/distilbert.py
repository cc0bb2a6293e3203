"""Text classifiers: any DistilBertForSequenceClassification directory in Hugging Face layout."""

from pathlib import Path

from configs.settings import ClassifierSettings
from deployments.engines.choose import compile_networks
from deployments.engines.networks import Networks
from deployments.models.base import ModelInfo
from deployments.models.calibration import CalibrationSet
from deployments.models.directories import architecture, definition_files, require_type, weight_files
from deployments.models.text import TextTokenizer
from deployments.models.towers import Classifier, TextTower, fingerprint


def load(
    name: str,
    directory: Path,
    settings: ClassifierSettings,
    cache_dir: Path,
    threads: int,
    source: str,
    notes: tuple[str, ...],
) -> Classifier:
    """Load, compile and warm up. Raises SettingsError for a directory that is no whole classifier."""
    require_type(directory, "distilbert")
    weights = weight_files(directory)
    compiled = compile_networks(
        Networks(
            "deployments.models.networks.distilbert", directory, (*weights, *definition_files(directory))
        ),
        engine=settings.engine,
        precision=settings.precision,
        threads=threads,
        cache_dir=cache_dir,
        calibration=CalibrationSet(f"classifiers.{name}", settings.int8),
        gpus=settings.scale.gpus,
    )
    facts, engine = compiled.facts, compiled.engines["text"]
    tokenizer = TextTokenizer.from_definition(facts["tokenizer"], facts["max_tokens"], facts["embedded"])
    text = TextTower(engine, tokenizer, pad_id=facts["pad_id"], masked=True)
    text.warm_up(settings.batch)
    info = ModelInfo(
        id=name,
        task="text-classification",
        source=source,
        fingerprint=fingerprint(weights, tokenizer.definition(), architecture(directory)),
        engine=engine.name,
        precision=engine.precision,
        agreement=compiled.agreement,
        labels=tuple(facts["labels"]),
        scores=facts["scores"],
        max_tokens=tokenizer.max_tokens,
        notes=(*notes, *compiled.notes),
    )
    return Classifier(info, text)
