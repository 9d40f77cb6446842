"""Runs stand for their method only if neither rows nor training are shared."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.selection.sketch import SIZE, share_of_rows, sketch
from stages.lib.statistics.evidence import Varied, name_subject, rows_vary
from stages.lib.text.hashing import text_hash

IDS = st.sets(st.integers(0, 60).map(lambda n: text_hash(str(n))), min_size=1)


@given(IDS, IDS)
def test_the_share_of_small_selections_is_exact(one, other):
    both, mean = len(one & other), (len(one) + len(other)) / 2
    assert share_of_rows(sketch(one), sketch(other)) == pytest.approx(both / mean)


@pytest.mark.parametrize("share", [0, 0.03, 0.5, 1])
def test_the_share_of_large_selections_is_estimated_from_their_lowest_ids(share):
    ids = [text_hash(str(n)) for n in range(20_000)]
    found = []
    for first in range(0, 10_000, 1_000):
        common = round(3_000 * share)
        one, other = ids[first : first + 3_000], ids[first + 3_000 - common : first + 6_000 - common]
        assert len(sketch(one)) == SIZE
        found.append(share_of_rows(sketch(one), sketch(other)))
    assert np.mean(found) == pytest.approx(share, abs=0.02)
    assert share not in (0, 1) or set(found) == {share}


CASES = [
    (Varied(3, 3, 0.04, 0.01), "the method"),
    (Varied(10, 10, 0.04, 0.01), "the method"),
    (Varied(10, 10, 0.66, 0.01), "this set of 10 selections, trained with 10 seeds"),
    (Varied(2, 2, 0.19, 0.1), "the method"),
    (Varied(3, 3, 0.01, 0.01), "the method"),
    (Varied(3, 3, 0.0, 0.01), "the method"),
    (Varied(3, 3, 1.0, 0.01), "this selection, trained 3 times"),
    (Varied(3, 3, 1.0, 1.0), "this selection, trained 3 times"),
    (Varied(3, 3, 1 / 3, 0.01), "this set of 3 selections, trained with 3 seeds"),
    (Varied(3, 1, 0.01, 0.01), "this set of 3 selections, trained with one seed"),
    (Varied(3, 2, 0.01, 0.01), "this set of 3 selections, trained with 2 seeds"),
]


@pytest.mark.parametrize(("varied", "subject"), CASES)
def test_only_runs_that_differ_in_rows_and_training_stand_for_the_method(varied, subject):
    assert name_subject(varied, "the method", "this") == subject


@given(st.integers(2, 20), st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 0.5))
def test_more_shared_rows_and_more_runs_never_make_runs_stand_for_the_method(runs, one, other, by_chance):
    less, more = sorted((one, other))
    if rows_vary(Varied(runs, runs, more, by_chance)):
        assert rows_vary(Varied(runs, runs, less, by_chance))
        assert rows_vary(Varied(2, 2, more, by_chance))


@pytest.mark.parametrize("runs", [2, 3, 5, 10])
@pytest.mark.parametrize("common", [0.0, 0.08, 0.3, 0.6])
def test_a_worthless_method_that_stands_for_itself_beats_an_equal_control_in_at_most_4_of_100(runs, common):
    """Luck is normal; the runs of the method share a part of it, and those of the control vary as much."""
    rng = np.random.default_rng(1)
    trials = 100_000
    ours = np.sqrt(common) * rng.normal(size=(trials, 1)) + np.sqrt(1 - common) * rng.normal(size=(trials, runs))
    theirs = np.sqrt(1 - common) * rng.normal(size=(trials, runs))
    shown = np.sqrt(2 * (1 - common) / runs)  # the standard error that the runs show
    beats = (ours.mean(1) - theirs.mean(1) > 1.96 * shown).mean()
    assert rows_vary(Varied(runs, runs, common, 0.0)) == (beats <= 0.0405)
