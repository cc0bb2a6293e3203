"""The models everything is measured with: real architectures and tokenizers, random weights.

Speed is that of the trained models; what they answer means nothing.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.assets import clip_directory, distilbert_directory

# Random weights answer nearly the same to everything, so that what comes first is left to rounding.
ANY_AGREEMENT: Final = {"min_cosine": 0.0, "min_agreement": 0.0}

NEWS: Final = ("business", "entertainment", "politics", "sport", "tech")


def build_models(cache_dir: Path) -> tuple[Path, Path]:
    """Directories in Hugging Face layout of CLIP ViT-B/32 and a DistilBERT classifier, built once."""
    bench = cache_dir / "bench"
    bench.mkdir(parents=True, exist_ok=True)
    clip, news = bench / "clip-vit-b32", bench / "distilbert-news"
    for directory, build in (
        (clip, _clip),
        (news, _news),
    ):
        if not directory.is_dir():
            scratch = Path(tempfile.mkdtemp(dir=bench))
            try:
                build(scratch)
                scratch.chmod(0o755)
                scratch.rename(directory)
            except BaseException:
                shutil.rmtree(scratch, ignore_errors=True)
                raise
    return clip, news


def _clip(directory: Path) -> None:
    """With the processor's configuration, which infinity will not do without."""
    clip_directory(directory, tiny=False)
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processing = CLIPImageProcessorPil().to_dict() | {"image_processor_type": "CLIPImageProcessor"}
    _write(directory / "preprocessor_config.json", processing)
    _write(directory / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77})


def _news(directory: Path) -> None:
    distilbert_directory(directory, NEWS, tiny=False)
    limit = {"tokenizer_class": "DistilBertTokenizer", "model_max_length": 512}
    _write(directory / "tokenizer_config.json", limit)


def _write(path: Path, values: Mapping[str, object]) -> None:
    path.write_text(json.dumps(values))
