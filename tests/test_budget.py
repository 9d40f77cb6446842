"""What a training presents: one budget for every arm, in orders drawn from the seed."""

from itertools import chain, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.training.budget import Budget, batches, presented

ARMS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 50)), min_size=1, max_size=30)


def steps_of(unit, amount, arm, batch, seed=1):
    rows, tokens = zip(*arm, strict=True)
    return presented(Budget(unit=unit, amount=amount), rows, tokens, batch, seed)


@given(ARMS, st.integers(1, 40), st.integers(1, 9))
def test_a_budget_of_steps_is_that_many_steps_for_any_arm(arm, amount, batch):
    assert len(steps_of("steps", amount, arm, batch)) == amount


@pytest.mark.parametrize("place", [0, 1], ids=["rows", "tokens"])
@given(ARMS, st.integers(1, 300), st.integers(1, 9))
def test_a_budget_of_rows_or_tokens_ends_with_the_pack_that_reaches_it(place, arm, amount, batch):
    shown = list(chain(*steps_of(("rows", "tokens")[place], amount, arm, batch)))
    spent = [arm[pack][place] for pack in shown]
    assert sum(spent[:-1]) < amount <= sum(spent)


@given(ARMS, st.integers(1, 4), st.integers(1, 9))
def test_every_epoch_presents_every_pack_once(arm, amount, batch):
    steps = steps_of("epochs", amount, arm, batch)
    shown = list(chain(*steps))
    for epoch in range(amount):
        assert sorted(shown[epoch * len(arm) : (epoch + 1) * len(arm)]) == list(range(len(arm)))
    assert len(shown) == amount * len(arm)
    assert all(0 < len(step) <= batch for step in steps)


@pytest.mark.parametrize(("unit", "amount"), [("steps", 6), ("rows", 24), ("tokens", 240)])
def test_a_smaller_arm_repeats_and_a_larger_one_stops(unit, amount):
    small, large = (list(chain(*steps_of(unit, amount, [(1, 10)] * count, 4))) for count in (8, 100))
    assert len(small) == len(large) == 24
    assert len(set(small)) == 8
    assert len(set(large)) == 24


def test_no_two_seeds_and_no_two_epochs_share_an_order():
    orders = [list(chain(*islice(batches(30, 30, seed), 8))) for seed in range(8)]
    epochs = [tuple(order[start : start + 30]) for order in orders for start in range(0, 240, 30)]
    assert len(set(epochs)) == 64


def test_another_seed_presents_the_same_rows_in_another_order():
    epochs = [steps_of("steps", 5, [(1, 1)] * 20, 4, seed) for seed in range(50)]
    assert all(sorted(chain(*steps)) == list(range(20)) for steps in epochs)
    assert [steps_of("steps", 5, [(1, 1)] * 20, 4, seed) for seed in range(50)] == epochs
    firsts = [steps[0][0] for steps in epochs]
    assert len(set(firsts)) > 10  # of 20; the row that comes first is drawn too
