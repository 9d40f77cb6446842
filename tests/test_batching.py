"""Batches of canonical shape: a row's batch looks the same whatever else is scored."""

from math import gcd

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.core.errors import UserError
from stages.lib.scoring.batching import TILE, canonical_batches, canonical_length, pad, run_batches

LENGTHS = st.lists(st.integers(0, 300), max_size=60)
BUDGETS = st.integers(1, 2048)


@given(st.integers(1, 100_000))
def test_a_length_is_rounded_up_by_an_eighth_at_most(tokens):
    length = canonical_length(tokens)
    power = 1 << (tokens.bit_length() - 1)
    assert tokens <= length < tokens + max(2, power // 8)
    assert canonical_length(length) == length


@given(st.integers(1, 100_000))
def test_a_longer_row_has_no_shorter_batch(tokens):
    assert canonical_length(tokens) <= canonical_length(tokens + 1)


@given(LENGTHS, BUDGETS)
def test_every_row_that_has_a_token_is_in_one_batch(lengths, budget):
    dealt = [row for batch in canonical_batches(lengths, budget) for row in batch.rows]
    assert sorted(dealt) == [row for row, tokens in enumerate(lengths) if tokens]


@given(LENGTHS, BUDGETS)
def test_a_batch_keeps_to_the_budget_unless_it_is_one_row(lengths, budget):
    for batch in canonical_batches(lengths, budget):
        assert 1 <= len(batch.rows) <= batch.height
        assert batch.height * batch.length <= budget or batch.height == 1
        tile = TILE // gcd(TILE, batch.length)
        assert (batch.height + tile) * batch.length > budget  # no room is wasted
        assert batch.height * batch.length % TILE == 0 or batch.height < tile


@given(LENGTHS, BUDGETS)
def test_a_shape_follows_from_the_rows_own_length_and_the_budget(lengths, budget):
    for batch in canonical_batches(lengths, budget):
        for row in batch.rows:
            (alone,) = canonical_batches([lengths[row]], budget)
            assert (batch.height, batch.length) == (alone.height, alone.length)


@given(LENGTHS, BUDGETS)
def test_long_batches_come_first(lengths, budget):
    order = [batch.length for batch in canonical_batches(lengths, budget)]
    assert order == sorted(order, reverse=True)


@given(st.lists(st.lists(st.integers(1, 9), max_size=40), max_size=12), BUDGETS)
def test_padding_leaves_the_rows_alone(sequences, budget):
    for batch in canonical_batches([len(ids) for ids in sequences], budget):
        ids, mask = pad(batch, sequences, filler=0)
        assert ids.shape == mask.shape == (batch.height, batch.length)
        for place, row in enumerate(batch.rows):
            assert ids[place][mask[place].bool()].tolist() == sequences[row]
            assert mask[place].sum() == len(sequences[row])
        dummies = slice(len(batch.rows), None)
        assert not ids[dummies].any()
        assert mask[dummies].all()  # a row that attends to nothing would be NaN


def memory_for(tokens):
    """Return a step that runs out of memory above this number of tokens."""

    def step(batch):
        if batch.height * batch.length > tokens:
            raise torch.OutOfMemoryError
        return torch.zeros(len(batch.rows))

    return step


def test_out_of_memory_stops_and_names_a_budget_that_fits():
    batches = canonical_batches([30] * 100, 1024)
    with pytest.raises(UserError, match=r"a batch of 32 x 30 tokens; a budget of 240 tokens fits"):
        list(run_batches(batches, memory_for(300)))
    fits = canonical_batches([30] * 100, 240)
    assert [row for rows, _ in run_batches(fits, memory_for(300)) for row in rows] == list(range(100))


def test_out_of_memory_with_one_row_asks_for_fewer_tokens():
    with pytest.raises(UserError, match="lower max_tokens"):
        list(run_batches(canonical_batches([500], 1024), memory_for(300)))
