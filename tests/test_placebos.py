"""Pairs with a rule in them teach it; the same pairs with half of their labels swapped do not."""

import numpy as np
import pytest

from stages.fetch_preferences import Params as Fetching
from stages.fetch_preferences import fetch_preferences
from stages.lib.core.artifacts import read_jsonl, read_table
from stages.lib.core.params import read_yaml
from stages.lib.evaluation.predictions import Predictions
from stages.lib.models.toy import Small
from stages.lib.models.toy_training import train_toy
from stages.lib.statistics.comparison import Run
from tests.preferring import prefer_here, preference, prepare_arm
from tests.project import ROOT
from tests.test_fetch_preferences import ENTRY, RULE
from tests.test_placebos_statistics import marks, prefer, sentence

FORTY = {"unit": "steps", "amount": 40}
HELD_OUT = {"share": 0.3, "max_rows": 60, "seed": 1}


@pytest.fixture(scope="module")
def arm(new_folder, benchmark):
    """The base of the small default, and the bundled pairs."""
    params, folder = read_yaml(ROOT / "params.yaml"), new_folder()
    small = Small.model_validate(params["fetch_model"]["base"]["small"])
    train_toy("base", ROOT / "data/pretrain", small, folder / "arm")
    pairs = read_jsonl(ROOT / "data/preference_inputs/politeness.jsonl")
    prepare_arm(folder, [], [{"instruction": one["prompt"], "output": one["chosen"]} for one in pairs[:4]])
    entry = ENTRY | {"name": "politeness.jsonl", "held_out": HELD_OUT}
    fetching = Fetching.model_validate({"fetch_preferences": {"polite": entry}, "decontaminate": RULE})
    places = {"held_out": folder / "held_out.jsonl", "preferences": folder / "pairs.parquet"}
    inputs = ROOT / "data/preference_inputs"
    fetch_preferences(fetching, pairs="polite", inputs=inputs, benchmark=benchmark, **places)
    return folder


@pytest.fixture(scope="module")
def margins(arm, new_folder):
    """The held-out margins [N] of four runs with the given labels, and of twelve placebos."""
    dpo = read_yaml(ROOT / "params.yaml")["dpo"] | {"budget": FORTY}
    runs = [preference(seed=seed) for seed in (1, 2, 3, 4)]
    runs += [preference(labels="shuffled", seed=seed) for seed in range(1, 13)]
    found = [read_table(prefer_here(arm, new_folder(), run, **dpo) / "prefer.parquet")["margin"] for run in runs]
    print([f"margin {one.mean():.4f}, accuracy {(one > 0).mean():.2f}" for one in found])
    return np.array(found)


def told(ours, theirs):
    """Return what `report` says of the margins of some runs beside those of placebos; all else is equal."""
    names = prefer(len(ours), len(theirs))
    gold = np.arange(20) % 2
    answers = {"0-shot": {"copa": Predictions(gold, gold, None)}}
    runs = {
        name: Run(answers, {"h": 1}, {"h": 1.0}, marks(), {f"{n:03}": float(m) for n, m in enumerate(values)})
        for name, values in zip(names, [*ours, *theirs], strict=True)
    }
    return sentence(names, runs)


@pytest.mark.slow
def test_the_margin_of_planted_pairs_is_over_five_times_the_largest_of_four_placebos_and_the_sentence_says_so(margins):
    real, placebos = margins[:4], margins[4:8]
    assert real.mean(1).min() > 5 * np.abs(placebos.mean(1)).max()
    assert (real > 0).mean() > 0.95
    assert "learning the given labels beats learning shuffled ones" in told(real, placebos)


@pytest.mark.slow
def test_placebos_as_the_candidate_are_said_to_help_in_at_most_two_of_twenty(margins):
    rng, helped, far = np.random.default_rng(1), 0, 0
    for _ in range(20):
        drawn = 4 + rng.permutation(12)[:6]
        helped += "learning the given labels beats" in told(margins[drawn[:2]], margins[drawn[2:]])
        share = (margins[drawn[0]] > 0).mean()
        far += abs(share - 0.5) > 1.96 * 0.5 / margins.shape[1] ** 0.5
    print(f"said to help: {helped} of 20; an accuracy over pairs far from 0.5: {far} of 20")
    assert helped <= 2
