"""Intervals, tests and power against references, and their arithmetic for any table."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from stages.lib.core.errors import UserError
from stages.lib.evaluation import metrics
from stages.lib.evaluation.predictions import Predictions, classes, digits, from_digits, predictions, to_digits
from stages.lib.statistics import paired, power, replicates

ITEMS = st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=2, max_size=60).map(lambda rows: np.array(rows).T)
PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@given(ITEMS)
def test_scores_of_counts_are_those_of_the_library(items):
    gold, ours, theirs = items
    counts = metrics.tabulate(gold, ours, theirs)
    f1 = f1_score(gold, ours, average="macro") - f1_score(gold, theirs, average="macro")
    accuracy = accuracy_score(gold, ours) - accuracy_score(gold, theirs)
    assert paired.score_difference(metrics.macro_f1, counts) == pytest.approx(f1, abs=1e-12)
    assert paired.score_difference(metrics.accuracy, counts) == pytest.approx(accuracy, abs=1e-12)


@given(ITEMS)
def test_a_resample_has_as_many_items_and_none_that_did_not_occur(items):
    counts = metrics.tabulate(*items)
    again = paired.resample(counts, 20, np.random.default_rng(1))
    assert (again.sum((1, 2, 3)) == counts.sum()).all()
    assert not again[:, counts == 0].any()


@given(ITEMS)
def test_a_swap_keeps_every_item_and_both_its_answers(items):
    counts = metrics.tabulate(*items)
    swapped = paired.swap(counts, 20, np.random.default_rng(1))
    assert (swapped >= 0).all()
    for one in swapped:
        assert (one + one.swapaxes(1, 2) == counts + counts.swapaxes(1, 2)).all()


def test_swaps_are_fair():
    swapped = paired.swap(metrics.tabulate([0] * 40, [0] * 30 + [1] * 10, [1] * 30 + [0] * 10), 20_000, rng())
    assert swapped[:, 0, 0, 1].mean() == pytest.approx(20, abs=0.1)
    assert swapped[:, 0, 0, 1].var() == pytest.approx(10, rel=0.05)


def rng():
    return np.random.default_rng(1)


def test_the_bootstrap_varies_as_the_difference_of_two_paired_shares_does():
    counts = metrics.tabulate([1] * 400, [1] * 300 + [0] * 100, [1] * 250 + [0] * 90 + [1] * 60)
    drawn = paired.draw_items(counts, metrics.accuracy, 20_000, 1, rng())
    ours, theirs, n = 50, 60, 400
    assert drawn.est == pytest.approx((ours - theirs) / n)
    assert drawn.discordant == 110
    error = math.sqrt(((ours + theirs) / n - drawn.est**2) / n)
    assert np.std(drawn.resampled) == pytest.approx(error, rel=0.02)
    assert paired.estimate(drawn)["mde"] == pytest.approx((1.96 + 0.8416) * error, rel=0.02)


def test_the_randomisation_test_finds_the_p_of_all_swaps():
    gold, ours, theirs = (
        np.array([0, 1, 2, 0, 1, 2, 0, 1]),
        np.array([0, 1, 2, 0, 1, 0, 1, 2]),
        np.array([2, 1, 0, 1, 0, 2, 0, 2]),
    )
    est = f1_score(gold, ours, average="macro") - f1_score(gold, theirs, average="macro")
    extreme = []
    for swap in itertools.product((False, True), repeat=8):
        a, b = np.where(swap, theirs, ours), np.where(swap, ours, theirs)
        gap = f1_score(gold, a, average="macro") - f1_score(gold, b, average="macro")
        extreme.append(abs(gap) >= abs(est) - 1e-12)
    drawn = paired.draw_items(metrics.tabulate(gold, ours, theirs), metrics.macro_f1, 10, 20_000, rng())
    assert paired.estimate(drawn)["p"] == pytest.approx(np.mean(extreme), abs=0.01)


def test_the_mean_over_tasks_varies_as_independent_tasks_do():
    tasks = [metrics.tabulate([1] * 200, [1] * 200, [1] * wrong + [0] * (200 - wrong)) for wrong in (150, 100)]
    drawn = [
        paired.draw_items(one, metrics.accuracy, 20_000, 1, np.random.default_rng(n)) for n, one in enumerate(tasks)
    ]
    both = paired.mean(drawn)
    assert both.est == pytest.approx(0.375)
    assert np.var(both.resampled) == pytest.approx(sum(np.var(one.resampled) for one in drawn) / 4, rel=0.03)


def test_a_loss_is_resampled_by_whole_rows_as_a_ratio_of_sums():
    tokens = rng().integers(5, 200, 300)
    theirs = tokens * rng().normal(3, 0.3, 300)
    ours = theirs - tokens * np.random.default_rng(2).normal(0.05, 0.2, 300)
    drawn = paired.draw_rows(ours, theirs, tokens, 4000, 4000, seed=1)
    assert drawn.est == pytest.approx((ours.sum() - theirs.sum()) / tokens.sum())
    influence = metrics.ratio_values(ours - theirs, 1.0 * tokens)
    assert np.std(drawn.resampled) == pytest.approx(influence.std() / math.sqrt(300), rel=0.05)
    sign = stats.norm.sf(abs(drawn.est) / np.std(drawn.swapped)) * 2
    assert paired.estimate(drawn)["p"] == pytest.approx(sign, abs=0.01)


def test_equal_models_have_an_empty_interval_and_too_few_items():
    counts = metrics.tabulate([0, 1] * 50, [0, 0] * 50, [0, 0] * 50)
    found = paired.estimate(paired.draw_items(counts, metrics.macro_f1, 100, 100, rng()))
    assert found == {"est": 0, "lo": 0, "hi": 0, "p": 1, "too_few": 1}


@pytest.mark.parametrize(("discordant", "few"), [(9, True), (10, False)])
def test_fewer_than_ten_discordant_items_are_too_few(discordant, few):
    counts = metrics.tabulate([1] * 100, [1] * 100, [0] * discordant + [1] * (100 - discordant))
    assert ("too_few" in paired.estimate(paired.draw_items(counts, metrics.accuracy, 10, 10, rng()))) == few


def test_mcnemar_gives_the_mid_p_of_the_papers_example():
    # Fagerland et al. 2013, table 1 (airway hyper-responsiveness): 1 and 7 discordant, exact p 0.070, mid-p 0.039
    counts = metrics.tabulate([1] * 21, [1] + [0] * 7 + [1] * 13, [0] + [1] * 7 + [1] * 13)
    assert paired.mcnemar(counts) == pytest.approx(0.0391, abs=1e-4)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_exact_test_minus_half_the_chance_of_what_was_found(ours, theirs):
    counts = metrics.tabulate([1] * 100, [1] * (100 - theirs) + [0] * theirs, [0] * ours + [1] * (100 - ours))
    exact = stats.binomtest(ours, ours + theirs).pvalue if ours + theirs else 1
    half = stats.binom.pmf(ours, ours + theirs, 0.5)
    assert paired.mcnemar(counts) == pytest.approx(1 if ours == theirs else exact - half, abs=1e-9)


def test_holm_by_hand():
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(PROBABILITIES)
def test_holm_rejects_what_its_steps_reject(p):
    adjusted = paired.holm(p)
    for level in (0.01, 0.05, 0.5):
        expected, left = set(), len(p)
        for place in sorted(range(len(p)), key=lambda i: p[i]):
            if p[place] * left > level:
                break
            expected.add(place)
            left -= 1
        assert {i for i, value in enumerate(adjusted) if value <= level} == expected


@given(ITEMS)
def test_the_mean_of_the_items_values_is_the_score(items):
    gold, ours, _ = items
    assert metrics.macro_f1_values(gold, ours).mean() == pytest.approx(f1_score(gold, ours, average="macro"), abs=1e-12)
    assert metrics.accuracy_values(gold, ours).mean() == pytest.approx(accuracy_score(gold, ours), abs=1e-12)


def test_an_items_value_is_what_leaving_the_item_out_changes():
    gold, ours = rng().integers(0, 4, 300), np.random.default_rng(2).integers(0, 4, 300)
    whole = f1_score(gold, ours, average="macro")
    without = [f1_score(np.delete(gold, i), np.delete(ours, i), average="macro") for i in range(300)]
    jackknife = whole + 299 * (whole - np.array(without))
    assert metrics.macro_f1_values(gold, ours) == pytest.approx(jackknife, abs=0.02)


def test_the_variance_over_runs_and_items_is_that_of_the_balanced_two_way_table():
    ours, theirs = rng().normal(0.1, 1, (3, 50)), np.random.default_rng(2).normal(0, 1, (3, 50))
    ours[1] += 1
    table, k, n = np.stack([ours, theirs]), 3, 50
    cell, run, method = table.mean(1), table.mean(2), table.mean((1, 2))
    rest = table - cell[:, None] - run[:, :, None] + method[:, None, None]
    of_items = k * np.var(cell[0] - cell[1], ddof=1) / 2
    of_runs = n * ((run - method[:, None]) ** 2).sum() / (2 * (k - 1))
    of_rest = (rest**2).sum() / (2 * (k - 1) * (n - 1))
    items_only = 2 / (k * n) * (of_items - of_rest)
    over_runs = stats.ttest_ind(run[0], run[1], equal_var=False).confidence_interval()
    found = replicates.crossed([ours], [theirs])
    assert found["est"] == pytest.approx(method[0] - method[1])
    half = math.hypot(stats.t.ppf(0.975, n - 1) * math.sqrt(items_only), (over_runs.high - over_runs.low) / 2)
    assert (found["hi"] - found["lo"]) / 2 == pytest.approx(half)
    assert found["run_sd"] == pytest.approx(math.sqrt((of_runs - of_rest) / n))


def test_if_items_do_not_matter_the_interval_is_welchs():
    runs, items = [rng().normal(size=3), np.array([1.0, 1.5])], rng().normal(size=50)
    found = replicates.crossed(*([scores[:, None] + items] for scores in runs))
    welch = stats.ttest_ind(*runs, equal_var=False)
    assert (found["lo"], found["hi"]) == pytest.approx(tuple(welch.confidence_interval()))
    assert found["p"] == pytest.approx(welch.pvalue)


def test_if_runs_do_not_matter_the_interval_is_that_of_the_items():
    ours, theirs = rng().normal(0.3, 1, (2, 50))
    found = replicates.crossed([np.tile(ours, (2, 1))], [np.tile(theirs, (3, 1))])
    over_items = stats.ttest_rel(ours, theirs)
    assert (found["lo"], found["hi"]) == pytest.approx(tuple(over_items.confidence_interval()))
    assert found["p"] == pytest.approx(over_items.pvalue)


def test_runs_that_tie_by_chance_leave_three_quarters_of_the_interval_over_items():
    answers = np.tile([1.0, 0.0], 25)
    ours, theirs = np.array([answers, 1 - answers]), np.array([[*answers[:48], 0, 0], [0, 0, *answers[:48]]])
    found = replicates.crossed([ours], [theirs])
    over_items = stats.ttest_rel(ours.mean(0), theirs.mean(0)).confidence_interval()
    assert found["run_sd"] == 0
    assert found["hi"] - found["lo"] == pytest.approx(0.75 * (over_items.high - over_items.low))


def test_a_difference_far_beyond_its_noise_has_the_smallest_p():
    ours, theirs = rng().normal(0, 1, (2, 50))
    assert replicates.crossed([np.tile(ours + 1e9, (2, 1))], [np.tile(theirs, (2, 1))])["p"] == 1e-100


def test_runs_that_all_agree_differ_by_nothing():
    gold, constant = np.arange(60) % 2, np.zeros(60, dtype=int)
    for values in (np.tile([1.0, 0.0], 40), metrics.macro_f1_values(gold, constant)):  # the latter sum with rounding
        found = replicates.crossed([np.array([values] * 2)] * 3, [np.array([values] * 3)] * 3)
        assert found == {"est": 0, "lo": 0, "hi": 0, "p": 1, "run_sd": 0}


@given(st.integers(2, 4), st.integers(0, 2**32 - 1))
def test_every_number_over_runs_and_items_is_finite_and_the_interval_agrees_with_p(k, seed):
    draw = np.random.default_rng(seed)
    tasks = [[(draw.random((k, n)) < draw.random()).astype(float) for n in (12, 30)] for _ in range(2)]
    found = replicates.crossed(*tasks)
    assert all(math.isfinite(value) for value in found.values())
    assert (found["lo"] > 0 or found["hi"] < 0) == (found["p"] < 0.05)


def test_many_runs_detect_what_their_standard_error_gives():
    # with so many runs the test has its own variance almost exactly: (z(0.975) + z(0.8)) standard errors
    error = math.sqrt((0.1 / 1000 + 2 * 0.01**2) / 1000)
    assert power.mde_between_methods(0.1, 0.01, [1000], 1000) == pytest.approx(2.8016 * error, rel=0.01)


def test_more_runs_items_and_tasks_detect_less_and_noise_hides_more():
    by_runs = [power.mde_between_methods(0.1, 0.01, [1000], runs) for runs in (2, 3, 5, 10)]
    assert by_runs == sorted(by_runs, reverse=True)
    assert power.mde_between_methods(0.1, 0.02, [1000], 3) > power.mde_between_methods(0.1, 0.01, [1000], 3)
    assert power.mde_between_methods(0.2, 0.01, [1000], 3) > power.mde_between_methods(0.1, 0.01, [1000], 3)
    assert power.mde_between_models(0.1, [1000, 1000]) == pytest.approx(power.mde_between_models(0.1, [2000]))


def test_two_models_detect_the_textbooks_difference_of_paired_shares():
    # Cohen 1988, chapter 2: (z(0.975) + z(0.8)) standard errors; the variance of a difference of paired shares is d / n
    error = math.sqrt(0.1 / 1404 + 0.1 / 397) / 2
    assert power.mde_between_models(0.1, [1404, 397]) == pytest.approx((1.959964 + 0.841621) * error, rel=1e-6)


@pytest.mark.parametrize("runs", [2, 3, 10])
def test_without_noise_of_items_the_difference_is_that_of_welchs_test(runs):
    # over runs only, each mean square is chi-squared; the test is Welch's of two samples of so many runs
    spread, draw, times = 0.01, rng(), 40_000
    mde = power.mde_between_methods(1e-9, spread, [10_000], runs)
    ours, theirs = draw.normal(0, spread, (times, runs)), draw.normal(-mde, spread, (times, runs))
    found = stats.ttest_ind(ours, theirs, axis=1, equal_var=False)
    assert np.mean((found.pvalue < 0.05) & (found.statistic > 0)) == pytest.approx(0.8, abs=0.015)


ANSWERS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 1)), min_size=1, max_size=30)


@given(ANSWERS, st.booleans(), st.randoms())
def test_digits_come_back_as_the_answers_in_item_order(answers, has_norm, shuffle):
    columns = ["gold", "prediction", "correct_norm"]
    items = pd.DataFrame(answers, columns=columns).rename_axis("item").reset_index().assign(task="copa", shots=2)
    if not has_norm:
        items["correct_norm"] = None
    order = list(items.index)
    shuffle.shuffle(order)
    written = to_digits(predictions(items.loc[order]))
    assert {name: classes(text).tolist() for name, text in written["2-shot"]["copa"].items()} == {
        name: items[name].tolist() for name in columns[: 2 + has_norm]
    }
    assert to_digits(from_digits(written)) == written


def test_a_class_that_is_no_digit_is_refused():
    assert digits(np.array([0, 3, 1, 9])) == "0319"
    with pytest.raises(UserError, match="over ten choices"):
        digits(np.array([0, 10]))


def test_an_answer_is_correct_or_not_for_accuracy_and_a_class_for_macro_f1():
    found = metrics.classes_by_metric(Predictions(*map(np.array, ([0, 1, 2], [0, 2, 2], [1, 1, 0]))))
    assert found["macro_f1"][1].tolist() == [0, 2, 2]
    assert (found["accuracy"][0].tolist(), found["accuracy"][1].tolist()) == ([1, 1, 1], [1, 0, 1])
    assert found["acc_norm"][1].tolist() == [1, 1, 0]
    assert "acc_norm" not in metrics.classes_by_metric(Predictions(np.array([0]), np.array([0]), None))
