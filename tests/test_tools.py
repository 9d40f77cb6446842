"""What can be detected before training, and our scores beside published ones."""

import json
import shutil
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest

from stages.lib.evaluation.kobest import KOBEST
from stages.lib.statistics import replicates
from tests.project import ROOT
from tools import power, published

PUBLISHED = pd.read_csv(published.TABLE)
SIZES = {task: known.test_items for task, known in KOBEST.items()}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params.yaml, a benchmark of three tasks and a summary."""
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    shutil.copytree(ROOT / "data/benchmark_inputs", "data/benchmark_inputs")
    return tmp_path


def printed(capsys, *words):
    """Return the first line that `tools.power` prints, and the value at the end of every other line."""
    assert power.main(list(words)) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    return head, [float(line.split()[-1]) for line in lines]


def test_power_counts_the_benchmarks_items(project, capsys):
    head, found = printed(capsys, ".1", ".01")
    assert head.endswith("5 tasks of 60, 60, 60, 60, 60 items")
    assert found == printed(capsys, ".1", ".01", *["60"] * 5)[1]


def test_power_prints_two_models_then_two_methods_by_their_runs(capsys):
    assert power.main([".1", ".005", *map(str, SIZES.values())]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "discordance 0.1, spread 0.005, 5 tasks of 1404, 1000, 500, 397, 1260 items",
        "two models, over items only       0.0149",
        "two methods of 2 runs each        0.0649",
        "two methods of 3 runs each        0.0219",
        "two methods of 5 runs each        0.0130",
        "two methods of 10 runs each       0.0083",
    ]


@pytest.mark.parametrize("discordance", [0.05, 0.2])
@pytest.mark.parametrize("items", [[397], list(SIZES.values())])
def test_power_of_two_models_is_that_of_paired_shares(discordance, items, capsys):
    # a task's difference has the variance d / n; their mean is found at z(0.975) + z(0.8) of its standard errors
    error = sum(discordance / n for n in items) ** 0.5 / len(items)
    detected = (NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)) * error
    _, (found, *_) = printed(capsys, str(discordance), "0", *map(str, items))
    assert found == pytest.approx(detected, abs=5.1e-5)


def share_found(difference, discordance, spread, sizes, runs, times=600):
    """Return how often the interval over simulated runs and items finds that one method is better by `difference`.

    Two runs that differ on a share of the items have half of it as the variance of an answer each.
    """
    rng, found = np.random.default_rng(runs), 0
    for _ in range(times):
        scores = rng.normal(0, spread, (2, runs)) + np.array([[difference], [0]])
        tasks = [rng.normal(scores[:, :, None], (discordance / 2) ** 0.5, (2, runs, n)) for n in sizes]
        found += replicates.crossed([task[0] for task in tasks], [task[1] for task in tasks])["lo"] > 0
    return found / times


@pytest.mark.parametrize("spread", [0.003, 0.03])
def test_power_of_two_methods_is_what_simulated_runs_find_in_80_of_100(spread, capsys):
    _, (_, *found) = printed(capsys, ".1", str(spread), "397", "500")
    for runs, difference in zip(power.RUNS, found, strict=True):
        assert share_found(difference, 0.1, spread, (397, 500), runs) == pytest.approx(0.8, abs=0.05), runs


def test_power_takes_the_fetched_benchmark_or_the_numbers_given(project, capsys):
    params = (project / "params.yaml").read_text(encoding="utf-8")
    assert "tasks: [boolq, copa, hellaswag, sentineg, wic]" in params
    tasks = params.replace("[boolq, copa, hellaswag, sentineg, wic]", "[copa, click_cul_economy]")
    (project / "params.yaml").write_text(tasks, encoding="utf-8")
    for name, items in (("copa/test", 7), ("click_cul_economy/train", 9)):
        path = project / f"data/benchmark/{name}.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("{}\n" * items)
    assert "2 tasks of 7, 9 items" in printed(capsys, ".1", ".01")[0]
    assert "2 tasks of 397, 1404 items" in printed(capsys, ".1", ".01", "397", "1404")[0]


def test_power_without_a_benchmark_names_what_to_do(project, capsys):
    shutil.rmtree(project / "data")
    assert power.main([".1", ".01"]) == 1
    assert "dvc repro fetch_benchmark" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [[], [".1"], [".1", "x"], ["0", ".01"], ["1.5", ".01"], [".1", ".01", "1"], [".1", ".01", "9.5"]]
)
def test_power_refuses_what_is_no_share_and_no_number_of_items(words, capsys):
    assert power.main(words) == 2
    assert "usage: python -m tools.power" in capsys.readouterr().err


def test_a_published_score_is_listed_once_with_a_source_that_is_explained():
    assert not PUBLISHED.duplicated(["model", "task", "metric", "shots", "source"]).any()
    assert set(PUBLISHED["source"]) == set(published.NOTES)
    assert set(zip(PUBLISHED["task"], PUBLISHED["metric"], strict=True)) <= {
        *published.COLUMNS,
        ("hellaswag", "accuracy"),
    }
    assert PUBLISHED["value"].between(0.2, 1).all()


def test_a_length_normalised_score_that_is_headed_f1_is_not_called_f1():
    card = PUBLISHED[PUBLISHED["source"] == "polyglot-ko-5.8b model card"]
    assert set(card.loc[card["task"] == "hellaswag", "metric"]) == {"acc_norm"}
    one = PUBLISHED[(PUBLISHED["model"] == "EleutherAI/polyglot-ko-12.8b") & (PUBLISHED["task"] == "hellaswag")]
    at_five = one[one["shots"] == 5].set_index(["source", "metric"])["value"]
    assert at_five["polyglot-ko-5.8b model card", "acc_norm"] == 0.6306
    assert at_five["ko-lm-evaluation-harness result file", "macro_f1"] == 0.4997


def summary(items):
    scores = {task: {"accuracy": 0.5, "macro_f1": 0.4, "n": n} for task, n in items.items()}
    scores["hellaswag"]["acc_norm"] = 0.45
    scores["mean"] = {"accuracy": 0.5, "macro_f1": 0.4}
    return {
        "base": {"scores": {"0-shot": scores}},
        "majority_baseline": {"0-shot": scores},
        "arms": {"spread": {"scores": {"0-shot": scores}}},
    }


def test_ours_are_beside_theirs_metric_by_metric(project, capsys):
    (project / "metrics").mkdir()
    (project / "metrics/summary.json").write_text(json.dumps(summary(SIZES)))
    assert published.main() == 0
    out = capsys.readouterr().out
    rows = {
        line.split(" | ")[0]: [c.strip(" |") for c in line.split(" | ")[1:]]
        for line in out.splitlines()
        if line[:1] == "|"
    }
    column = rows["| model"].index("hellaswag acc_norm")
    assert rows["| EleutherAI/polyglot-ko-5.8b [1]"][column] == ".5976"
    assert rows["| **spread**"][column] == ".4500"
    assert "Ours: KoBEST v1.0" in out
    assert "5-shot" not in out.split("[1] ")[0]


def test_ours_on_other_items_are_comparable_with_nothing_and_no_summary_is_named(project, capsys):
    assert published.main() == 1
    assert "metrics/summary.json: missing; run `dvc repro`" in capsys.readouterr().err
    (project / "metrics").mkdir()
    (project / "metrics/summary.json").write_text(json.dumps(summary(dict.fromkeys(KOBEST, 60))))
    assert published.main() == 0
    assert "no published score is comparable with them" in capsys.readouterr().out


def test_a_mean_over_other_tasks_is_beside_no_mean_of_theirs(project, capsys):
    (project / "metrics").mkdir()
    mixed = summary(SIZES | {"haerae_history": 188})
    (project / "metrics/summary.json").write_text(json.dumps(mixed))
    assert published.main() == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    (ours,) = (dict(zip(rows[0], row, strict=True)) for row in rows if row[0] == "| **spread**")
    assert ours["copa macro_f1"] == ".4000"
    assert "mean macro_f1" not in ours
    assert "haerae_history" not in str(rows[0])
