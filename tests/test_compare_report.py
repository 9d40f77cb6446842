"""One arm beside the control and the base, and the summary of all: numbers that can be checked by hand."""

import json
import logging
import math
import shutil
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML
from sklearn.metrics import balanced_accuracy_score

from stages import compare as comparing
from stages import report as reporting
from stages.evaluate import ITEMS
from stages.generate import ANSWERS
from stages.lib.core.artifacts import read_json, write_json, write_table
from stages.lib.core.errors import UserError
from stages.lib.core.runner import parse_arguments
from stages.lib.evaluation import metrics
from stages.prefer import MARGINS
from stages.sample import SAMPLE
from stages.train import HELD_OUT
from tests.corpus import SIZES, run_profile, write_corpus, write_size
from tests.project import ROOT

GOLD = {"copa": [0, 1, 0, 1], "hellaswag": [0, 1, 2, 3]}
BASE = {"copa": [1, 1, 1, 1], "hellaswag": [0, 0, 0, 0]}
CONTROL = {"copa": [0, 1, 1, 0], "hellaswag": [0, 1, 0, 0]}
ARM = {"copa": [0, 1, 0, 0], "hellaswag": [0, 1, 2, 0]}
TRAINING = {
    "epochs": 1.0,
    "rows": 2,
    "rows_without_answer": 0,
    "steps": 2,
    "tokens": 50,
    "token_pairs": 1300,
    "loss": [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}],
}
ROWS = {
    "id": ["a", "b", "c", "d"],
    "source": ["life", "life", "faq", "life"],
    "length_group": [0, 0, 1, 1],
    "cluster": [0, 0, 2, 2],
    "rank": pd.array([0, 1, 0, None], dtype="Int64"),
    "score": [1.0, 2.0, 3.0, None],
    "selected": [True, False, True, False],
    "reason": ["selected", "outside the quota", "selected", "no perplexity"],
}
FLOPS = 3 * (2 * SIZES["base"] * 50 + 4 * 2 * 4 * 1300)
"""Of training on fifty tokens in two rows."""


def write_items(folder, predictions, gold=GOLD):
    """Write items.parquet of both tasks, without and with two shots."""
    rows = [
        {
            "task": task,
            "shots": shots,
            "split": "test",
            "item": number,
            "gold": right,
            "prediction": predictions[task][number],
            "correct": predictions[task][number] == right,
            "correct_norm": predictions[task][number] == right if task == "hellaswag" else None,
            "log_likelihoods": [-1.0, -2.0],
            "truncated": shots == 2 and number == 3,
        }
        for shots in (0, 2)
        for task, golds in gold.items()
        for number, right in enumerate(golds)
    ]
    write_table(folder / "items.parquet", pd.DataFrame(rows), ITEMS)


def write_losses(path, nll, ids=("h0", "h1", "h2")):
    columns = {"id": list(ids), "source": ["life", "life", "faq"][: len(ids)], "tokens": [10, 30, 20][: len(ids)]}
    write_table(path, columns | {"nll_base": [40.0, 90.0, 80.0][: len(ids)], "nll": nll}, HELD_OUT)


SAID = {"base": "몰라", "spread": "정답: 12", "random": "정답: 9"}
"""What each model answers to every prompt; one that is not here answers as `random` does."""


def write_answers(data, arm):
    """Write the answers to three prompts, of which one has two constraints and one a final number."""
    constraints = [
        [{"id": "keywords:existence", "kwargs": {"keywords": ["정답"]}}],
        [{"id": "keywords:existence", "kwargs": {"keywords": ["12"]}}, {"id": "punctuation:no_comma", "kwargs": {}}],
        [],
    ]
    said = SAID.get(arm, SAID["random"])
    rows = {
        "id": ["k1", "k2", "p1"],
        "prompt": ["묻는 말", "또 묻는 말", "열둘은?"],
        "constraints": [json.dumps(one) for one in constraints],
        "final": [None, None, "12"],
        "answer": [said] * 3,
        "tokens": [3] * 3,
        "ended": [True, True, False],
    }
    write_table(data / "answers" / f"{arm}.parquet", rows, ANSWERS)


def write_arm(data, arm, predictions, nll, gold=GOLD, selected=(True, False, True, False)):
    """Write all that `compare` reads of an arm."""
    write_items(data / "eval" / arm, predictions, gold)
    write_answers(data, arm)
    write_losses(data / "train" / f"{arm}.parquet", nll)
    write_json(data / "train" / f"{arm}.json", TRAINING)
    write_table(data / "samples" / f"{arm}.parquet", ROWS | {"selected": list(selected)}, SAMPLE)


@pytest.fixture
def data(tmp_path, write_leaks):
    """data/ as the stages before `compare` leave it for an arm, the control and the base."""
    folder = tmp_path / "data"
    write_arm(folder, "spread", ARM, [30.0, 60.0, 50.0])
    write_arm(folder, "random", CONTROL, [35.0, 80.0, 70.0])
    write_items(folder / "eval" / "base", BASE)
    write_answers(folder, "base")
    shutil.copyfile(write_leaks(), folder / "leaks.parquet")
    write_size(tmp_path / "models/hub/base.json", "base")
    return folder


SETTINGS = {"compare": {"resamples": 200, "randomisations": 200, "seed": 1}, "control": "random"}


@pytest.fixture
def compare(data, tmp_path):
    """Compare an arm; return what is written in metrics/arms."""

    def run(arm, seed=1, **changed):
        params = comparing.Params.model_validate(SETTINGS | {"compare": SETTINGS["compare"] | {"seed": seed}})
        out = {
            name: tmp_path / "metrics" / folder / f"{arm}.json"
            for name, folder in (("metrics", "arms"), ("items", "items"))
        }
        paths = {"evaluations": data / "eval", "answers": data / "answers", "leaks": data / "leaks.parquet"} | out
        if arm != "base":
            paths |= {"samples": data / "samples", "training": data / "train"}
            paths |= {"base_json": tmp_path / "models/hub/base.json"}
        comparing.compare(params, arm=arm, **paths | changed)
        return read_json(out["metrics"])

    return run


def test_scores_are_those_of_the_items(compare):
    scores = compare("spread")["scores"]
    assert list(scores) == ["0-shot", "2-shot"]
    expected = {"accuracy": 0.75, "macro_f1": pytest.approx((2 / 3 + 0.8) / 2), "n": 4, "truncated": 0}
    assert scores["0-shot"]["copa"] == expected
    assert scores["2-shot"]["copa"] == expected | {"truncated": 1}
    assert scores["0-shot"]["hellaswag"]["acc_norm"] == 0.75
    assert scores["0-shot"]["mean"]["accuracy"] == 0.75


def test_differences_are_the_arm_minus_the_other(compare):
    found = compare("spread")
    for task, control, base in (("copa", 0.5, 0.5), ("hellaswag", 0.5, 0.25), ("mean", 0.5, 0.375)):
        assert found["vs_control"]["scores"]["2-shot"][task]["accuracy"]["est"] == 0.75 - control
        assert found["vs_base"]["scores"]["2-shot"][task]["accuracy"]["est"] == 0.75 - base
    assert found["held_out_loss"] == pytest.approx({"all": 140 / 60, "life": 90 / 40, "faq": 50 / 20})
    assert found["vs_control"]["held_out_loss"]["all"]["est"] == pytest.approx((140 - 185) / 60)
    assert found["vs_base"]["held_out_loss"]["faq"]["est"] == pytest.approx((50 - 80) / 20)


def test_every_difference_in_scores_is_that_of_the_arms_own_scores(compare):
    found, control = compare("spread"), compare("random")
    for shots, tasks in found["vs_control"]["scores"].items():
        for task, by_metric in tasks.items():
            assert by_metric.keys() == found["scores"][shots][task].keys() - {"n", "truncated"}
            for metric, estimate in by_metric.items():
                gap = found["scores"][shots][task][metric] - control["scores"][shots][task][metric]
                assert estimate["est"] == pytest.approx(gap, abs=1e-9)
                assert estimate["lo"] <= estimate["est"] <= estimate["hi"]
                assert estimate["too_few"] == 1
                assert 0 < estimate["p"] <= estimate.get("p_holm", 1) <= 1


def test_an_interval_of_a_task_does_not_depend_on_other_tasks(compare, data):
    both = compare("spread")
    for arm, answers in (("spread", ARM), ("random", CONTROL), ("base", BASE)):
        write_items(data / "eval" / arm, answers, {"copa": GOLD["copa"]})
    copa = compare("spread")
    one, other = (run["vs_control"]["scores"]["0-shot"]["copa"]["macro_f1"] for run in (both, copa))
    assert {key: one[key] for key in ("lo", "hi", "p")} == {key: other[key] for key in ("lo", "hi", "p")}


def test_what_git_keeps_of_the_answers_is_what_was_answered(compare, tmp_path):
    compare("spread")
    kept = read_json(tmp_path / "metrics" / "items" / "spread.json")
    assert kept["items"]["2-shot"]["copa"] == {"gold": "0101", "prediction": "0100"}
    assert kept["items"]["0-shot"]["hellaswag"] == {"gold": "0123", "prediction": "0120", "correct_norm": "1110"}
    assert kept["held_out"] == {
        "nll": {"h0": 30.0, "h1": 60.0, "h2": 50.0},
        "tokens": {"h0": 10, "h1": 30, "h2": 20},
    }


def test_answers_are_marked_and_compared_prompt_by_prompt(compare, tmp_path):
    found, base = compare("spread"), compare("base")
    shares = {"prompts": 3, "prompt_level": 1.0, "instruction_level": 1.0, "final": 1.0}
    assert found["answers"] == shares | {"characters": 6.0, "ended": pytest.approx(2 / 3)}
    gaps = {name: estimate["est"] for name, estimate in found["vs_control"]["answers"].items()}
    assert gaps == pytest.approx({"prompt_level": 0.5, "instruction_level": 1 / 3, "final": 1.0})
    assert found["vs_control"]["answers"]["final"]["too_few"] == 1
    assert base["answers"]["prompt_level"] == base["answers"]["final"] == 0
    assert base["answer_floors"].keys() == {"empty", "echo", "polite"}
    assert base["answer_floors"]["empty"]["instruction_level"] == 0
    kept = read_json(tmp_path / "metrics/items/random.json") if compare("random") else {}
    assert kept["answers"] == {"ids": ["k1", "k2", "p1"], "constraints": "120", "followed": "110", "final": "220"}


def test_without_prompts_there_are_no_shares(compare, data, report):
    for path in (data / "answers").iterdir():
        write_table(path, ANSWERS.empty_table().to_pandas(), ANSWERS)
    found = compare("spread")
    assert found["answers"] == {"prompts": 0}
    assert found["vs_control"]["answers"] == {}
    compare("random")
    assert report(["spread", "random"], "random").summary["arms"]["spread"]["answers"] == {"prompts": 0}


PREFER = {
    name: {"arm": "spread", "pairs": "polite", "labels": labels, "seed": seed} | ({"replicate": of} if of else {})
    for name, labels, seed, of in (
        ("dpo", "given", 1, None), ("dpo_2", "given", 2, "dpo"),
        ("placebo", "shuffled", 1, None), ("placebo_2", "shuffled", 2, "placebo"),
    )
}  # fmt: skip


@pytest.fixture
def preferred(compare, data, tmp_path):
    """The arms, and two runs each of a preference and of its placebo, as compare leaves them."""
    compare("spread")
    compare("random")
    for name, margin in (("dpo", 1.0), ("dpo_2", 1.1), ("placebo", 0.1), ("placebo_2", -0.1)):
        write_arm(data, name, ARM, [31.0, 61.0, 51.0])
        (data / "samples" / f"{name}.parquet").unlink()
        pairs = {column: [1.0] * 20 for column in MARGINS.names}
        pairs |= {"id": [f"{n:02}" for n in range(20)], "chosen_tokens": [3] * 20, "rejected_tokens": [4] * 20}
        pairs |= {"margin": [margin + n / 100 for n in range(20)], "chosen_characters": [5] * 20}
        pairs |= {"rejected_characters": [6] * 20, "chosen_after": [-2.0] * 20}
        write_table(data / "prefer" / f"{name}.parquet", pairs, MARGINS)
        compare(name, samples=None, prefer_parquet=data / "prefer" / f"{name}.parquet", control="spread")


def test_a_preference_is_compared_with_its_arm_and_has_pairs_instead_of_a_sample(preferred, tmp_path):
    found = read_json(tmp_path / "metrics/arms/dpo.json")
    assert "sample" not in found
    assert found["vs_control"]["held_out_loss"]["all"]["est"] == pytest.approx(3 / 60)
    assert found["pairs"]["margin"] == pytest.approx(1.095)
    assert (found["pairs"]["accuracy"], found["pairs"]["chosen_log_probability_after"]) == (1.0, -2.0)
    assert found["cost"] == {"training_tokens": 50, "training_flops": FLOPS / 3 * 4}
    assert read_json(tmp_path / "metrics/items/dpo.json")["margins"]["03"] == pytest.approx(1.03)


def test_the_report_has_preferences_beside_their_placebos(preferred, report, caplog):
    with caplog.at_level("INFO", logger="stages"):
        found = report(["spread", "random"], "random", prefer=PREFER)
    margin = found.summary["preferences"]["dpo"]["vs_placebo"]["margin"]
    assert margin["est"] == pytest.approx(1.05)
    assert margin["lo"] > 0
    assert found.summary["preferred"]["placebo"]["pairs"]["pairs"] == 20
    assert found.summary["cost"]["preferred"]["dpo"]["training_tokens"] == 50
    assert set(found.plots["scores"]["arm"]) >= {"dpo", "placebo_2"}
    assert "dpo minus its placebos, held-out margin: +1.05" in caplog.text
    assert "learning the given labels beats learning shuffled ones" in caplog.text
    assert "dpo: all runs begin with the arm spread" in caplog.text
    assert not [text for text in caplog.messages if "git rm" in text]


def test_the_control_is_not_compared_with_itself(compare):
    found = compare("random")
    assert "vs_control" not in found
    assert found["vs_base"]["scores"]["0-shot"]["hellaswag"]["accuracy"]["est"] == 0.25


def test_cells_and_sources_count_candidates_and_selected_rows(compare):
    assert compare("spread")["sample"] == {
        "rows": 2,
        "candidates": 3,
        "cells_covered": 2,
        "cells": [
            {"cell": "0.0", "candidates": 2, "selected": 1},
            {"cell": "1.2", "candidates": 1, "selected": 1},
        ],
        "sources": [
            {"source": "faq", "candidates": 1, "selected": 1},
            {"source": "life", "candidates": 2, "selected": 1},
        ],
    }


def test_an_arm_has_its_training_report_and_what_training_cost(compare):
    found = compare("spread")
    assert found["train"] == TRAINING
    assert found["cost"] == {"training_tokens": 50, "training_flops": FLOPS}


def test_the_base_has_scores_and_the_majority_baseline_but_no_sample_and_no_training(compare, tmp_path):
    found = compare("base")
    assert found.keys() == {"scores", "scores_without_leaks", "majority_baseline", "answers", "answer_floors"}
    third = pytest.approx(1 / 3)
    assert found["scores"]["0-shot"]["copa"] == {"accuracy": 0.5, "macro_f1": third, "n": 4, "truncated": 0}
    assert found["scores"]["0-shot"]["hellaswag"]["acc_norm"] == 0.25
    majority = found["majority_baseline"]["2-shot"]
    assert majority["copa"] == {"accuracy": 0.5, "macro_f1": third, "n": 4, "truncated": 1}
    assert majority["hellaswag"] == {"accuracy": 0.25, "macro_f1": pytest.approx(0.1), "n": 4, "truncated": 1}
    assert majority["mean"] == {"accuracy": 0.375, "macro_f1": pytest.approx((1 / 3 + 0.1) / 2)}
    kept = read_json(tmp_path / "metrics" / "items" / "base.json")
    assert kept.keys() == {"items", "answers"}
    assert kept["items"]["0-shot"]["copa"] == {"gold": "0101", "prediction": "1111"}


STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


@pytest.mark.parametrize("arm", ["spread", "random", "base"])
def test_compare_needs_nothing_but_its_deps(arm, compare, data, tmp_path, monkeypatch):
    expected = compare(arm)
    stage = STAGES["compare_base"] if arm == "base" else STAGES["compare"]["do"]

    def fill(text):
        return text.replace("${key}", arm).replace("${control}", "random")

    folder = tmp_path / "only"
    for path in {fill(dep) for dep in stage["deps"] if not dep.startswith("stages/")}:
        copy = shutil.copytree if (tmp_path / path).is_dir() else shutil.copyfile
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        copy(tmp_path / path, folder / path)
    monkeypatch.chdir(folder)
    arguments = parse_arguments(comparing.compare, fill(stage["cmd"]).split()[3:])
    comparing.compare(comparing.Params.model_validate(SETTINGS), **arguments)
    assert read_json(folder / f"metrics/arms/{arm}.json") == expected
    written = {str(path.relative_to(folder)) for path in (folder / "metrics").rglob("*.*")}
    assert written == {fill(out) for outs in stage["outs"] for out in outs}


@pytest.mark.parametrize("name", ["samples", "training", "base_json"])
def test_only_the_base_goes_without_a_sample_and_training(name, compare, tmp_path):
    with pytest.raises(
        UserError, match="the arm spread needs --samples or --prefer_parquet, --training and --base_json"
    ):
        compare("spread", **{name: None})
    assert not (tmp_path / "metrics").exists()


LEAKS = [
    ("r1", "copa", "test", 0, "exact", True),
    ("r1", "copa", "test", 3, "near", True),
    ("r2", "copa", "test", 3, "exact", True),
    ("r2", "hellaswag", "train", 1, "contained", True),  # a few-shot example, which is not scored
    ("r4", "copa", "test", 9, "exact", False),  # an item that this benchmark was cut before
]


def test_scores_without_leaks_are_those_of_the_items_that_no_row_contains(compare, write_leaks):
    found = compare("spread", leaks=write_leaks(*LEAKS))
    clean = found["scores_without_leaks"]
    assert list(clean["0-shot"]) == ["copa", "mean"]
    assert clean["0-shot"]["copa"] == {"accuracy": 1.0, "macro_f1": 1.0, "n": 2, "truncated": 0}
    assert clean["0-shot"]["mean"]["accuracy"] == (1 + 0.75) / 2
    assert found["scores"]["0-shot"]["copa"]["n"] == 4
    assert compare("base", leaks=write_leaks(*LEAKS))["scores_without_leaks"]["0-shot"]["copa"]["n"] == 2


def test_without_a_leaked_test_item_there_are_no_scores_without_leaks(compare, write_leaks):
    assert compare("spread", leaks=write_leaks(*LEAKS[3:]))["scores_without_leaks"] == {}


def test_a_task_whose_every_item_leaked_has_no_score_without_leaks(compare, write_leaks):
    leaks = [("r0", "copa", "test", number, "exact", True) for number in range(4)]
    assert compare("spread", leaks=write_leaks(*leaks))["scores_without_leaks"]["0-shot"] == {}


def test_nothing_held_out_leaves_no_loss(compare, data):
    for arm in ("spread", "random"):
        write_losses(data / "train" / f"{arm}.parquet", [], ids=())
    found = compare("spread")
    assert found["held_out_loss"] == found["vs_control"]["held_out_loss"] == {}


@pytest.mark.parametrize("other", ["random", "base"])
def test_arms_of_other_items_are_not_compared(other, compare, data, tmp_path):
    write_items(data / "eval" / other, ARM, gold=GOLD | {"copa": [1, 1, 1, 1]})
    with pytest.raises(UserError, match=r"evaluated on different items.*dvc repro"):
        compare("spread")
    assert not (tmp_path / "metrics").exists()


def test_arms_of_other_held_out_rows_are_not_compared(compare, data, tmp_path):
    write_losses(data / "train" / "random.parquet", [1.0, 1.0, 1.0], ids=("h0", "h1", "h9"))
    with pytest.raises(UserError, match="control has h9 in row 2, not h2 as in arm"):
        compare("spread")
    assert not (tmp_path / "metrics").exists()


@pytest.fixture
def report(tmp_path, data, compare, write_leaks):
    """Report on arms that `compare` wrote; return the summary and the plots."""
    profile, stability = tmp_path / "profile.json", tmp_path / "stability.json"
    run_profile(write_corpus(tmp_path, write_leaks(*LEAKS)), profile)
    methods = {"steady": {"instability": 0.4, "churn": {"2 rows": 0.0}}}
    write_json(stability, {"expected_overlap": 0.1, "methods": methods})
    audit = tmp_path / "audit.json"
    lexical = {"pairs": 2, "rows_dropped": 1, "examples": [{"similarity": 0.9, "first": "가", "later": "나"}]}
    reviews = {"lines": 2, "rows_out": 3, "lines_without_row": 1, "lost": [{"text_hash": "0a" * 8, "who": "이"}]}
    write_json(audit, {"near_duplicates": {"lexical": lexical}, "ratings": {}, "reviews": reviews})

    def run(arms, control, unit="steps", prefer=None):
        settings = arms if isinstance(arms, dict) else {arm: {"method": arm, "seed": 1} for arm in arms}
        train = {"budget": {"unit": unit}}
        params = reporting.Params.model_validate(
            {"arms": settings, "control": control, "prefer": prefer or {}, "train": train}
        )
        compare("base", leaks=write_leaks(*LEAKS))
        out, read = tmp_path / "report", {name: tmp_path / "metrics" / name for name in ("arms", "items")}
        outs = {"summary": out / "summary.json", "plots": out / "plots"}
        reporting.report(params, profile=profile, stability=stability, audit=audit, **read, **outs)
        plots = {path.stem: pd.read_csv(path) for path in (out / "plots").glob("*.csv")}
        return SimpleNamespace(summary=read_json(outs["summary"]), plots=plots, folder=out)

    return run


@pytest.fixture
def compared(compare):
    """Both arms, as compare leaves them."""
    compare("spread")
    compare("random")


def leaves(content, path=()):
    """Yield every value of a nested mapping with the names that lead to it."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from leaves(value, (*path, name))
    else:
        yield path, content


def test_a_budget_for_all_arms_saves_no_training_and_one_of_epochs_does(report, compared, tmp_path):
    cost = report(["spread", "random"], "random").summary["cost"]
    selection = read_json(tmp_path / "profile.json")["selection_cost"]
    assert cost["selection"] == selection
    arm = {"selection_flops": 0, "training_tokens": 50, "training_flops": FLOPS, "saved_flops": 0}
    assert cost["arms"] == {"spread": arm | {"selection_flops": selection["flops"]}, "random": arm}
    by_epochs = report(["spread", "random"], "random", unit="epochs").summary["cost"]["arms"]
    assert by_epochs["spread"]["saved_flops"] == FLOPS * 3 / 2 - FLOPS  # two rows of three candidates


@pytest.mark.parametrize(
    ("arm", "flops"),
    [
        ({"method": "spread"}, 11),
        ({"method": "spread", "by": "ifd"}, 1),
        ({"method": "highest", "allocation": "whole"}, 10),
        ({"method": "steady", "by": "characters", "allocation": "source"}, 0),
        ({"method": "coverage"}, 1),
        ({"method": "deita"}, 11),
        ({"method": "threshold", "by": "nll"}, 10),
        ({"method": "longest"}, 0),
    ],
)
def test_an_arm_pays_for_the_perplexities_and_the_vectors_that_it_selects_by(arm, flops):
    settings = reporting.AnyArm.model_validate(arm | {"seed": 1})
    assert reporting.selection_flops(settings, {"ppl_flops": 10, "embed_flops": 1}) == flops


def test_an_arm_of_every_candidate_is_what_the_others_save_over(report, compared, tmp_path):
    full = read_json(tmp_path / "metrics/arms/spread.json")
    full["sample"]["rows"] = full["sample"]["candidates"]
    full["cost"]["training_flops"] = 7 * FLOPS
    write_json(tmp_path / "metrics/arms/full.json", full)
    shutil.copyfile(tmp_path / "metrics/items/spread.json", tmp_path / "metrics/items/full.json")
    arms = {name: {"method": name, "seed": 1} for name in ("spread", "random")} | {"full": {"method": "all", "seed": 1}}
    cost = report(arms, "random", unit="epochs").summary["cost"]["arms"]
    assert {name: arm["saved_flops"] for name, arm in cost.items()} == {
        "spread": 6 * FLOPS,
        "random": 6 * FLOPS,
        "full": 0,
    }


def test_every_leaf_of_the_summary_is_a_finite_number(report, compared):
    found = [value for _, value in leaves(report(["spread", "random"], "random").summary)]
    assert len(found) > 100
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in found)


def test_the_summary_has_what_compare_and_profile_found(report, compared, tmp_path, caplog):
    with caplog.at_level("INFO", logger="stages"):
        summary = report(["spread", "random"], "random").summary
    arm = summary["arms"]["spread"]
    assert arm["vs_control"]["scores"]["0-shot"]["mean"]["accuracy"]["est"] == 0.25
    assert (arm["sample"]["rows"], arm["train"]["tokens"]) == (2, 50)
    assert "cost" not in arm
    assert summary["base"]["scores"]["0-shot"]["hellaswag"]["accuracy"] == 0.25
    assert summary["base"]["scores_without_leaks"]["0-shot"]["copa"]["n"] == 2
    assert summary["majority_baseline"]["0-shot"]["copa"]["accuracy"] == 0.5
    assert summary["stability"]["methods"]["steady"]["instability"] == 0.4
    assert summary["audit"]["near_duplicates"]["lexical"] == {"pairs": 2, "rows_dropped": 1}  # without its texts
    assert summary["audit"]["reviews"] == {"lines": 2, "rows_out": 3, "lines_without_row": 1}
    assert (
        "reviews: 2, rows that they take out: 3; reviews that no longer match a row: 1: 0a0a0a0a0a0a0a0a" in caplog.text
    )
    corpus = read_json(tmp_path / "profile.json")
    assert {name: summary[name] for name in ("rows", "ppl", "cells", "leaks")} == {
        name: corpus[name] for name in ("rows", "ppl", "cells", "leaks")
    }


def test_every_plot_has_rows_and_no_gap(report, compared, tmp_path):
    plots = report(["spread", "random"], "random").plots
    assert sorted(plots) == ["cells", "differences", "loss", "ppl", "scores", "sources"]
    for table in plots.values():
        assert len(table)
        assert not table.isna().any(axis=None)
    assert plots["ppl"].groupby("source")["share"].sum().tolist() == pytest.approx([1, 1], abs=1e-4)
    assert set(plots["scores"]["arm"]) == {"base", "(majority baseline)", "spread", "random"}
    assert plots["differences"]["difference"].unique().tolist() == ["spread - random, over items only"]
    assert plots["differences"]["score"].tolist()[0] == "held-out loss"
    assert plots["differences"]["score"].tolist()[-2:] == ["prompts followed", "right final answers"]
    assert plots["loss"].groupby("arm")["step"].apply(list).tolist() == [[1, 2], [1, 2]]
    assert plots["cells"].to_dict("records") == [
        {"arm": arm, "cell": cell, "candidates": candidates, "selected": 1}
        for arm in ("spread", "random")
        for cell, candidates in ((0.0, 2), (1.2, 1))
    ]
    assert plots["sources"].to_dict("records") == [
        {"arm": arm, "source": source, "candidates": candidates, "selected": 1}
        for arm in ("spread", "random")
        for source, candidates in (("faq", 1), ("life", 2))
    ]


def test_stray_files_are_named_with_how_to_remove_them_and_are_not_in_the_summary(report, compared, tmp_path, caplog):
    arms, items = (tmp_path / "metrics" / name for name in ("arms", "items"))
    stray = [arms / "old.json", arms / "older.json", items / "old.json"]
    for path in stray:
        path.write_text("{}")
    with caplog.at_level(logging.WARNING, logger="stages"):
        summary = report(["spread", "random"], "random").summary
    (warning,) = caplog.messages
    assert warning.endswith(f"`git rm {' '.join(map(str, stray))}`")
    assert sorted(summary["arms"]) == ["random", "spread"]


def test_without_a_stray_file_nothing_is_to_remove(report, compared, caplog):
    with caplog.at_level(logging.WARNING, logger="stages"):
        report(["spread", "random"], "random")
    assert caplog.messages == []


def test_an_arm_that_was_not_compared_stops_the_report(report, compared, tmp_path):
    (tmp_path / "metrics/arms/spread.json").unlink()
    with pytest.raises(UserError, match=r"metrics/arms/spread\.json: missing; run `dvc repro`"):
        report(["spread", "random"], "random")


def test_without_arms_there_is_only_the_base(report):
    found = report([], None)
    assert found.summary["arms"] == {}
    assert found.summary["base"]["scores"]["2-shot"]["copa"]["accuracy"] == 0.5
    assert list(found.plots["loss"].columns) == ["arm", "step", "loss"]
    assert len(found.plots["scores"]) == 12


def test_the_same_inputs_give_the_same_bytes(report, compared):
    one, other = ({p.name: p.read_bytes() for p in report(["spread"], "spread").folder.rglob("*.*")} for _ in range(2))
    assert one == other
    assert json.loads(one["summary.json"])


RUNS = {
    "spread": {"method": "spread", "fraction": 0.1, "seed": 1},
    "random": {"method": "random", "fraction": 0.1, "seed": 1},
    "spread_2": {"method": "spread", "fraction": 0.1, "seed": 2, "partition": 1, "replicate": "spread"},
    "random_2": {"method": "random", "fraction": 0.1, "seed": 2, "replicate": "random"},
}
"""Two runs of a method and of the control."""
LONG_GOLD = {"copa": [0, 1] * 40, "hellaswag": [0, 1, 2, 3] * 20}


@pytest.fixture
def runs_of_two_methods(compare, data):
    """Runs over 80 items a task: those of `spread` get one item in ten wrong, those of `random` one in four."""

    def with_errors(every, first):
        return {
            task: [(g + 1) % 2 if n % every == first else g for n, g in enumerate(gold)]
            for task, gold in LONG_GOLD.items()
        }

    write_items(data / "eval" / "base", with_errors(2, 0), LONG_GOLD)
    runs = {"random": (4, 0, 40.0), "spread": (10, 0, 30.0), "spread_2": (10, 3, 31.0), "random_2": (4, 1, 41.0)}
    for pair, (arm, (every, first, nll)) in zip(combinations(range(4), 2), runs.items(), strict=False):
        rows = [n in pair for n in range(4)]
        write_arm(data, arm, with_errors(every, first), [nll, 2 * nll + first, nll], LONG_GOLD, rows)
    return {arm: compare(arm) for arm in runs}


def test_replicates_give_an_interval_over_runs_and_items(report, runs_of_two_methods):
    found = report(RUNS, "random").summary["methods"]
    assert list(found) == ["spread"]
    varied = {"runs": 2, "seeds": 2, "shared_rows": 0.5, "shared_by_chance": pytest.approx(2 / 3)}
    control = {f"control_{name}": value for name, value in varied.items()}
    assert {key: value for key, value in found["spread"].items() if key != "vs_control"} == varied | control | {
        "draws_rows": 0
    }
    scores = found["spread"]["vs_control"]["scores"]["2-shot"]
    assert scores["copa"]["accuracy"]["est"] == pytest.approx(0.9 - 0.75)
    assert scores["mean"]["accuracy"]["est"] == pytest.approx(0.9 - 0.75)
    assert scores["hellaswag"]["acc_norm"]["est"] == pytest.approx(0.9 - 0.75)
    assert 0 < scores["mean"]["accuracy"]["lo"] < scores["copa"]["accuracy"]["est"] < scores["mean"]["accuracy"]["hi"]
    loss = found["spread"]["vs_control"]["held_out_loss"]["all"]
    assert loss["est"] == pytest.approx((4 * 30.5 + 1.5 - 4 * 40.5 - 0.5) / 60)


def test_another_seed_draws_other_intervals_and_changes_no_difference(compare, runs_of_two_methods):
    assert compare("spread") == runs_of_two_methods["spread"]
    first = dict(leaves(runs_of_two_methods["spread"]["vs_control"]))
    other = dict(leaves(compare("spread", seed=2)["vs_control"]))
    changed = {path for path, value in first.items() if other[path] != value}
    assert {path[-1] for path in changed} == {"lo", "hi", "p", "p_holm", "mde"}
    for path in changed:
        assert other[path] == pytest.approx(first[path], abs=0.08 if path[0] == "scores" else 0.5), path
    drawn = {path for path in first if path[-1] in ("lo", "hi", "p", "mde") and path[0] == "scores"}
    assert len(changed & drawn) > len(drawn) / 2


def test_wrong_answers_that_differ_are_no_difference_in_accuracy(compare, data):
    gold = {"copa": [0, 1], "hellaswag": [0] * 40}
    for arm, wrong in (("spread", 1), ("random", 2)):
        write_items(data / "eval" / arm, {"copa": [0, 1], "hellaswag": [0] * 20 + [wrong] * 20}, gold)
    write_items(data / "eval" / "base", gold, gold)
    found = compare("spread")["vs_control"]["scores"]["0-shot"]["hellaswag"]
    assert found["accuracy"] == {"est": 0, "lo": 0, "hi": 0, "p": 1, "p_holm": 1, "p_mcnemar": 1, "too_few": 1}
    assert "mde" in found["macro_f1"]


def balanced_accuracy(counts_GA):
    """Return the mean recall over the classes that occur in gold."""
    correct, of_class = np.diagonal(counts_GA, axis1=-2, axis2=-1), counts_GA.sum(-1)
    return (correct / np.maximum(of_class, 1)).sum(-1) / (of_class > 0).sum(-1)


def balanced_accuracy_values(gold_N, prediction_N):
    of_class = [1.0 * (gold_N == label) for label in np.unique(gold_N)]
    return np.mean([metrics.ratio_values(one * (gold_N == prediction_N), one) for one in of_class], axis=0)


@pytest.fixture
def new_metric(monkeypatch):
    """A metric that is one more entry of METRICS, and nothing else."""
    entry = metrics.Metric(metrics.chosen_classes, balanced_accuracy, balanced_accuracy_values)
    monkeypatch.setitem(metrics.METRICS, "balanced_accuracy", entry)


def test_a_new_metric_has_scores_baseline_and_differences_of_every_task(new_metric, compare):
    found, control, base = (compare(arm) for arm in ("spread", "random", "base"))
    for shots in ("0-shot", "2-shot"):
        for task, gold in GOLD.items():
            for written, predictions in ((found, ARM), (control, CONTROL), (base, BASE)):
                score = written["scores"][shots][task]["balanced_accuracy"]
                assert score == pytest.approx(balanced_accuracy_score(gold, predictions[task]))
            majority = base["majority_baseline"][shots][task]["balanced_accuracy"]
            assert majority == pytest.approx(1 / len(set(gold)))
        for task in (*GOLD, "mean"):
            score, other = (one["scores"][shots][task]["balanced_accuracy"] for one in (found, control))
            estimate = found["vs_control"]["scores"][shots][task]["balanced_accuracy"]
            assert estimate["est"] == pytest.approx(score - other)
            assert estimate["lo"] <= estimate["est"] <= estimate["hi"]
            assert estimate["lo"] < estimate["hi"]
            assert 0 < estimate["p"] <= 1
            assert "p_mcnemar" not in estimate


def test_a_new_metric_changes_nothing_of_the_others(compare, runs_of_two_methods, report, request):
    before = report(RUNS, "random")
    request.getfixturevalue("new_metric")
    for arm in RUNS:
        compare(arm)
    after = report(RUNS, "random")
    kept = {path: value for path, value in leaves(after.summary) if "balanced_accuracy" not in path}
    assert kept == dict(leaves(before.summary))
    pd.testing.assert_frame_equal(after.plots["scores"].drop(columns="balanced_accuracy"), before.plots["scores"])


def test_a_new_metric_has_intervals_over_runs_and_a_column_in_the_plot(new_metric, report, runs_of_two_methods):
    found = report(RUNS, "random")
    scores = found.summary["methods"]["spread"]["vs_control"]["scores"]["0-shot"]
    by_run = {
        arm: {task: one["balanced_accuracy"] for task, one in run["scores"]["0-shot"].items()}
        for arm, run in runs_of_two_methods.items()
    }
    for task in ("copa", "hellaswag", "mean"):
        ours, theirs = ((by_run[arm][task] + by_run[f"{arm}_2"][task]) / 2 for arm in ("spread", "random"))
        estimate = scores[task]["balanced_accuracy"]
        assert estimate["est"] == pytest.approx(ours - theirs)
        assert estimate["lo"] < estimate["est"] < estimate["hi"]
        assert {"p", "mde", "run_sd"} <= estimate.keys()
    plotted = found.plots["scores"].set_index(["arm", "shots", "task"])["balanced_accuracy"]
    assert plotted["spread", "0-shot", "copa"] == pytest.approx(by_run["spread"]["copa"], abs=1e-6)
    assert plotted["base", "2-shot", "hellaswag"] >= plotted["(majority baseline)", "2-shot", "hellaswag"]
    assert not plotted.isna().any()


def test_only_runs_and_items_together_say_that_the_method_beats_the_control(report, runs_of_two_methods, caplog):
    with caplog.at_level(logging.INFO, logger="stages"):
        report(RUNS, "random")
        several = caplog.text
        caplog.clear()
        report({name: RUNS[name] for name in ("spread", "random")}, "random")
    assert "spread minus random, 0-shot mean macro-F1" in several
    assert "over 2 and 2 runs and items: the method beats the control" in several
    assert "its runs share" not in several
    assert "about one in twenty misses the true difference" in several
    assert "beats" not in caplog.text
    assert "over items only: these two models differ; the noise of training is not in the interval" in caplog.text


def test_one_answer_that_differs_is_too_few_in_every_metric_and_equal_runs_have_an_empty_interval(
    report, runs_of_two_methods, tmp_path
):
    folder = tmp_path / "metrics" / "items"
    same = read_json(folder / "random.json")
    for name in RUNS:
        write_json(folder / f"{name}.json", same)
    found = report(RUNS, "random").summary["methods"]["spread"]["vs_control"]
    assert found["held_out_loss"]["all"] == {"est": 0, "lo": 0, "hi": 0, "p": 1, "run_sd": 0, "too_few": 1}
    same["items"]["0-shot"]["copa"]["prediction"] = "0" + same["items"]["0-shot"]["copa"]["prediction"][1:]
    write_json(folder / "spread.json", same)
    found = report(RUNS, "random").summary["methods"]["spread"]["vs_control"]["scores"]["0-shot"]
    assert all(estimate["too_few"] == 1 for task in found.values() for estimate in task.values())
    assert found["copa"]["macro_f1"]["lo"] < found["copa"]["macro_f1"]["hi"]


def test_replicates_of_the_control_alone_make_no_method(report, runs_of_two_methods):
    arms = {name: RUNS[name] for name in ("spread", "random", "random_2")}
    assert report(arms, "random").summary["methods"] == {}


def test_runs_that_answered_other_items_stop_the_report(report, runs_of_two_methods, tmp_path):
    path = tmp_path / "metrics" / "items" / "spread_2.json"
    kept = read_json(path)
    kept["items"]["0-shot"]["copa"]["gold"] = "1" * 80
    write_json(path, kept)
    with pytest.raises(UserError, match=r"metrics/items: the runs have different items.*dvc repro"):
        report(RUNS, "random")


@pytest.mark.parametrize(
    ("lo", "hi", "verdict"), [(0.1, 0.2, "the method"), (-0.1, 0.1, "no finding"), (-0.2, -0.1, "the control")]
)
def test_a_verdict_follows_the_interval_and_a_lower_loss_is_better(lo, hi, verdict):
    sides = ("the method", "the control")
    assert reporting.verdict({"lo": lo, "hi": hi}, 1, sides).startswith(verdict)
    assert reporting.verdict({"lo": -hi, "hi": -lo}, -1, sides).startswith(verdict)
    assert "method" not in reporting.verdict({"lo": lo, "hi": hi}, 1, None)
    assert "too few" in reporting.verdict({"lo": lo, "hi": hi, "too_few": 1}, 1, sides)


SHARED = {
    "one selection": (
        {},
        {"spread_2": "spread"},
        "this selection, trained 2 times, beats the control",
        "spread: its runs share 100 % of their rows (66.7 % by chance), and the interval does not contain the luck",
    ),
    "one selection in one partition": (
        {"spread_2": {"partition": 0}},
        {"spread_2": "spread"},
        "this selection, trained 2 times, beats the control",
        "of these; give every run a `partition` of its own",
    ),
    "one training seed": (
        {"spread_2": {"seed": 1}},
        {},
        "this set of 2 selections, trained with one seed, beats the control",
        "spread: 2 runs, but training seeds: 1; give every run a `seed` of its own",
    ),
    "one selection of the control": (
        {},
        {"random_2": "random"},
        "the method beats the control's selection, trained 2 times",
        "random: its runs share 100 % of their rows (66.7 % by chance)",
    ),
}
"""What the runs share: changes to the arms, whose rows an arm has, the verdict, and the line that explains it."""


@pytest.mark.parametrize("shared", SHARED)
def test_runs_that_share_rows_or_a_seed_are_not_called_the_method(
    shared, report, runs_of_two_methods, tmp_path, caplog
):
    changes, same_rows, verdict, line = SHARED[shared]
    for arm, other in same_rows.items():
        path, theirs = (tmp_path / f"metrics/items/{name}.json" for name in (arm, other))
        write_json(path, read_json(path) | {"selection": read_json(theirs)["selection"]})
    with caplog.at_level(logging.INFO, logger="stages"):
        report({name: arm | changes.get(name, {}) for name, arm in RUNS.items()}, "random")
    assert f"over 2 and 2 runs and items: {verdict}" in caplog.text
    assert line in caplog.text
    assert "the method beats the control\n" not in caplog.text


def test_a_selection_is_known_by_its_rows_and_not_by_what_they_scored(compare, data, tmp_path):
    def selection(selected, nll):
        write_arm(data, "spread", ARM, nll, selected=selected)
        compare("spread")
        return read_json(tmp_path / "metrics/items/spread.json")["selection"]

    first = selection((True, False, True, False), [30.0, 60.0, 50.0])
    assert selection((True, False, True, False), [31.0, 61.0, 51.0]) == first
    assert selection((True, True, False, False), [30.0, 60.0, 50.0]) != first


def test_unequal_samples_and_budgets_are_in_the_log(report, runs_of_two_methods, tmp_path, caplog):
    path = tmp_path / "metrics" / "arms" / "spread.json"
    arm = read_json(path)
    with caplog.at_level(logging.INFO, logger="stages"):
        report(RUNS, "random")
        equal = caplog.text
        arm["sample"]["rows"], arm["train"]["steps"] = 1234, 999
        write_json(path, arm)
        report(RUNS, "random")
    assert "rows, random" not in equal
    assert "budgets differ" not in equal
    assert "spread has 1,234 rows, random 2" in caplog.text
    assert "spread was trained for 999 steps, random 2: the budgets differ" in caplog.text


@pytest.mark.parametrize(
    ("tokens", "told"), [((5050, 5050), None), ((5000, 5200), "+2.0 %"), ((4000, 4900), "-11.0 %")]
)
def test_methods_whose_training_tokens_differ_by_more_than_a_hundredth_are_told(
    tokens, told, report, runs_of_two_methods, tmp_path, caplog
):
    found = {name: read_json(tmp_path / "metrics/arms" / f"{name}.json") for name in RUNS}
    spread, random = (sorted(name for name in RUNS if name.startswith(method)) for method in ("spread", "random"))
    for name, presented in zip([*spread, *random], [*tokens, *[5000] * len(random)], strict=True):
        found[name]["train"]["tokens"] = presented
        write_json(tmp_path / "metrics/arms" / f"{name}.json", found[name])
    with caplog.at_level(logging.INFO, logger="stages"):
        report(RUNS, "random")
    lines = [line for line in caplog.messages if "was trained on" in line]
    assert len(lines) == (told is not None)
    assert told is None or f"tokens, random on 5,000 ({told}), which alone may explain a difference" in lines[0]


@pytest.mark.parametrize("tokens", [[0, 0, 0], [0, 7, 0]], ids=["none", "one"])
def test_held_out_rows_too_few_for_an_interval_give_none(tokens, report, runs_of_two_methods, tmp_path):
    for name in RUNS:
        path = tmp_path / "metrics" / "items" / f"{name}.json"
        kept = read_json(path)
        kept["held_out"]["tokens"] = dict(zip(kept["held_out"]["tokens"], tokens, strict=True))
        write_json(path, kept)
    found = report(RUNS, "random").summary["methods"]["spread"]["vs_control"]
    assert found["held_out_loss"] == {}
    assert found["scores"]["0-shot"]["mean"]["macro_f1"]["est"]
