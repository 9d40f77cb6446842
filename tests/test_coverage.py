"""Intervals and tests hold what they promise, tried on simulated benchmarks whose truth is known.

`python -m benchmarks.coverage` tries the interval over runs and items in many more worlds.
"""

import numpy as np
import pytest

from benchmarks.coverage import Case, beats, coverage
from stages.lib.evaluation import metrics
from stages.lib.statistics import paired, power, replicates

SCORES = {"accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1}
KOBEST = (1404, 1000, 500, 397, 1260)
TIMES = 2000


def joint(discordance, gap):
    """Return the probabilities [G, A, B] of two models that differ on a share of the items, one better by `gap`."""
    p_GAB = np.zeros((2, 2, 2))
    for gold in (0, 1):
        wrong = 1 - gold
        p_GAB[gold, gold, gold] = (0.6 - discordance / 2) / 2
        p_GAB[gold, wrong, wrong] = (0.4 - discordance / 2) / 2
        p_GAB[gold, gold, wrong] = (discordance + gap) / 4
        p_GAB[gold, wrong, gold] = (discordance - gap) / 4
    return p_GAB


def trials(n, discordance, gap, times, seed=1):
    """Yield the estimate for each simulated benchmark of n items, by metric, and the mid-p of McNemar's test."""
    rng = np.random.default_rng(seed)
    p_GAB = joint(discordance, gap)
    for counts in rng.multinomial(n, p_GAB.ravel(), size=times).reshape(times, 2, 2, 2):
        found = {
            name: paired.estimate(paired.draw_items(counts, score, 2000, 2000, rng)) for name, score in SCORES.items()
        }
        yield found, paired.mcnemar(counts)


def rates(n, discordance, gap, times, seed=1):
    """Return by metric how often the interval holds the truth, and how often p < 0.05; for McNemar's p the latter."""
    truth = {name: paired.score_difference(score, joint(discordance, gap)) for name, score in SCORES.items()}
    tried = list(trials(n, discordance, gap, times, seed))
    held = {m: np.mean([one[m]["lo"] - 1e-12 <= truth[m] <= one[m]["hi"] + 1e-12 for one, _ in tried]) for m in truth}
    found = {m: np.mean([one[m]["p"] < 0.05 for one, _ in tried]) for m in truth}
    return held, found | {"mcnemar": np.mean([p < 0.05 for _, p in tried])}


def test_an_interval_over_items_holds_the_truth_of_two_models():
    held, _ = rates(397, 0.2, 0.05, 300)
    assert all(0.92 <= share <= 0.98 for share in held.values()), held


@pytest.mark.slow
@pytest.mark.parametrize("discordance", [0.1, 0.2])
@pytest.mark.parametrize("n", [397, 1404])
def test_the_interval_over_items_holds_a_known_difference(n, discordance):
    held, found = rates(n, discordance, 0.03, TIMES)
    print(f"\nn {n}, discordance {discordance}, difference 0.03: held {held}, p < 0.05 {found}")
    assert all(0.93 <= share <= 0.97 for share in held.values()), held


@pytest.mark.slow
@pytest.mark.parametrize("discordance", [0.1, 0.2])
@pytest.mark.parametrize("n", [397, 1404])
def test_p_is_below_05_in_5_of_100_if_nothing_differs(n, discordance):
    held, found = rates(n, discordance, 0, TIMES)
    print(f"\nn {n}, discordance {discordance}, no difference: held {held}, p < 0.05 {found}")
    assert all(0.93 <= share <= 0.97 for share in held.values()), held
    assert all(0.03 <= share <= 0.07 for share in found.values()), found


@pytest.mark.slow
def test_holm_keeps_five_tasks_at_05_and_single_tests_do_not():
    rng = np.random.default_rng(1)
    smallest = []
    for _ in range(TIMES):
        tables = [rng.multinomial(n, joint(0.1, 0).ravel()).reshape(2, 2, 2) for n in KOBEST]
        found = {
            n: {"f1": paired.estimate(paired.draw_items(t, metrics.macro_f1, 1, 1000, rng))}
            for n, t in enumerate(tables)
        }
        paired.adjust(found)
        smallest.append([min(one["f1"][key] for one in found.values()) for key in ("p", "p_holm")])
    single, holm = (np.array(smallest) < 0.05).mean(0)
    print(f"\nany of five tasks p < 0.05: single {single}, Holm {holm}")
    assert holm <= 0.06
    assert single > 0.15


@pytest.mark.slow
def test_the_interval_of_a_held_out_loss_holds_the_difference_of_all_documents():
    rng = np.random.default_rng(1)
    held = found = 0
    for seed in range(TIMES):
        tokens = rng.lognormal(4, 0.7, 400).astype(int) + 1  # a few long answers weigh as much as many short ones
        gap = tokens * rng.normal(0, 0.3, 400)
        one = paired.estimate(paired.draw_rows(gap, 0 * gap, tokens, 1000, 500, seed))
        held, found = held + (one["lo"] <= 0 <= one["hi"]), found + (one["p"] < 0.05)
    print(f"\nheld-out loss, 400 documents: held {held / TIMES}, p < 0.05 {found / TIMES}")
    assert 0.92 <= held / TIMES <= 0.97
    assert 0.03 <= found / TIMES <= 0.07


def method(p_N, gap, run_sd, k, rng):
    """Return whether each of K runs is correct on each item [K, N]; a run is better or worse on all items alike."""
    return (rng.random((k, len(p_N))) < p_N + gap + rng.normal(0, run_sd, (k, 1))).astype(float)


def probabilities(n, discordance, rng):
    """Return probabilities [N] of a correct answer, so that two runs differ on a share `discordance` of the items."""
    low = 0.5 - np.sqrt(0.25 - discordance / 2)
    return np.where(rng.random(n) < 0.4, low, 1 - low)


def run_noise(discordance, sizes):
    """Return the spread of runs that is as large as the noise of the items in the mean over tasks."""
    return np.sqrt(sum(discordance / n for n in sizes) / 2) / len(sizes)


def held_by(k, n, discordance, own, times=TIMES, share=1.0):
    """Return how often the interval over runs and items, and the one over items only, hold the truth, 0.

    On a share `own` of the items the methods differ for good; the second method's runs vary by `share` of the first's.
    """
    rng = np.random.default_rng(1)
    run_sd, both, alone = run_noise(discordance, [n]), 0, 0
    for _ in range(times):
        p_N = probabilities(n, discordance, rng)
        their_p_N = np.where(rng.random(n) < own, 1 - p_N, p_N)
        our_p_N = np.where(rng.random(n) < own, 1 - p_N, p_N)
        ours, theirs = method(our_p_N, 0, run_sd, k, rng), method(their_p_N, 0, share * run_sd, k, rng)
        found = replicates.crossed([ours], [theirs])
        gap = ours.mean(0) - theirs.mean(0)
        both += found["lo"] <= 0 <= found["hi"]
        alone += abs(gap.mean()) <= 1.96 * gap.std(ddof=1) / np.sqrt(n)
    return both / times, alone / times


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("n", [397, pytest.param(1404, marks=pytest.mark.slow)])
def test_an_interval_over_runs_and_items_holds_the_truth_of_two_methods_and_one_over_items_does_not(k, n):
    for discordance in (0.1, 0.2):
        both, alone = held_by(k, n, discordance, own=0)
        print(f"\n{k} runs, n {n}, discordance {discordance}: runs and items {both}, items alone {alone}")
        assert 0.91 <= both <= 0.99
        assert alone <= 0.86


@pytest.mark.slow
@pytest.mark.parametrize("k", [2, 3, 5])
def test_it_does_so_if_methods_answer_items_differently_and_one_varies_less(k):
    for own, share in ((0.1, 1), (0, 0.3), (0, 0)):
        both, alone = held_by(k, 397, 0.2, own, share=share)
        print(f"\n{k} runs, own items {own}, spread of the second {share}: runs and items {both}, items alone {alone}")
        assert 0.91 <= both <= 0.99


@pytest.mark.parametrize("runs", [(2, 2), (3, 2)])
def test_few_runs_hold_the_truth_if_those_of_one_method_hardly_vary_and_items_matter(runs):
    case = Case(
        runs, ratio=0.065, noise=3
    )  # on real rows, the runs of `spread` vary so much less than those of `random`
    assert 0.93 <= coverage("loss, lognormal", case, 1000) <= 0.99


def test_a_worthless_method_rarely_beats_random_but_only_if_each_run_has_a_selection_of_its_own():
    assert beats(10, False, 500) <= 0.04
    assert beats(10, True, 500) > 0.1


@pytest.mark.slow
def test_two_single_runs_differ_significantly_far_too_often():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(TIMES):
        p_N, run_sd = probabilities(1404, 0.2, rng), run_noise(0.2, [1404])
        ours, theirs = (method(p_N, 0, run_sd, 1, rng)[0].astype(int) for _ in range(2))
        counts = metrics.tabulate([1] * 1404, ours, theirs)
        found = paired.estimate(paired.draw_items(counts, metrics.accuracy, 1000, 1, rng))
        held += found["lo"] <= 0 <= found["hi"]
    print(f"\none run each, paired bootstrap over items: holds the methods' difference in {held / TIMES}")
    assert held / TIMES <= 0.86


@pytest.mark.slow
@pytest.mark.parametrize("k", [3, 5])
def test_macro_f1_and_the_mean_over_tasks_hold_the_truth_of_two_methods(k):
    rng = np.random.default_rng(1)
    held = np.zeros(2)
    sizes, times = KOBEST[2:], 1000
    for _ in range(times):
        methods = [[], []]
        shifts = rng.normal(0, run_noise(0.2, sizes), (2, k, 1))
        for n in sizes:
            gold, p_N = rng.integers(0, 2, n), probabilities(n, 0.2, rng)
            for group, shift in zip(methods, shifts, strict=True):
                correct = rng.random((k, n)) < p_N + shift
                answers = [np.where(one, gold, 1 - gold) for one in correct]
                group.append(np.array([metrics.macro_f1_values(gold, one) for one in answers]))
        found = replicates.crossed(*methods), replicates.crossed(methods[0][:1], methods[1][:1])
        held += [one["lo"] <= 0 <= one["hi"] for one in found]
    print(f"\n{k} runs, macro-F1: mean over three tasks {held[0] / times}, one task {held[1] / times}")
    assert (held / times >= 0.91).all()
    assert (held / times <= 0.99).all()


def power_of_models(gap, discordance, sizes, rng, times=500):
    found = 0
    for _ in range(times):
        tables = [rng.multinomial(n, joint(discordance, gap).ravel()).reshape(2, 2, 2) for n in sizes]
        drawn = [paired.draw_items(table, metrics.accuracy, 1, 500, rng) for table in tables]
        found += paired.estimate(paired.mean(drawn))["p"] < 0.05
    return found / times


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(397,), (1404,), KOBEST])
@pytest.mark.parametrize("discordance", [0.1, 0.2])
def test_the_mde_of_two_models_is_found_in_80_of_100(sizes, discordance):
    rng = np.random.default_rng(1)
    mde = power.mde_between_models(discordance, sizes)
    less, at, more = (power_of_models(share * mde, discordance, sizes, rng) for share in (0.85, 1, 1.15))
    print(f"\nn {sizes}, discordance {discordance}: MDE {mde:.4f}; power at 0.85, 1, 1.15 of it {less} {at} {more}")
    assert less < 0.8 < more


def power_of_methods(gap, discordance, run_sd, sizes, k, rng, times=500):
    found = 0
    for _ in range(times):
        groups = [[], []]
        shifts = rng.normal(0, run_sd, (2, k, 1)) + np.array([gap / 2, -gap / 2])[:, None, None]
        for n in sizes:
            p_N = probabilities(n, discordance, rng)
            for group, shift in zip(groups, shifts, strict=True):
                group.append((rng.random((k, n)) < p_N + shift).astype(float))
        found += replicates.crossed(*groups)["lo"] > 0
    return found / times


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(397,), KOBEST])
@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("share", [0.3, 1])
def test_the_mde_of_two_methods_is_found_in_80_of_100(sizes, k, share):
    rng = np.random.default_rng(1)
    run_sd = share * run_noise(0.1, sizes)
    mde = power.mde_between_methods(0.1, run_sd, sizes, k)
    less, at, more = (power_of_methods(part * mde, 0.1, run_sd, sizes, k, rng) for part in (0.85, 1, 1.15))
    print(f"\n{k} runs, n {sizes}, spread {run_sd:.4f}: MDE {mde:.4f}; power at 0.85, 1, 1.15 {less} {at} {more}")
    assert less < 0.8 < more
