"""Pairs with a rule in them teach it; the same pairs with half of their labels swapped do not."""

import pytest

from stages.fetch_preferences import Params as Fetching
from stages.fetch_preferences import fetch_preferences
from stages.lib.core.artifacts import read_jsonl, read_table
from stages.lib.core.params import read_yaml
from stages.lib.models.toy import Small
from stages.lib.models.toy_training import train_toy
from tests.preferring import prefer_here, preference, prepare_arm
from tests.project import ROOT
from tests.test_fetch_preferences import ENTRY, RULE

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


@pytest.mark.slow
def test_the_margin_of_planted_pairs_is_over_five_times_that_of_the_largest_of_four_placebos(arm, new_folder):
    dpo = read_yaml(ROOT / "params.yaml")["dpo"] | {"budget": FORTY}
    runs = [preference()] + [preference(labels="shuffled", seed=seed) for seed in (1, 2, 3, 4)]
    tables = [read_table(prefer_here(arm, new_folder(), run, **dpo) / "prefer.parquet") for run in runs]
    real, *placebos = (table["margin"].mean() for table in tables)
    print([f"margin {table['margin'].mean():.4f}, accuracy {(table['margin'] > 0).mean():.2f}" for table in tables])
    assert real > 5 * max(map(abs, placebos))
    assert (tables[0]["margin"] > 0).mean() > 0.95
