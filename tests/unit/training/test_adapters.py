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
from deployments.models.networks import adapted
from deployments.models.networks.pretrained import load_network
from deployments.models.sources import Source
from tests.assets import starter
from training.compress import low_rank, quantise
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


def test_a_change_survives_in_four_bits() -> None:
    draws = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draws)

    base = {"same": noise(8, 8), "matrix": noise(400, 300), "vector": noise(30), "odd": noise(3, 3)}
    change = noise(400, 300) * 0.01 * noise(400, 1)
    change[7] = 1e-7  # as weight decay moves the embedding of a token that never came
    tuned = {
        "same": base["same"].clone(),
        "matrix": base["matrix"] + change,
        "vector": base["vector"] + 0.5,
        "odd": base["odd"] + 0.5,
        "head": noise(2, 30),
    }
    small = quantise(base, tuned)
    assert set(small) == {"matrix.codes", "matrix.steps", "matrix.rows", "vector", "odd", "head"}
    assert small["matrix.codes"].dtype == torch.uint8
    assert small["matrix.codes"].shape[1] == 150
    assert 7 not in small["matrix.rows"]
    merged = adapted.merge(base, small)
    assert merged.keys() == tuned.keys()
    assert torch.equal(merged["same"], base["same"])
    assert torch.equal(merged["matrix"][7], base["matrix"][7])
    lost = (merged["matrix"] - tuned["matrix"]).square().sum() / change.square().sum()
    assert lost < 0.015  # a normal distribution in 16 even steps loses 1.15% (Max 1960)
    for name in ("vector", "odd", "head"):
        torch.testing.assert_close(merged[name], tuned[name], atol=2e-3, rtol=1e-3)


def test_a_change_of_low_rank_survives_whole() -> None:
    draws = torch.Generator().manual_seed(0)
    base = {"matrix": torch.randn(40, 30, generator=draws), "vector": torch.zeros(30)}
    change = torch.randn(40, 3, generator=draws) @ torch.randn(3, 30, generator=draws) * 0.01
    tuned = {"matrix": base["matrix"] + change, "vector": base["vector"]}
    small = low_rank(base, tuned, rank=3)
    assert {name: tensor.shape for name, tensor in small.items()} == {
        "matrix.left": (40, 3),
        "matrix.right": (3, 30),
    }
    torch.testing.assert_close(adapted.merge(base, small)["matrix"], tuned["matrix"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("names", [("matrix.left",), ("other.left", "other.right")])
def test_half_a_product_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match="does not fit the base"):
        adapted.merge({"matrix": torch.zeros(2, 2)}, {name: torch.zeros(2, 2) for name in names})


@pytest.mark.parametrize(
    ("target", "columns", "rows"),
    [("other", 2, [0]), ("matrix", 3, [0]), ("matrix", 2, [5]), ("matrix", 2, None)],
)
def test_a_change_that_does_not_fit_is_refused(target: str, columns: int, rows: list[int] | None) -> None:
    small = {
        f"{target}.codes": torch.zeros(1, columns, dtype=torch.uint8),
        f"{target}.steps": torch.ones(1).half(),
    }
    if rows is not None:
        small[f"{target}.rows"] = torch.tensor(rows)
    with pytest.raises(SettingsError, match="does not fit the base"):
        adapted.merge({"matrix": torch.zeros(2, 4)}, small)


def write_adapter(directory: Path, *, base: str | None = None) -> Path:
    """An adapter with nothing but a head."""
    minilm = starter() / "minilm"
    network = build(minilm, ("no", "yes"), seed=0)
    directory.mkdir(parents=True)
    weights = quantise(adapted.distilbert_weights(minilm), network.state_dict())
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
