"""A preference is told from its placebos by its held-out margin over runs and pairs; answers are shares of prompts."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.lib.core.errors import UserError
from stages.lib.evaluation.marks import marks_from_json, marks_to_json, shares_of
from stages.lib.evaluation.predictions import Predictions
from stages.lib.statistics import replicates
from stages.lib.statistics.comparison import Resampling, Run, compare_answers
from stages.lib.statistics.placebos import (
    AnyPreference,
    compare_with_placebos,
    groups_of,
    placebo_sentences,
    placebos_of,
)

PAIRS = 200
GOLD = np.arange(40) % 2


def marks(followed=(1, 2, 0), constraints=(1, 2, 1), final=(np.nan, 1.0, 0.0)):
    ids = [f"p{number}" for number in range(len(followed))]
    return pd.DataFrame({"id": ids, "constraints": constraints, "followed": followed, "final": final})


def run_of(rng, drift, effect=0.0, noise=0.3):
    """Return a run whose margins all move by one drift, as a run's do, and by the effect of its labels."""
    margins = effect + drift + noise * rng.standard_normal(PAIRS)
    answers = {"0-shot": {"copa": Predictions(GOLD, rng.permutation(GOLD), None)}}
    held_out = {f"h{row}": 40.0 + rng.standard_normal() for row in range(20)}
    by_pair = {f"{pair:03}": float(margin) for pair, margin in enumerate(margins)}
    return Run(answers, dict.fromkeys(held_out, 10), held_out, marks(), by_pair)


def prefer(given=2, shuffled=4):
    dpo = {
        f"dpo_{n}": AnyPreference(arm="sft", pairs="polite", labels="given", replicate="dpo_0") for n in range(given)
    }
    placebo = {
        f"placebo_{n}": AnyPreference(arm="sft", pairs="polite", labels="shuffled", replicate="placebo_0")
        for n in range(shuffled)
    }
    return dpo | placebo


def tuned(names):
    """Return the part of metrics/arms that a sentence needs."""
    none = {"est": 0.0, "lo": -0.1, "hi": 0.1, "p": 1.0}
    pairs = {"pairs": PAIRS, "margin": 0.1, "accuracy": 0.97} | {
        f"{side}_log_probability_{when}": -100.0 for side in ("chosen", "rejected") for when in ("before", "after")
    }
    vs = {"scores": {"0-shot": {"mean": {"macro_f1": none}}}, "held_out_loss": {"all": none}, "answers": {}}
    answers = {"prompts": 3, "characters": 20.0}
    return {name: {"vs_control": vs, "pairs": pairs, "answers": answers} for name in names}


def sentence(settings, runs):
    compared = compare_with_placebos(settings, runs)
    (found,) = [line for line in placebo_sentences(settings, tuned(settings), compared) if "held-out margin" in line]
    return found


def test_planted_labels_are_found_and_the_sentence_says_so():
    rng = np.random.default_rng(1)
    settings = prefer()
    runs = {
        name: run_of(rng, drift=0.05 * rng.standard_normal(), effect=1.9 * (one.labels == "given"))
        for name, one in settings.items()
    }
    assert sentence(settings, runs).endswith(
        "over pairs and runs (2 and 4): learning the given labels beats learning shuffled ones"
    )


def test_a_placebo_as_the_candidate_seldom_beats_the_placebos_although_its_accuracy_over_pairs_is_far_from_a_half():
    found, far = 0, 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        settings = prefer()
        runs = {name: run_of(rng, drift=rng.standard_normal()) for name in settings}
        found += "beats" in sentence(settings, runs)
        right = np.mean(np.array(list(runs["dpo_0"].margins.values())) > 0)
        far += abs(right - 0.5) > 1.96 * 0.5 / PAIRS**0.5
    assert found <= 10
    assert far >= 70


def test_the_margin_is_compared_over_runs_and_pairs():
    rng = np.random.default_rng(3)
    settings = prefer(2, 3)
    runs = {name: run_of(rng, 0.0) for name in settings}
    found = compare_with_placebos(settings, runs)["dpo_0"]
    values = {name: np.array(list(run.margins.values())) for name, run in runs.items()}
    ours, theirs = (
        np.array([values[name] for name in settings if name.startswith(side)]) for side in ("dpo", "placebo")
    )
    assert (found["runs"], found["placebo_runs"]) == (2, 3)
    expected = replicates.crossed([ours], [theirs])
    assert {name: found["vs_placebo"]["margin"][name] for name in expected} == expected


def test_one_run_or_no_placebo_gives_no_sentence_about_the_labels():
    rng = np.random.default_rng(4)
    for preferences in (prefer(1, 4), prefer(2, 1), prefer(2, 0)):
        runs = {name: run_of(rng, 0.0) for name in preferences}
        assert compare_with_placebos(preferences, runs) == {}
        lines = list(placebo_sentences(preferences, tuned(preferences), {}))
        assert any("no sentence about its labels" in line for line in lines)
        assert any("minus sft, held-out loss" in line for line in lines)
        beside = [line for line in lines if "held-out pairs: margin" in line]
        assert len(beside) == len(preferences)
        assert all("which is no evidence" in line and "have 20 characters" in line for line in beside)


def test_placebos_have_the_same_pairs_and_arm():
    settings = prefer(1, 1) | {
        "elsewhere": AnyPreference(arm="other", pairs="polite", labels="shuffled"),
        "other_pairs": AnyPreference(arm="sft", pairs="rude", labels="shuffled"),
    }
    assert groups_of(settings) == {"dpo_0": ["dpo_0"]}
    assert placebos_of(["dpo_0"], settings) == ["placebo_0"]


def test_shares_are_of_what_counts():
    found = {name: right.sum() / counts.sum() for name, (right, counts) in shares_of(marks()).items()}
    assert found == {"prompt_level": 2 / 3, "instruction_level": 3 / 4, "final": 1 / 2}
    nothing = marks(followed=(0,), constraints=(0,), final=(np.nan,))
    assert shares_of(nothing) == {}
    assert shares_of(marks((), (), ())) == {}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from([np.nan, 0.0, 1.0])), max_size=8))
@settings(max_examples=20)
def test_marks_in_git_are_the_marks(rows):
    table = marks(*(zip(*rows, strict=True) if rows else ((), (), ()))).astype(
        {"followed": np.int64, "constraints": np.int64, "final": np.float64}
    )
    pd.testing.assert_frame_equal(
        marks_from_json(marks_to_json(table)), table.astype({"id": object}), check_dtype=False
    )


def test_answers_of_two_models_differ_by_their_shares_and_only_on_equal_prompts():
    resampling = Resampling(resamples=100, randomisations=100, seed=1)
    ours = marks((1,) * 12, (1,) * 12, (np.nan,) * 12)
    theirs = ours.assign(followed=[0] * 11 + [1])
    found = compare_answers(resampling, ours, theirs)
    assert list(found) == ["prompt_level", "instruction_level"]
    assert found["prompt_level"]["est"] == pytest.approx(11 / 12)
    assert found["prompt_level"]["lo"] > 0.6
    with pytest.raises(UserError, match="different prompts"):
        compare_answers(resampling, ours, theirs.assign(id="other"))
