"""One arm beside the control and the base, and the summary of all: numbers that can be checked by hand."""

import json
import logging
import math
from types import SimpleNamespace

import pandas as pd
import pytest

from stages import compare as comparing
from stages import report as reporting
from stages.cluster import CLUSTERS
from stages.evaluate import ITEMS
from stages.lib.core.artifacts import read_json, write_json, write_jsonl, write_table
from stages.lib.core.errors import UserError
from stages.merge import DROPPED, RAW
from stages.ppl import PPL
from stages.sample import SAMPLE
from stages.train import HELD_OUT

GOLD = {"copa": [0, 1, 0, 1], "hellaswag": [0, 1, 2, 3]}
BASE = {"copa": [1, 1, 1, 1], "hellaswag": [0, 0, 0, 0]}
CONTROL = {"copa": [0, 1, 1, 0], "hellaswag": [0, 1, 0, 0]}
ARM = {"copa": [0, 1, 0, 0], "hellaswag": [0, 1, 2, 0]}
REPORT = {"epochs": 1.0, "rows": 2, "rows_without_answer": 0, "steps": 2, "tokens": 50}


def items(folder, predictions, gold=GOLD):
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
    return folder


def losses(path, nll, ids=("h0", "h1", "h2")):
    columns = {"id": list(ids), "source": ["life", "life", "faq"][: len(ids)], "tokens": [10, 30, 20][: len(ids)]}
    write_table(path, columns | {"nll_base": [40.0, 90.0, 80.0][: len(ids)], "nll": nll}, HELD_OUT)
    return path


@pytest.fixture
def files(tmp_path, write_leaks):
    """All that compare reads of an arm and a control, as the stages before write it."""
    why = {
        "id": ["a", "b", "c", "d"],
        "length_group": [0, 0, 1, 1],
        "cluster": [0, 0, 2, 2],
        "rank": pd.array([0, 1, 0, None], dtype="Int64"),
        "score": [1.0, 2.0, 3.0, None],
        "selected": [True, False, True, False],
        "reason": ["selected", "outside the quota", "selected", "no perplexity"],
    }
    write_table(tmp_path / "why", why, SAMPLE)
    write_json(tmp_path / "training.json", REPORT | {"loss": [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}]})
    return {
        "why": tmp_path / "why",
        "training": tmp_path / "training.json",
        "losses": losses(tmp_path / "ours", [30.0, 60.0, 50.0]),
        "control_losses": losses(tmp_path / "theirs", [35.0, 80.0, 70.0]),
        "items": items(tmp_path / "eval" / "spread", ARM),
        "control_items": items(tmp_path / "eval" / "random", CONTROL),
        "base_items": items(tmp_path / "eval" / "base", BASE),
        "leaks": write_leaks(),
    }


@pytest.fixture
def compare(tmp_path):
    def run(arm, files):
        folder = tmp_path / "metrics"
        path, outcome = folder / "arms" / f"{arm}.json", folder / "items" / f"{arm}.json"
        settings = {"resamples": 200, "randomisations": 200, "seed": 1}
        params = comparing.Params.model_validate({"compare": settings, "control": "random"})
        comparing.compare(params, arm, metrics=path, outcome=outcome, **files)
        return read_json(path)

    return run


def test_scores_are_those_of_the_items(compare, files):
    scores = compare("spread", files)["scores"]
    assert list(scores) == ["0-shot", "2-shot"]
    expected = {"accuracy": 0.75, "macro_f1": pytest.approx((2 / 3 + 0.8) / 2), "n": 4, "truncated": 0}
    assert scores["0-shot"]["copa"] == expected
    assert scores["2-shot"]["copa"] == expected | {"truncated": 1}
    assert scores["0-shot"]["hellaswag"]["acc_norm"] == 0.75
    assert scores["0-shot"]["mean"]["accuracy"] == 0.75


def test_differences_are_the_arm_minus_the_other(compare, files):
    found = compare("spread", files)
    for task, control, base in (("copa", 0.5, 0.5), ("hellaswag", 0.5, 0.25), ("mean", 0.5, 0.375)):
        assert found["vs_control"]["scores"]["2-shot"][task]["accuracy"]["est"] == 0.75 - control
        assert found["vs_base"]["scores"]["2-shot"][task]["accuracy"]["est"] == 0.75 - base
    assert found["held_out_loss"] == {"all": 140 / 60, "life": 90 / 40, "faq": 50 / 20}
    assert found["vs_control"]["held_out_loss"]["all"]["est"] == pytest.approx((140 - 185) / 60)
    assert found["vs_base"]["held_out_loss"]["faq"]["est"] == pytest.approx((50 - 80) / 20)


def test_every_difference_of_the_arms_scores_is_that_of_their_figures(compare, files):
    found = compare("spread", files)
    control = compare("random", files | {"losses": files["control_losses"], "items": files["control_items"]})
    for shots, tasks in found["vs_control"]["scores"].items():
        for task, metrics in tasks.items():
            assert metrics.keys() == found["scores"][shots][task].keys() - {"n", "truncated"}
            for metric, one in metrics.items():
                gap = found["scores"][shots][task][metric] - control["scores"][shots][task][metric]
                assert one["est"] == pytest.approx(gap, abs=1e-12)
                assert one["lo"] <= one["est"] <= one["hi"]
                assert one["too_few"] == 1
                assert 0 < one["p"] <= one.get("p_holm", 1) <= 1


def test_what_a_comparison_draws_of_a_task_does_not_depend_on_other_tasks(compare, files, tmp_path):
    both = compare("spread", files)
    gold = {"copa": GOLD["copa"]}
    alone = {
        name: items(tmp_path / "copa" / name, answers, gold)
        for name, answers in (("items", ARM), ("control_items", CONTROL), ("base_items", BASE))
    }
    one, other = (
        run["vs_control"]["scores"]["0-shot"]["copa"]["macro_f1"] for run in (both, compare("spread", files | alone))
    )
    assert {key: one[key] for key in ("lo", "hi", "p")} == {key: other[key] for key in ("lo", "hi", "p")}


def test_what_git_keeps_of_the_answers_is_what_was_answered(compare, files, tmp_path):
    compare("spread", files)
    kept = read_json(tmp_path / "metrics" / "items" / "spread.json")
    assert kept["items"]["2-shot"]["copa"] == {"gold": "0101", "prediction": "0100"}
    assert kept["items"]["0-shot"]["hellaswag"] == {"gold": "0123", "prediction": "0120", "correct_norm": "1110"}
    assert kept["held_out"] == {
        "nll": {"h0": 30.0, "h1": 60.0, "h2": 50.0},
        "tokens": {"h0": 10, "h1": 30, "h2": 20},
    }


def test_the_control_is_not_compared_with_itself(compare, files):
    ours = files | {"losses": files["control_losses"], "items": files["control_items"]}
    found = compare("random", ours)
    assert "vs_control" not in found
    assert found["vs_base"]["scores"]["0-shot"]["hellaswag"]["accuracy"]["est"] == 0.25


def test_cells_count_candidates_and_selected_rows(compare, files):
    assert compare("spread", files)["sample"] == {
        "rows": 2,
        "candidates": 3,
        "cells_covered": 2,
        "cells": [
            {"cell": "0.0", "candidates": 2, "selected": 1},
            {"cell": "1.2", "candidates": 1, "selected": 1},
        ],
    }


LEAKS = [
    ("r1", "copa", "test", 0, "exact", True),
    ("r1", "copa", "test", 3, "near", True),
    ("r2", "copa", "test", 3, "exact", True),
    ("r2", "hellaswag", "train", 1, "contained", True),  # a few-shot example, which is not scored
    ("r4", "copa", "test", 9, "exact", False),  # an item that this benchmark was cut before
]


def test_scores_without_leaks_are_those_of_the_items_that_no_row_has(compare, files, write_leaks):
    found = compare("spread", files | {"leaks": write_leaks(*LEAKS)})
    without = found["scores_without_leaks"]
    assert list(without["0-shot"]) == ["copa", "mean"]
    assert without["0-shot"]["copa"] == {"accuracy": 1.0, "macro_f1": 1.0, "n": 2, "truncated": 0}
    assert without["0-shot"]["mean"]["accuracy"] == (1 + 0.75) / 2
    assert found["scores"]["0-shot"]["copa"]["n"] == 4


def test_without_a_leaked_test_item_there_are_no_scores_without_leaks(compare, files, write_leaks):
    assert compare("spread", files | {"leaks": write_leaks(*LEAKS[3:])})["scores_without_leaks"] == {}


def test_a_task_whose_every_item_is_leaked_has_no_score_without(compare, files, write_leaks):
    leaks = [("r0", "copa", "test", number, "exact", True) for number in range(4)]
    without = compare("spread", files | {"leaks": write_leaks(*leaks)})["scores_without_leaks"]
    assert without["0-shot"] == {}


def test_nothing_held_out_leaves_no_loss(compare, files, tmp_path):
    nothing = losses(tmp_path / "nothing", [], ids=())
    found = compare("spread", files | {"losses": nothing, "control_losses": nothing})
    assert found["held_out_loss"] == found["vs_control"]["held_out_loss"] == {}


def test_arms_of_other_items_or_rows_are_not_compared(compare, files, tmp_path):
    other = items(tmp_path / "other", ARM, gold=GOLD | {"copa": [1, 1, 1, 1]})
    for name in ("control_items", "base_items"):
        with pytest.raises(UserError, match=r"evaluated on different items.*dvc repro"):
            compare("spread", files | {name: other})
    other = losses(tmp_path / "other_losses", [1.0, 1.0, 1.0], ids=("h0", "h1", "h9"))
    with pytest.raises(UserError, match="control has h9 in row 2, not h2 as arm"):
        compare("spread", files | {"control_losses": other})
    assert not (tmp_path / "metrics" / "arms" / "spread.json").exists()


@pytest.fixture
def corpus(tmp_path, write_leaks):
    """What report reads of the data: ten rows of two sources, three held out, four dropped."""
    ids, sources = [f"r{n}" for n in range(10)], ["life"] * 6 + ["faq"] * 4
    ppls = [None, *(float(2**n) for n in range(1, 10))]
    write_table(tmp_path / "raw", {"id": ids, "source": sources, "instruction": ids, "output": ids}, RAW)
    held = [{"id": f"h{n}", "source": "life", "instruction": "가", "output": "나"} for n in range(3)]
    write_jsonl(tmp_path / "held_out", held)
    dropped = {
        "id": list("abcd"),
        "source": ["life", "life", "faq", "chat"],
        "line": [1, 2, 3, 4],
        "text": list("abcd"),
    }
    write_table(tmp_path / "dropped", dropped | {"reason": ["empty", "duplicate", "empty", "empty"]}, DROPPED)
    write_table(tmp_path / "ppl", {"id": ids, "text": ids, "tokens": [0] + [5] * 9, "nll": ppls, "ppl": ppls}, PPL)
    cells = {"id": ids, "length_group": [0] * 5 + [1] * 5, "cluster": [0, 0, 1, 1, 1] * 2, "distance": [0.5] * 10}
    write_table(tmp_path / "clusters", cells, CLUSTERS)
    write_json(
        tmp_path / "stability",
        {"expected_overlap": 0.1, "methods": {"steady": {"instability": 0.4, "churn": {"2 rows": 0.0}}}},
    )
    paths = {name: tmp_path / name for name in ("raw", "held_out", "dropped", "ppl", "clusters", "stability")}
    sizes = {"scorer": 100, "encoder": 10, "base_model": 1000}
    for name, multiplied in sizes.items():
        write_json(tmp_path / name, {"parameters": 5000, "multiplied": multiplied, "layers": 2, "width": 4})
    return paths | {"leaks": write_leaks()} | {name: tmp_path / name for name in sizes}


@pytest.fixture
def report(tmp_path, corpus):
    def run(arms, control, unit="steps", **changed):
        settings = arms if isinstance(arms, dict) else {arm: {"method": arm, "seed": 1} for arm in arms}
        train = {"budget": {"unit": unit}}
        params = reporting.Params.model_validate({"arms": settings, "control": control, "train": train})
        folder, base, out = tmp_path / "metrics", tmp_path / "eval" / "base", tmp_path / "report"
        folder.mkdir(parents=True, exist_ok=True)
        items(base, BASE)
        paths = corpus | changed
        reporting.report(
            params, folder / "arms", folder / "items", base, summary=out / "summary.json", plots=out / "plots", **paths
        )
        plots = {path.stem: pd.read_csv(path) for path in (out / "plots").glob("*.csv")}
        return SimpleNamespace(summary=read_json(out / "summary.json"), plots=plots, folder=out)

    return run


@pytest.fixture
def compared(compare, files):
    """Both arms, as compare leaves them."""
    compare("spread", files)
    compare("random", files | {"losses": files["control_losses"], "items": files["control_items"]})


def leaves(content):
    if isinstance(content, dict):
        return [leaf for value in content.values() for leaf in leaves(value)]
    return [content]


def test_rows_add_up_for_every_source(report):
    rows = report([], None).summary["rows"]
    assert rows["all"] == {"read": 17, "raw": 10, "held_out": 3, "dropped": {"duplicate": 1, "empty": 3}}
    assert rows["life"] == {"read": 11, "raw": 6, "held_out": 3, "dropped": {"duplicate": 1, "empty": 1}}
    assert rows["chat"] == {"read": 1, "raw": 0, "held_out": 0, "dropped": {"empty": 1}}
    for key in ("read", "raw", "held_out"):
        assert rows["all"][key] == sum(rows[source][key] for source in ("life", "faq", "chat"))


def test_leaks_are_counted_by_task_split_and_kind(report, write_leaks):
    summary = report([], None, leaks=write_leaks(*LEAKS)).summary
    assert summary["leaks"] == {
        "rows": 3,
        "rows_dropped": 2,
        "copa": {"test": {"rows": 3, "items": 3, "exact": 3, "near": 1}},
        "hellaswag": {"train": {"rows": 1, "items": 1, "contained": 1}},
    }
    assert summary["base"]["scores_without_leaks"]["0-shot"]["copa"]["n"] == 2
    assert report([], None).summary["leaks"] == {"rows": 0, "rows_dropped": 0}


def test_a_budget_for_all_arms_saves_no_training_and_one_of_epochs_does(report, compared):
    cost = report(["spread", "random"], "random").summary["cost"]
    tokens, squares = 9 * 6 + 1, 9 * 36 + 1  # nine rows of five predicted tokens, one of none
    ppl, embed = (2 * n * tokens + 4 * 2 * 4 * squares for n in (100, 10))
    selection = {"rows": 10, "tokens": tokens, "ppl_flops": ppl, "embed_flops": embed, "flops": ppl + embed}
    assert cost["selection"] == selection
    trained = 3 * (2 * 1000 * 50 + 4 * 2 * 4 * 50**2 // 2)  # fifty tokens in two rows
    arm = {"selection_flops": 0, "training_tokens": 50, "training_flops": trained, "saved_flops": 0}
    assert cost["arms"] == {"spread": arm | {"selection_flops": ppl + embed}, "random": arm}
    by_epochs = report(["spread", "random"], "random", unit="epochs").summary["cost"]["arms"]
    assert by_epochs["spread"]["saved_flops"] == trained * 3 / 2 - trained  # two rows of three candidates


def test_every_leaf_of_the_summary_is_a_finite_number(report, compared):
    found = leaves(report(["spread", "random"], "random").summary)
    assert len(found) > 100
    assert all(isinstance(leaf, int | float) and math.isfinite(leaf) for leaf in found)


def test_the_summary_tells_what_compare_found(report, compared):
    summary = report(["spread", "random"], "random").summary
    arm = summary["arms"]["spread"]
    assert arm["vs_control"]["scores"]["0-shot"]["mean"]["accuracy"]["est"] == 0.25
    assert (arm["sample"]["rows"], arm["train"]["tokens"]) == (2, 50)
    assert summary["base"]["scores"]["0-shot"]["hellaswag"]["accuracy"] == 0.25
    assert summary["majority_baseline"]["0-shot"]["copa"]["accuracy"] == 0.5
    assert summary["stability"]["methods"]["steady"]["instability"] == 0.4
    assert summary["cells"] == {"cells": 4, "smallest": 2, "median": 2.5, "largest": 3, "mean_distance": 0.5}


def test_perplexities_are_quantiles_of_the_rows_that_have_one(report):
    found = report([], None).summary["ppl"]
    assert found["all"]["p50"] == 32
    assert (found["all"]["without"], found["all"]["tokens"]) == (1, 45)
    assert (found["faq"]["p50"], found["life"]["without"]) == (pytest.approx(2**7.585, rel=1e-3), 1)


def test_every_plot_has_rows_and_no_gap(report, compared):
    plots = report(["spread", "random"], "random").plots
    assert sorted(plots) == ["cells", "loss", "ppl", "scores"]
    for table in plots.values():
        assert len(table)
        assert not table.isna().any(axis=None)
    assert plots["ppl"].groupby("source")["share"].sum().tolist() == pytest.approx([1, 1], abs=1e-4)
    assert set(plots["scores"]["arm"]) == {"base", "(floor)", "spread", "random"}
    assert plots["loss"].groupby("arm")["step"].apply(list).tolist() == [[1, 2], [1, 2]]


def test_a_stale_arm_is_named_with_how_to_remove_it_and_not_told(report, compared, tmp_path, caplog):
    (tmp_path / "metrics" / "arms" / "old.json").write_text("{}")
    with caplog.at_level(logging.WARNING, logger="stages"):
        summary = report(["spread", "random"], "random").summary
    assert f"git rm {tmp_path / 'metrics' / 'arms' / 'old.json'}" in caplog.text
    assert sorted(summary["arms"]) == ["random", "spread"]


def test_without_arms_the_base_alone_is_told(report):
    found = report([], None)
    assert found.summary["arms"] == {}
    assert found.summary["base"]["scores"]["2-shot"]["copa"]["accuracy"] == 0.5
    assert list(found.plots["loss"].columns) == ["arm", "step", "loss"]
    assert len(found.plots["scores"]) == 12


def test_nothing_held_out_and_nothing_dropped_is_no_trouble(report, tmp_path):
    write_jsonl(tmp_path / "nothing", [])
    write_table(tmp_path / "none", {name: [] for name in DROPPED.names}, DROPPED)
    rows = report([], None, held_out=tmp_path / "nothing", dropped=tmp_path / "none").summary["rows"]
    assert rows["all"] == {"read": 10, "raw": 10, "held_out": 0, "dropped": {}}


def test_rows_without_any_perplexity_are_no_trouble(report, tmp_path):
    ids = [f"r{n}" for n in range(10)]
    write_table(
        tmp_path / "no_ppl", {"id": ids, "text": ids, "tokens": [0] * 10, "nll": [None] * 10, "ppl": [None] * 10}, PPL
    )
    assert report([], None, ppl=tmp_path / "no_ppl").summary["ppl"]["all"] == {"without": 10, "tokens": 0}


def test_the_same_inputs_give_the_same_bytes(report, compared):
    one, other = ({p.name: p.read_bytes() for p in report(["spread"], "spread").folder.rglob("*.*")} for _ in range(2))
    assert one == other
    assert json.loads(one["summary.json"])


def test_scores_of_another_merge_stop_the_report(report, tmp_path):
    ids = [*(f"r{n}" for n in range(9)), "rX"]
    write_table(
        tmp_path / "other", {"id": ids, "text": ids, "tokens": [5] * 10, "nll": [1.0] * 10, "ppl": [2.0] * 10}, PPL
    )
    with pytest.raises(UserError, match="ppl has rX in row 9, not r9 as raw"):
        report([], None, ppl=tmp_path / "other")


RUNS = {
    "spread": {"method": "spread", "fraction": 0.1, "seed": 1},
    "random": {"method": "random", "fraction": 0.1, "seed": 1},
    "spread_2": {"method": "spread", "fraction": 0.1, "seed": 2, "replicate": "spread"},
    "random_2": {"method": "random", "fraction": 0.1, "seed": 2, "replicate": "random"},
}
"""Two runs of a method and of the control."""


@pytest.fixture
def runs_of_two_methods(compare, files, tmp_path):
    """Runs over 80 items a task: those of `spread` get one item in ten wrong, those of `random` one in four."""
    gold = {"copa": [0, 1] * 40, "hellaswag": [0, 1, 2, 3] * 20}

    def answered(name, every, first):
        wrong = {task: [(g + 1) % 2 if n % every == first else g for n, g in enumerate(gold[task])] for task in gold}
        return items(tmp_path / "eval" / name, wrong, gold)

    base = answered("none", 2, 0)
    told = {"spread": (10, 0, 30.0), "spread_2": (10, 3, 31.0), "random": (4, 0, 40.0), "random_2": (4, 1, 41.0)}
    for name, (every, first, nll) in told.items():
        kept = losses(tmp_path / f"{name}.losses", [nll, 2 * nll + first, nll])
        mine = {"items": answered(name, every, first), "losses": kept, "base_items": base}
        control = {
            "control_items": answered("random", 4, 0),
            "control_losses": losses(tmp_path / "c", [40.0, 80.0, 40.0]),
        }
        compare(name, files | mine | control)


def test_replicates_give_an_interval_over_runs_and_items(report, runs_of_two_methods):
    found = report(RUNS, "random").summary["methods"]
    assert list(found) == ["spread"]
    assert (found["spread"]["runs"], found["spread"]["control_runs"], found["spread"]["draws_rows"]) == (2, 2, 0)
    told = found["spread"]["vs_control"]["scores"]["2-shot"]
    assert told["copa"]["accuracy"]["est"] == pytest.approx(0.9 - 0.75)
    assert told["mean"]["accuracy"]["est"] == pytest.approx(0.9 - 0.75)
    assert told["hellaswag"]["acc_norm"]["est"] == pytest.approx(0.9 - 0.75)
    assert 0 < told["mean"]["accuracy"]["lo"] < told["copa"]["accuracy"]["est"] < told["mean"]["accuracy"]["hi"]
    loss = found["spread"]["vs_control"]["held_out_loss"]["all"]
    assert loss["est"] == pytest.approx((4 * 30.5 + 1.5 - 4 * 40.5 - 0.5) / 60)


def test_only_runs_and_items_together_say_that_the_method_beats_the_control(report, runs_of_two_methods, caplog):
    with caplog.at_level(logging.INFO, logger="stages"):
        report(RUNS, "random")
        several = caplog.text
        caplog.clear()
        report({name: RUNS[name] for name in ("spread", "random")}, "random")
    assert "spread minus random, 0-shot mean macro-F1" in several
    assert "over 2 and 2 runs and items: the method beats the control" in several
    assert "spread: its seeds only train, for spread draws no rows" in several
    assert "beats" not in caplog.text
    assert "over items alone: these two models differ; the noise of training is not in the interval" in caplog.text


def test_one_answer_that_differs_is_too_few_in_every_metric_and_equal_runs_are_told_too(
    report, runs_of_two_methods, tmp_path
):
    folder = tmp_path / "metrics" / "items"
    same = read_json(folder / "random.json")
    for name in RUNS:
        write_json(folder / f"{name}.json", same)
    told = report(RUNS, "random").summary["methods"]["spread"]["vs_control"]
    assert told["held_out_loss"]["all"] == {
        "est": 0,
        "lo": 0,
        "hi": 0,
        "p": 1,
        "run_sd": 0,
        "too_few": 1,
    }
    same["items"]["0-shot"]["copa"]["prediction"] = "0" + same["items"]["0-shot"]["copa"]["prediction"][1:]
    write_json(folder / "spread.json", same)
    told = report(RUNS, "random").summary["methods"]["spread"]["vs_control"]["scores"]["0-shot"]
    assert all(one["too_few"] == 1 for task in told.values() for one in task.values())
    assert told["copa"]["macro_f1"]["lo"] < told["copa"]["macro_f1"]["hi"]


def test_a_replicate_of_the_control_alone_makes_no_method(report, runs_of_two_methods):
    arms = {name: RUNS[name] for name in ("spread", "random", "random_2")}
    assert report(arms, "random").summary["methods"] == {}


def test_runs_that_answered_other_items_stop_the_report(report, runs_of_two_methods, tmp_path):
    path = tmp_path / "metrics" / "items" / "spread_2.json"
    kept = read_json(path)
    kept["items"]["0-shot"]["copa"]["gold"] = "1" * 80
    write_json(path, kept)
    with pytest.raises(UserError, match=r"metrics/items: runs answered different items.*dvc repro"):
        report(RUNS, "random")


@pytest.mark.parametrize(
    ("lo", "hi", "says"), [(0.1, 0.2, "the method"), (-0.1, 0.1, "no finding"), (-0.2, -0.1, "the control")]
)
def test_a_verdict_follows_the_interval_and_a_lower_loss_is_better(lo, hi, says):
    assert reporting.verdict({"lo": lo, "hi": hi}, 1, True).startswith(says)
    assert reporting.verdict({"lo": -hi, "hi": -lo}, -1, True).startswith(says)
    assert "method" not in reporting.verdict({"lo": lo, "hi": hi}, 1, False)
    assert "too few" in reporting.verdict({"lo": lo, "hi": hi, "too_few": 1}, 1, True)


def test_unequal_samples_and_budgets_are_told(report, runs_of_two_methods, tmp_path, caplog):
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
    assert "spread was trained 999 steps, random 2: their budgets differ" in caplog.text


@pytest.mark.parametrize("tokens", [[0, 0, 0], [0, 7, 0]], ids=["none", "one"])
def test_held_out_rows_too_few_for_an_interval_give_none(tokens, report, runs_of_two_methods, tmp_path):
    for name in RUNS:
        path = tmp_path / "metrics" / "items" / f"{name}.json"
        kept = read_json(path)
        kept["held_out"]["tokens"] = dict(zip(kept["held_out"]["tokens"], tokens, strict=True))
        write_json(path, kept)
    told = report(RUNS, "random").summary["methods"]["spread"]["vs_control"]
    assert told["held_out_loss"] == {}
    assert told["scores"]["0-shot"]["mean"]["macro_f1"]["est"]
