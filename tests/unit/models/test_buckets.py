"""Buckets: which shapes, how much padding, and that no real row notices it."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from deployments.engines.buckets import (
    LENGTH_UNIT,
    MAX_BATCH_TOKENS,
    MAX_ROWS,
    bucket,
    bucket_shapes,
    fill,
    row_buckets,
    token_buckets,
)
from deployments.models.networks import clip, distilbert, starter
from deployments.models.text import pad
from tests.unit.models import small
from tests.unit.models.small import END, LIMIT


def tokens(*shape: int) -> np.ndarray:
    return np.ones(shape, np.int64)


def test_buckets_hold_their_number_and_little_padding() -> None:
    assert [bucket(n) for n in range(1, 18)] == [1, 2, 3, 4, 6, 6, 8, 8, *[12] * 4, *[16] * 4, 24]
    for unit in (1, LENGTH_UNIT):
        for n in range(1, 2000):
            held = bucket(n, unit)
            assert held >= n
            assert held % unit == 0
            assert bucket(held, unit) == held
            assert held - n < max(unit, held / 3)


def test_every_input_has_the_same_rows_and_tokens_end_at_the_limit() -> None:
    assert bucket_shapes([tokens(5, 9), tokens(5, 9)], LIMIT) == ((6, 16), (6, 16))
    assert bucket_shapes([tokens(1, 65)], LIMIT) == ((1, LIMIT),)  # 96 has no positions
    assert bucket_shapes([tokens(1, LIMIT)], LIMIT) == ((1, LIMIT),)
    assert bucket_shapes([tokens(3, 5)], None) == ((3, 5),)
    assert bucket_shapes([np.zeros((5, 64, 64, 3), np.uint8)], None) == ((6, 64, 64, 3),)


def test_what_keeps_a_gpu_busy_anyway_is_not_padded() -> None:
    assert bucket_shapes([np.zeros((MAX_ROWS, 1, 1, 3))], None) is not None
    assert bucket_shapes([np.zeros((MAX_ROWS + 1, 1, 1, 3))], None) is None
    assert bucket_shapes([tokens(MAX_BATCH_TOKENS // 512, 512)], 512) is not None
    assert bucket_shapes([tokens(MAX_BATCH_TOKENS // 512 + 1, 512)], 512) is None


@pytest.mark.parametrize(("max_rows", "max_cost"), [(32, 8192), (5, 100), (300, 20_000), (1, 8)])
def test_a_batch_is_named_for_each_bucket_and_no_other(max_rows: int, max_cost: int) -> None:
    def reached(batches: Iterable[tuple[int, int]]) -> list[Any]:
        shapes = (bucket_shapes([np.broadcast_to(1, batch)], LIMIT) for batch in batches)
        return [shape for shape in shapes if shape]

    possible = [
        (rows, length)
        for rows in range(1, max_rows + 1)
        for length in range(1, LIMIT + 1)
        if rows == 1 or rows * length <= max_cost
    ]
    named = token_buckets(max_rows, max_cost, LIMIT)
    assert set(named) <= set(possible)
    assert sorted(reached(named)) == sorted(set(reached(possible)))
    rows = row_buckets(max_rows)
    assert max(rows) <= max_rows
    assert [bucket(n) for n in rows] == sorted({bucket(n) for n in range(1, min(max_rows, MAX_ROWS) + 1)})


def test_a_buffer_shows_nothing_of_the_batch_before_in_the_rows_of_this_one() -> None:
    buffer = np.full((4, 8), 7)
    fill(buffer, np.array([[1, 2, 3], [4, 5, 6]]))
    np.testing.assert_array_equal(buffer[:2], [[1, 2, 3, 0, 0, 0, 0, 0], [4, 5, 6, 0, 0, 0, 0, 0]])
    pixels = np.zeros((3, 2, 2, 3), np.uint8)
    fill(pixels, np.full((2, 2, 2, 3), 9, np.uint8))
    assert pixels[:2].min() == 9


@pytest.fixture(params=["clip", "clip-old", "distilbert", "minilm"])
def text_network(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, bool]:
    """A text network of each family with random weights, and whether it takes a mask."""
    torch.manual_seed(0)
    network: torch.nn.Module
    if request.param.startswith("clip"):
        network = clip.TextNetwork(small.clip(end_id=2 if request.param == "clip-old" else END))
    elif request.param == "distilbert":
        network = distilbert.LogitsNetwork(small.classifier())
    else:
        config = BertConfig(
            vocab_size=END + 1,
            max_position_embeddings=LIMIT,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
        network = starter.TextNetwork(BertModel(config, add_pooling_layer=False))
    return network.eval(), not request.param.startswith("clip")


@torch.inference_mode()
def test_padding_changes_no_text(text_network: tuple[torch.nn.Module, bool]) -> None:
    network, masked = text_network
    random = np.random.default_rng(0)
    buffers: dict[Any, list[np.ndarray]] = {}
    for n, longest in [(1, 3), (5, 9), (6, 16), (5, 12), (1, 4), (3, 70), (2, LIMIT)]:
        lengths = [longest, *random.integers(2, longest + 1, n - 1)]
        batch = [np.append(random.integers(4, END, length - 1), END) for length in lengths]
        arrays = pad(batch, END)[: 2 if masked else 1]
        wanted = network(*map(torch.from_numpy, arrays)).numpy()

        shapes = bucket_shapes(arrays, LIMIT)
        assert shapes
        # Kept from batch to batch, as a graph's are: rows behind the real ones hold former texts.
        padded = buffers.setdefault(shapes, [np.ones(shape, np.int64) for shape in shapes])
        for buffer, array in zip(padded, arrays, strict=True):
            fill(buffer, array)
        result = network(*map(torch.from_numpy, padded)).numpy()
        assert result.shape[0] == shapes[0][0]
        np.testing.assert_allclose(result[:n], wanted, atol=2e-6)
