from pathlib import Path

import pytest

from tests.assets import distilbert_directory
from training import export


def test_torchscript_equals_the_model(tmp_path: Path) -> None:
    model = distilbert_directory(tmp_path / "model")
    out = tmp_path / "model.pt"
    assert export.main(["--format", "torchscript", str(model), str(out)]) == 0
    assert export.to_torchscript(model, out) <= export.TOLERANCE


def test_onnx_equals_the_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript", reason="the export extra is not installed")
    model = distilbert_directory(tmp_path / "model")
    out = tmp_path / "model.onnx"
    assert export.main(["--format", "onnx", str(model), str(out)]) == 0
    assert capfd.readouterr().out.startswith(f"{out}: logits within ")
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["model.onnx"]


def test_a_file_that_differs_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(export.ExportError, match="differ by"):
        export.to_torchscript(distilbert_directory(tmp_path / "model"), tmp_path / "model.pt")


def test_what_is_no_model_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["--format", "torchscript", str(tmp_path), str(tmp_path / "out")]) == 1
    assert "no config.json" in capsys.readouterr().err
