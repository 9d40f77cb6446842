"""Every benchmark runs and compares what its table says; on so few rows that its times mean nothing."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans

from benchmarks import (
    clusters,
    contamination,
    coverage,
    duplicates,
    embedding,
    environment,
    growth,
    lengths,
    scoring,
    selection,
)
from benchmarks.measure import Timed, alternate, ratio, table
from benchmarks.scoring import Ours
from benchmarks.synthetic import unit_vectors
from stages.decontaminate import Params
from stages.lib.core.params import read_params
from stages.lib.evaluation.contamination import read_benchmark
from stages.lib.evaluation.kobest import KOBEST
from stages.lib.selection.kmeans import fit_clusters
from tests.project import ENVIRONMENT, ROOT

FINE = 1e-5


def test_ways_are_run_in_turns():
    order = []
    timed = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "b"] * 3
    assert {name: len(took.seconds) for name, took in timed.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_the_median_of_the_rounds_own_ratios():
    slow, fast = (Timed(seconds, None, None) for seconds in ([4.0, 9.0, 8.0], [2.0, 1.0, 2.0]))
    assert ratio(slow, fast) == 4.0  # of 2, 9 and 4; the medians' ratio is another
    assert ratio(slow, slow) == 1


def test_a_table_leaves_out_columns_that_are_empty_in_every_row():
    rows = [
        {"way": "a", "rows": 1234, "share": 0.5, "none": None},
        {"way": "b", "rows": 2, "share": None, "none": None},
    ]
    assert table(rows).splitlines() == [
        "| way | rows | share |", "| --- | --: | --: |", "| a | 1,234 | 0.5 |", "| b | 2 |  |",
    ]  # fmt: skip


def test_rows_are_as_long_as_real_ones_and_the_same_every_time():
    counts = pd.read_csv(lengths.COUNTS)
    real = np.repeat(counts["tokens"], counts["rows"])
    assert (len(real), round(real.mean())) == (30_350, 22)  # as benchmarks/README.md says
    assert np.quantile(real, 0.95) < 56
    ids = lengths.token_ids(3_000, vocabulary=100)
    assert ids == lengths.token_ids(3_000, vocabulary=100)
    drawn = [len(row) for row in ids]
    assert np.mean(drawn) == pytest.approx(real.mean(), abs=4 * real.std() / 3_000**0.5)
    for share in (0.25, 0.5, 0.75, 0.95):
        assert np.quantile(drawn, share) == pytest.approx(np.quantile(real, share), rel=0.1)
    assert {token for row in ids for token in row} == set(range(3, 100))
    longer = lengths.token_ids(3_000, vocabulary=100, extra=2)
    assert [len(row) for row in longer] == [min(length + 2, lengths.MAX_TOKENS) for length in drawn]


def test_padding_counts_dummy_rows_too():
    assert scoring.padding([[3] * 5] * 3, budget=16) == 1 - 15 / 24  # two batches of 2 x 6


def test_scoring_is_compared_with_the_loop():
    shape = scoring.Shape(layers=1, width=32, heads=2, vocabulary=64, positions=512)
    rows = scoring.compare(shape, 10, [Ours("fp32", 128, 20), Ours("bf16", 256, 20)], rounds=1)
    assert [row["way"] for row in rows] == ["one row, fp32", "ours, fp32, 128 tokens", "ours, bf16, 256 tokens"]
    assert rows[0]["ratio"] == 1
    assert rows[1]["largest difference, nats"] < FINE < rows[2]["largest difference, nats"] < 0.05
    ids = [row for row in lengths.token_ids(20, 64) if len(row) > 1]
    assert [row["rows"] for row in rows] == [10, len(ids), len(ids)]
    assert [row["padding and dummies"] for row in rows] == [
        None, scoring.padding(ids, 128), scoring.padding(ids, 256),
    ]  # fmt: skip


def test_embedding_is_compared_with_the_loop_and_with_sentence_transformers():
    pytest.importorskip("sentence_transformers")
    shape = embedding.Shape(layers=1, width=32, heads=2, vocabulary=64, positions=514)
    rows = embedding.compare(shape, 3, [Ours("fp32", 128, 10), Ours("bf16", 128, 10)], (4,), rounds=1)
    assert [row["way"].split(",")[0] for row in rows] == [
        "one row padded to 512", "sentence-transformers", "ours", "ours",
    ]  # fmt: skip
    assert all(row["largest 1 - cosine"] < FINE for row in rows[:3])


def test_clusters_are_compared_with_the_original():
    rows = clusters.compare(rows=300, width=8, k=4, rounds=1)
    assert [row["way"] for row in rows] == [
        "k-means++ ten times, fitted twice",
        *[f"ours, {way}" for way in ("lloyd, k-means++", "lloyd, hashed", "minibatch, k-means++", "minibatch, hashed")],
    ]
    rng = np.random.default_rng(1)
    vectors_ND = unit_vectors(rng.normal(size=(clusters.CENTRES, 8)).astype(np.float32), 300, rng)
    original = KMeans(4, n_init=10, random_state=42).fit(vectors_ND).inertia_
    ids, options = [f"row{row}" for row in range(300)], {"n_init": 1, "seed": 1}
    ours = [fit_clusters(vectors_ND, ids, 4, algorithm=a, init=i, **options).inertia for a, i in clusters.OURS]
    assert [row["inertia ratio - 1"] for row in rows] == pytest.approx(
        [inertia / original - 1 for inertia in (original, *ours)], abs=1e-6
    )


@pytest.mark.parametrize("world", coverage.WORLDS)
def test_the_true_difference_of_a_simulated_world_is_the_mean_difference(world):
    case = coverage.Case((2, 2), "lognormal", ratio=0, noise=10)
    middles = coverage.intervals(world, case, 400).mean(1)
    assert abs(middles.mean()) < 3 * middles.std() / 400**0.5


def test_coverage_has_a_line_for_the_runs_and_a_column_for_every_world(monkeypatch):
    monkeypatch.setattr(coverage, "coverage", lambda _, case, worlds: case.noise / worlds + case.ratio / 100)
    assert coverage.coverage_row((3, 2), "t3", 4) == {
        "runs": "3, 2", "effects of runs": "t3", **dict.fromkeys(coverage.WORLDS, "0.000 to 0.760"),
    }  # fmt: skip


def test_growth_has_a_line_for_every_stage(monkeypatch):
    fake = {stage: growth.Run(seconds=4.0, cpu=cpu, peak=0.5) for cpu, stage in enumerate(growth.FLAGS, 1)}
    measured, run_stage = {}, growth.run_stage

    def run(folder, stage):
        measured[stage] = run_stage(folder, stage)
        return fake[stage]

    monkeypatch.setattr(growth, "run_stage", run)
    rows = growth.grow(2_000, width=8, length_groups=2, clusters=3)
    assert rows == [
        {"stage": stage, "rows": 2_000, "width": 8 if stage == "cluster" else None, "seconds": 4.0, "CPU seconds": cpu,
         "CPU µs a row": 500 * cpu, "peak GiB": 0.5}
        for cpu, stage in enumerate(("merge", "cluster", "candidates", "sample"), 1)
    ]  # fmt: skip
    assert all(took.cpu > 0 and took.seconds > 0 for took in measured.values())


@pytest.mark.parametrize("part", [duplicates.Part(1_000, "lexical", True), duplicates.Part(600, "semantic")])
def test_duplicates_lists_what_is_planted(part, monkeypatch):
    monkeypatch.setattr(duplicates, "in_own_process", lambda write, *arguments: write(*arguments))
    line = duplicates.measure(part)
    assert line["rows"] == part.rows
    assert line["pairs"].startswith(part.kind)
    assert line["listed"] > 0.02 * part.rows if part.kind == "lexical" else line["listed"] >= 0
    assert line["CPU seconds"] > 0 < line["peak GiB"]


MEASURE = """
import json, sys
from pathlib import Path
from benchmarks.growth import run_measured
HOLD = "held = bytearray(600 << 20)"
BURN = "import time\\nwhile time.process_time() < 0.5: 0"
SLEEP = "import time; time.sleep(0.5)"
print(json.dumps([run_measured(Path.cwd(), [sys.executable, "-c", code]) for code in (HOLD, BURN, SLEEP)]))
"""


def test_the_peak_and_the_cpu_time_of_a_command_are_measured(tmp_path):
    command = [sys.executable, "-c", MEASURE]  # a small process, because the peak of a child starts at its parent's
    printed = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    hold, burn, sleep = (growth.Run(*run) for run in json.loads(printed.stdout))
    assert hold.peak == pytest.approx(600 / 1024, rel=0.05)
    assert max(burn.peak, sleep.peak) < 0.5
    assert 0.5 <= burn.cpu < 2
    assert sleep.cpu < 0.5 <= sleep.seconds


def test_a_command_that_fails_stops_the_benchmark_with_its_log(tmp_path):
    with pytest.raises(SystemExit, match="no such file as this"):
        growth.run_measured(tmp_path, [sys.executable, "-c", "raise SystemExit('no such file as this')"])


def test_contamination_counts_the_copies_found_by_length_and_punctuation(tmp_path, jsonl):
    sentences = ["너무 좋다", "정말 좋은, 물건이다", "정말 좋은 물건이었다", "한 낱말뿐인데도길다"]
    items = {"sentineg": [{"sentence": sentence, "label": 1} for sentence in sentences]}
    for task in KOBEST:
        (tmp_path / task).mkdir()
        (tmp_path / task / "test.jsonl").write_bytes(jsonl(items.get(task, [])))
    texts = read_benchmark(tmp_path, read_params(Params, ROOT / "params.yaml").decontaminate)
    rows = list(contamination.shares_found(contamination.identifying(tmp_path), texts))
    assert [(row["syllables"], row["inner punctuation"], row["texts"]) for row in rows] == [
        ("7 to 9", "no", 2), ("7 to 9", "yes", 1),
    ]  # fmt: skip
    assert {row[f"a letter replaced, {frame}"] for row in rows for frame in contamination.FRAMES} == {1.0}
    clean = pd.DataFrame({"instruction": ["오늘 날씨는?", "정말 좋은 물건이었다!"], "output": ["맑다", "네"]})
    found = contamination.clean_rows(clean, texts)
    assert (found["rows"], found["listed"], found["exact"]) == (2, 1, 1)


def test_an_altered_copy_has_one_other_letter_or_one_word_less():
    text, dice = "비가 [많이] 왔다.", np.random.default_rng(1)
    for _ in range(20):
        letters = contamination.replace_a_letter(text, dice)
        assert sum(a != b for a, b in zip(text, letters, strict=True)) == 1
        assert contamination.normalise(letters) != contamination.normalise(text)
        assert contamination.leave_a_word_out(text, dice) in ("[많이] 왔다.", "비가 왔다.", "비가 [많이]")


@pytest.fixture
def corpus(questions):
    return pd.DataFrame({"id": [f"row{n}" for n in range(40)], "instruction": questions, "output": "답"})


def test_selection_compares_every_change_with_fp32(corpus, lm, encoder):
    cells = selection.CELLS.model_copy(update={"length_groups": 1, "clusters": 2})
    rows = selection.compare(corpus, lm, encoder, cells, fraction=0.5)
    assert [row["against fp32"] for row in rows] == ["perplexity in bf16", "with add_bos", "vectors in bf16"]
    in_bf16, with_bos, vectors = (row["1 - Spearman"] for row in rows)
    assert vectors == pytest.approx(0)  # the perplexities are those of fp32
    assert 0 <= in_bf16 < with_bos


def test_methods_without_cells_have_a_line_each_and_a_large_distance_leaves_few_rows():
    rows = selection.select_apart(400, 8, count=20, distances=(0.1, 1.5))
    assert [row["method"] for row in rows] == ["coverage", "deita, distance 0.1", "deita, distance 1.5"]
    assert [row["selected"] for row in rows][:2] == [20, 20]
    assert rows[2]["selected"] < 20


def test_the_share_that_stays_is_of_the_rows_selected_first(corpus):
    cells = corpus[["id"]].assign(length_group=0, cluster=0, distance=0.0)
    nll = pd.Series(np.linspace(1, 3, 40))
    up, down = (nll, cells), (-nll, cells)
    assert selection.share_that_stays(corpus, up, up, "highest", 0.25) == 1
    assert selection.share_that_stays(corpus, up, down, "highest", 0.25) == 0
    assert selection.share_that_stays(corpus, up, down, "highest", 0.75) == pytest.approx(20 / 30)
    assert selection.selected(corpus, *up, "highest", 0.25) == {f"row{n}" for n in range(30, 40)}
    missing = nll.mask(nll.index >= 38)
    assert selection.selected(corpus, missing, cells, "highest", 0.25) == {f"row{n}" for n in range(29, 38)}


def test_environments_take_turns_and_a_ratio_is_of_the_second_to_the_first(monkeypatch):
    order = []

    def seconds_of(part, shape, threads, variables):
        order.append(variables["way"])
        return 2.0 if variables["way"] == "a" else 3.0 + len(order)

    monkeypatch.setattr(environment, "seconds_of", seconds_of)
    found = environment.in_turns("scoring", "small", 1, {"A": {"way": "a"}, "B": {"way": "b"}}, rounds=3)
    assert order == ["a", "b"] * 3
    assert found == {"A, s": 2.0, "B, s": 7.0, "ratio": 3.5, "lowest": 2.5, "highest": 4.5}


def test_work_is_timed_in_a_process_with_the_environment_asked_for(monkeypatch):
    seen = {}

    def run(command, env, **_):
        seen.update(env=env, command=command)
        return subprocess.CompletedProcess(command, 0, stdout="1.5\n")

    monkeypatch.setattr(environment.subprocess, "run", run)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert environment.seconds_of("scoring", "small", 2, {"OMP_WAIT_POLICY": "ACTIVE"}) == 1.5
    assert "MKL_CBWR" not in seen["env"]
    assert seen["env"]["OMP_WAIT_POLICY"] == "ACTIVE"
    assert seen["command"][-3:] == ["scoring", "small", "2"]


@pytest.mark.parametrize("part", environment.WORK)
def test_each_part_does_its_work(part, monkeypatch):
    monkeypatch.setitem(environment.SIZES, "small", (1, 16, 2, 64, 514))
    environment.WORK[part]("small")()
