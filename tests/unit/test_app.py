"""How the application asks Ray for its replicas."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.settings import ModelScaleSettings, ScaleSettings, SettingsError
from deployments.models.directories import IMAGE_HEAD
from serve_app import app
from tests.waiting import PATIENCE_S


@pytest.mark.parametrize(("gpus", "hidden"), [(0, True), (0.5, False)])
def test_models_that_ask_for_no_gpu_see_none(
    gpus: float, hidden: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself Ray lets a replica without GPUs see all of the machine's."""
    asked: dict[str, dict[str, Any]] = {}
    deployment = app._deployment

    def noted(body: Any, scale: ScaleSettings, name: str, *more: Any) -> Any:
        made = deployment(body, scale, name, *more)
        asked[name] = made.ray_actor_options
        return made

    monkeypatch.setattr(app, "_deployment", noted)
    classifier = {"source": "starter", "scale": {"gpus": gpus}}
    directories = {"data_dir": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache")}
    app.build_app({"clip.scale.gpus": gpus, "classifiers": {"news": classifier}, **directories})
    for name in ("ClipEncoder", "TextClassifier-news"):
        variables = asked[name].get("runtime_env", {}).get("env_vars", {})
        assert (variables.get("CUDA_VISIBLE_DEVICES") == "") is hidden
        assert asked[name].get("num_gpus", 0) == gpus


def test_more_than_one_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="less than or equal to 1"):
        ModelScaleSettings(gpus=2)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"precision": "fp32", "threads": 2}, "precision, threads"), ({"scale": {"gpus": 1}}, "gpus")],
)
def test_a_head_on_the_image_tower_refuses_what_it_has_no_use_for(
    settings: dict[str, Any], named: str, tmp_path: Path
) -> None:
    head = tmp_path / "dogs"
    head.mkdir()
    (head / "config.json").write_text(json.dumps({"model_type": IMAGE_HEAD}))
    (head / "model.safetensors").touch()
    args = {"clip.source": "starter", "data_dir": str(tmp_path), "cache_dir": str(tmp_path)}
    app.build_app({**args, "classifiers": {"dogs": {"source": str(head), "scale": {"cpus": 0.2}}}})
    with pytest.raises(SettingsError, match=f"image tower.*leave out .*{named}"):
        app.build_app({**args, "classifiers": {"dogs": {"source": str(head), **settings}}})


def test_the_gateway_imports_no_pixels_no_faiss_and_no_engine() -> None:
    heavy = {"PIL", "faiss", "openvino", "torch", "transformers"}
    code = f"import sys, serve_app.gateway; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
