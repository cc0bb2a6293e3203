"""One application with tiny random models, in this process, for every local test."""

from pathlib import Path

import pytest

from serve_app.app import build_app
from tests.assets import CACHE, clip_directory, distilbert_directory
from tests.local.client import LocalClient


@pytest.fixture(scope="session")
def model_directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "clip": clip_directory(root / "clip"),
        "news": distilbert_directory(root / "news", labels=("world", "sport", "science")),
    }


@pytest.fixture(scope="session")
def app_args(model_directories: dict[str, Path]) -> dict[str, object]:
    return {
        "cache_dir": str(CACHE),
        "clip": {"source": str(model_directories["clip"]), "precision": "fp32"},
        "classifiers": {
            "news": {"source": str(model_directories["news"]), "precision": "fp32"},
            "absent": {"source": "auto"},
        },
        "preprocessor": {"placement": "pool"},
        "embedding_cache": {"max_bytes": 0},  # tests share photos and words, and none may hide another's work
        "limits": {
            "max_body_bytes": 1024 * 1024,
            "max_images": 4,
            "max_texts": 32,
            "max_image_pixels": 1_000_000,
            "max_labels": 8,
            "max_text_chars": 1000,
            "max_inflight_bytes": 8 * 1024 * 1024,
            "max_answer_bytes": 256 * 1024,
        },
    }


@pytest.fixture(scope="session")
def client(app_args: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> LocalClient:
    app = build_app({**app_args, "data_dir": str(tmp_path_factory.mktemp("data"))})
    return LocalClient.serving(app, "local")
