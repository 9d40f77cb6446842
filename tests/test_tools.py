"""What can be resolved before training, and our figures beside published ones."""

import json
import shutil

import pandas as pd
import pytest

from tests.project import ROOT
from tools import power, published

PUBLISHED = pd.read_csv(published.TABLE)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params.yaml, a benchmark of three tasks and a summary."""
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    shutil.copytree(ROOT / "data/benchmark_inputs", "data/benchmark_inputs")
    return tmp_path


def test_power_counts_the_benchmarks_items_and_two_methods_need_runs(project, capsys):
    assert power.main([".1", ".01"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("5 tasks of 60, 60, 60, 60, 60 items")
    resolved = [float(line.split()[-1]) for line in lines[2:]]
    assert resolved == sorted(resolved, reverse=True)
    assert len(resolved) == len(power.RUNS)


def test_power_takes_the_fetched_benchmark_or_the_numbers_given(project, capsys):
    params = (project / "params.yaml").read_text(encoding="utf-8")
    assert "tasks: [boolq, copa, hellaswag, sentineg, wic]" in params
    tasks = params.replace("[boolq, copa, hellaswag, sentineg, wic]", "[copa, click_cul_economy]")
    (project / "params.yaml").write_text(tasks, encoding="utf-8")
    for name, items in (("copa/test", 7), ("click_cul_economy/train", 9)):
        path = project / f"data/benchmark/{name}.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("{}\n" * items)
    power.main([".1", ".01"])
    power.main([".1", ".01", "397", "1404"])
    out = capsys.readouterr().out
    assert "2 tasks of 7, 9 items" in out
    assert "2 tasks of 397, 1404 items" in out


def test_power_without_a_benchmark_says_what_to_do(project, capsys):
    shutil.rmtree(project / "data")
    assert power.main([".1", ".01"]) == 1
    assert "dvc repro fetch_benchmark" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [[], [".1"], [".1", "x"], ["0", ".01"], ["1.5", ".01"], [".1", ".01", "1"], [".1", ".01", "9.5"]]
)
def test_power_refuses_what_makes_no_sense(words, capsys):
    assert power.main(words) == 2
    assert "usage: python -m tools.power" in capsys.readouterr().err


def test_a_published_figure_is_there_once_with_a_source_that_is_explained():
    assert not PUBLISHED.duplicated(["model", "task", "metric", "shots", "source"]).any()
    assert set(PUBLISHED["source"]) == set(published.NOTES)
    assert set(zip(PUBLISHED["task"], PUBLISHED["metric"], strict=True)) <= {
        *published.COLUMNS,
        ("hellaswag", "accuracy"),
    }
    assert PUBLISHED["value"].between(0.2, 1).all()


def test_what_is_headed_f1_and_normalised_by_length_is_not_called_f1():
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
        "floor": {"0-shot": scores},
        "arms": {"spread": {"scores": {"0-shot": scores}}},
    }


def test_ours_stand_beside_theirs_metric_by_metric(project, capsys):
    (project / "metrics").mkdir()
    (project / "metrics/summary.json").write_text(json.dumps(summary(published.KOBEST)))
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
    (project / "metrics/summary.json").write_text(json.dumps(summary(dict.fromkeys(published.KOBEST, 60))))
    assert published.main() == 0
    assert "no published figure is comparable with them" in capsys.readouterr().out


def test_a_mean_over_other_tasks_stands_beside_no_mean_of_theirs(project, capsys):
    (project / "metrics").mkdir()
    mixed = summary(published.KOBEST | {"haerae_history": 188})
    (project / "metrics/summary.json").write_text(json.dumps(mixed))
    assert published.main() == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    (ours,) = (dict(zip(rows[0], row, strict=True)) for row in rows if row[0] == "| **spread**")
    assert ours["copa macro_f1"] == ".4000"
    assert "mean macro_f1" not in ours
    assert "haerae_history" not in str(rows[0])
