"""How the application asks Ray for its replicas."""

from pathlib import Path
from typing import Any

import pytest

from configs.settings import ScaleSettings
from serve_app import app


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
        ScaleSettings(gpus=2)
