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
from stages.lib.artifacts import read_json, write_json, write_jsonl, write_table
from stages.lib.stop import Stop
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
            "item": number,
            "gold": right,
            "prediction": predictions[task][number],
            "correct": predictions[task][number] == right,
            "correct_norm": predictions[task][number] == right if task == "hellaswag" else None,
            "log_likelihoods": [-1.0, -2.0],
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
def files(tmp_path):
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
    }


@pytest.fixture
def compare(tmp_path):
    def run(arm, files):
        path = tmp_path / "metrics" / "arms" / f"{arm}.json"
        comparing.compare(comparing.Params(control="random"), arm, metrics=path, **files)
        return read_json(path)

    return run


def test_scores_are_those_of_the_items(compare, files):
    scores = compare("spread", files)["scores"]
    assert list(scores) == ["0-shot", "2-shot"]
    assert scores["0-shot"]["copa"] == {"accuracy": 0.75, "macro_f1": pytest.approx((2 / 3 + 0.8) / 2), "n": 4}
    assert scores["0-shot"]["hellaswag"]["acc_norm"] == 0.75
    assert scores["0-shot"]["mean"]["accuracy"] == 0.75


def test_differences_are_the_arm_minus_the_other(compare, files):
    found = compare("spread", files)
    for task, control, base in (("copa", 0.5, 0.5), ("hellaswag", 0.5, 0.25), ("mean", 0.5, 0.375)):
        assert found["vs_control"]["scores"]["2-shot"][task]["accuracy"] == {"est": 0.75 - control}
        assert found["vs_base"]["scores"]["2-shot"][task]["accuracy"] == {"est": 0.75 - base}
    assert found["held_out_loss"] == {"all": 140 / 60, "life": 90 / 40, "faq": 50 / 20}
    assert found["vs_control"]["held_out_loss"]["all"] == {"est": pytest.approx((140 - 185) / 60)}
    assert found["vs_base"]["held_out_loss"]["faq"] == {"est": pytest.approx((50 - 80) / 20)}


def test_the_control_is_not_compared_with_itself(compare, files):
    ours = files | {"losses": files["control_losses"], "items": files["control_items"]}
    found = compare("random", ours)
    assert "vs_control" not in found
    assert found["vs_base"]["scores"]["0-shot"]["hellaswag"]["accuracy"] == {"est": 0.25}


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


def test_nothing_held_out_leaves_no_loss(compare, files, tmp_path):
    nothing = losses(tmp_path / "nothing", [], ids=())
    found = compare("spread", files | {"losses": nothing, "control_losses": nothing})
    assert found["held_out_loss"] == found["vs_control"]["held_out_loss"] == {}


def test_arms_of_other_items_or_rows_are_not_compared(compare, files, tmp_path):
    other = items(tmp_path / "other", ARM, gold=GOLD | {"copa": [1, 1, 1, 1]})
    for name in ("control_items", "base_items"):
        with pytest.raises(Stop, match=r"evaluated on different items.*dvc repro"):
            compare("spread", files | {name: other})
    other = losses(tmp_path / "other_losses", [1.0, 1.0, 1.0], ids=("h0", "h1", "h9"))
    with pytest.raises(Stop, match="control has h9 in row 2, not h2 as arm"):
        compare("spread", files | {"control_losses": other})
    assert not (tmp_path / "metrics" / "arms" / "spread.json").exists()


@pytest.fixture
def corpus(tmp_path):
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
    write_table(tmp_path / "ppl", {"id": ids, "tokens": [0] + [5] * 9, "nll": ppls, "ppl": ppls}, PPL)
    cells = {"id": ids, "length_group": [0] * 5 + [1] * 5, "cluster": [0, 0, 1, 1, 1] * 2, "distance": [0.5] * 10}
    write_table(tmp_path / "clusters", cells, CLUSTERS)
    return {name: tmp_path / name for name in ("raw", "held_out", "dropped", "ppl", "clusters")}


@pytest.fixture
def report(tmp_path, corpus):
    def run(arms, control, **changed):
        params = reporting.Params.model_validate({"arms": {arm: {"seed": 1} for arm in arms}, "control": control})
        folder, base, out = tmp_path / "metrics" / "arms", tmp_path / "eval" / "base", tmp_path / "report"
        folder.mkdir(parents=True, exist_ok=True)
        items(base, BASE)
        paths = corpus | changed
        reporting.report(params, folder, base, summary=out / "summary.json", plots=out / "plots", **paths)
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


def test_every_leaf_of_the_summary_is_a_finite_number(report, compared):
    found = leaves(report(["spread", "random"], "random").summary)
    assert len(found) > 100
    assert all(isinstance(leaf, int | float) and math.isfinite(leaf) for leaf in found)


def test_the_summary_tells_what_compare_found(report, compared):
    summary = report(["spread", "random"], "random").summary
    arm = summary["arms"]["spread"]
    assert arm["vs_control"]["scores"]["0-shot"]["mean"]["accuracy"] == {"est": 0.25}
    assert (arm["sample"]["rows"], arm["train"]["tokens"]) == (2, 50)
    assert summary["base"]["scores"]["0-shot"]["hellaswag"]["accuracy"] == 0.25
    assert summary["floor"]["0-shot"]["copa"]["accuracy"] == 0.5
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
    write_table(tmp_path / "no_ppl", {"id": ids, "tokens": [0] * 10, "nll": [None] * 10, "ppl": [None] * 10}, PPL)
    assert report([], None, ppl=tmp_path / "no_ppl").summary["ppl"]["all"] == {"without": 10, "tokens": 0}


def test_the_same_inputs_give_the_same_bytes(report, compared):
    one, other = ({p.name: p.read_bytes() for p in report(["spread"], "spread").folder.rglob("*.*")} for _ in range(2))
    assert one == other
    assert json.loads(one["summary.json"])


def test_scores_of_another_merge_stop_the_report(report, tmp_path):
    ids = [*(f"r{n}" for n in range(9)), "rX"]
    write_table(tmp_path / "other", {"id": ids, "tokens": [5] * 10, "nll": [1.0] * 10, "ppl": [2.0] * 10}, PPL)
    with pytest.raises(Stop, match="ppl has rX in row 9, not r9 as raw"):
        report([], None, ppl=tmp_path / "other")
