import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel, DistilBertModel

from configs.settings import ClassifierSettings, SettingsError
from deployments.models import adapters
from deployments.models.loading import load_classifier
from deployments.models.pretrained import load_network
from deployments.models.sources import Source
from tests.assets import starter
from training.compress import low_rank
from training.network import build


def test_minilm_is_the_same_network_as_a_distilbert(tmp_path: Path) -> None:
    minilm = starter() / "minilm"
    bert = load_network(BertModel, minilm, add_pooling_layer=False, attn_implementation="eager")
    network = build(minilm, ("a", "b"), seed=0).distilbert.train(False)
    assert isinstance(network, DistilBertModel)
    ids = torch.randint(1000, 20000, (3, 21), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    with torch.inference_mode():
        expected = bert(input_ids=ids, attention_mask=mask).last_hidden_state
        found = network(input_ids=ids, attention_mask=mask).last_hidden_state
    kept = mask.bool()
    assert (expected - found)[kept].abs().max() < 2e-5


def test_a_change_of_low_rank_survives_whole() -> None:
    draws = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draws)

    base = {"same": noise(8, 8), "matrix": noise(40, 30), "vector": noise(30)}
    tuned = {
        "same": base["same"].clone(),
        "matrix": base["matrix"] + noise(40, 3) @ noise(3, 30) * 0.01,
        "vector": base["vector"] + 0.5,
        "head": noise(2, 30),
    }
    small = low_rank(base, tuned, rank=3)
    assert set(small) == {"matrix.left", "matrix.right", "vector", "head"}
    assert small["matrix.left"].shape == (40, 3)
    assert {tensor.dtype for tensor in small.values()} == {torch.float16}
    merged = adapters.merge(base, small)
    assert torch.equal(merged["same"], base["same"])
    for name, tensor in tuned.items():
        torch.testing.assert_close(merged[name], tensor, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("names", [("matrix.left",), ("other.left", "other.right")])
def test_half_a_product_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match="no counterpart"):
        adapters.merge({"matrix": torch.zeros(2, 2)}, {name: torch.zeros(2, 2) for name in names})


def write_adapter(directory: Path, *, base: str | None = None) -> Path:
    """An adapter with nothing but a head."""
    minilm = starter() / "minilm"
    network = build(minilm, ("no", "yes"), seed=0)
    directory.mkdir(parents=True)
    weights = low_rank(adapters.distilbert_weights(minilm), network.state_dict(), 4)
    save_file(weights, directory / adapters.WEIGHTS)
    config = {**network.config.to_diff_dict(), adapters.CONFIG_KEY: {"base_sha256": base}}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of its own, with the fetched starter in it."""
    (tmp_path / "cache" / "starter").mkdir(parents=True)
    for name in ("minilm", ".complete"):
        (tmp_path / "cache" / "starter" / name).symlink_to(starter() / name)
    return tmp_path / "cache"


def test_an_adapter_becomes_a_model_that_the_server_loads(tmp_path: Path, cache: Path) -> None:
    base = adapters.base_sha256(starter() / "minilm")
    directory = write_adapter(tmp_path / "models" / "answer" / "1", base=base)
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: adapters.materialize(directory, cache), range(4)))
    (whole,) = found
    assert whole.parent == cache / "starter"
    assert whole.name.startswith("answer-")
    assert [entry.name for entry in whole.parent.iterdir() if entry.name.startswith(".adapter")] == []
    source = Source("directory", str(whole))
    classifier = load_classifier("answer", source, ClassifierSettings(), cache, threads=1)
    assert classifier.info.labels == ("no", "yes")

    written = (whole / "model.safetensors").stat().st_mtime_ns
    assert adapters.materialize(directory, cache) == whole
    assert (whole / "model.safetensors").stat().st_mtime_ns == written
    expected = build(starter() / "minilm", ("no", "yes"), seed=0).state_dict()
    weights = load_file(whole / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all((weights[name] - expected[name]).abs().max() < 1e-3 for name in expected)


def test_a_changed_adapter_is_another_model(tmp_path: Path, cache: Path) -> None:
    base = adapters.base_sha256(starter() / "minilm")
    first = write_adapter(tmp_path / "models" / "answer" / "1", base=base)
    second = shutil.copytree(first, tmp_path / "models" / "answer" / "2")
    assert adapters.materialize(first, cache) == adapters.materialize(second, cache)
    weights = load_file(second / adapters.WEIGHTS)
    weights["classifier.bias"] += 1
    save_file(weights, second / adapters.WEIGHTS)
    assert adapters.materialize(first, cache) != adapters.materialize(second, cache)


def test_an_adapter_for_another_base_is_refused(tmp_path: Path, cache: Path) -> None:
    directory = write_adapter(tmp_path / "models" / "answer" / "1", base="0" * 64)
    with pytest.raises(SettingsError, match="made for another base"):
        adapters.materialize(directory, cache)
    (directory / adapters.WEIGHTS).unlink()
    with pytest.raises(SettingsError, match="cannot be read"):
        adapters.materialize(directory, cache)
