"""Every benchmark runs, on rows so few that its times mean nothing, and says what it should."""

import pandas as pd
import pytest

from benchmarks import clusters, embedding, growth, lengths, scoring, selection
from benchmarks.measure import alternate, table
from benchmarks.scoring import Ours

FINE = 1e-5


def test_ways_are_run_in_turns():
    order = []
    timed = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "b"] * 3
    assert {name: len(took.seconds) for name, took in timed.items()} == {"a": 3, "b": 3}


def test_a_table_leaves_out_what_nobody_fills():
    rows = [
        {"way": "a", "rows": 1234, "share": 0.5, "none": None},
        {"way": "b", "rows": 2, "share": None, "none": None},
    ]
    assert table(rows).splitlines() == [
        "| way | rows | share |", "| --- | --: | --: |", "| a | 1,234 | 0.5 |", "| b | 2 |  |",
    ]  # fmt: skip


def test_rows_are_as_long_as_real_ones_and_the_same_every_time():
    ids = lengths.token_ids(3_000, vocabulary=100)
    assert ids == lengths.token_ids(3_000, vocabulary=100)
    assert 20 < sum(map(len, ids)) / len(ids) < 23
    assert max(map(len, ids)) <= lengths.MOST


def test_scoring_is_compared_with_the_loop():
    shape = scoring.Shape(layers=1, width=32, heads=2, vocabulary=64, positions=512)
    rows = scoring.compare(shape, 10, [Ours("fp32", 128, 20), Ours("bf16", 256, 20)], rounds=1)
    assert [row["way"] for row in rows] == ["one row, fp32", "ours, fp32, 128 tokens", "ours, bf16, 256 tokens"]
    assert rows[0]["ratio"] == 1
    assert rows[1]["largest difference, nats"] < FINE < rows[2]["largest difference, nats"]
    assert 0 < rows[1]["padding and dummies"] < 1


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
    assert all(abs(row["inertia ratio - 1"]) < 0.2 for row in rows)


def test_growth_has_a_line_for_every_stage():
    rows = growth.grow(2_000, width=8, length_groups=2, clusters=3)
    assert [(row["stage"], row["rows"]) for row in rows] == [(s, 2_000) for s in ("merge", "cluster", "sample")]
    assert all(0.01 < row["peak GiB"] < 16 for row in rows)


def test_selection_says_what_stays(questions, lm, encoder):
    corpus = pd.DataFrame({"id": [f"row{n}" for n in range(40)], "instruction": questions, "output": "답"})
    cells = selection.CELLS.model_copy(update={"length_groups": 1, "clusters": 2})
    rows = selection.compare(corpus, lm, encoder, cells, fraction=0.5)
    assert [row["against fp32"] for row in rows] == ["perplexity in bf16", "with add_bos", "vectors in bf16"]
    assert rows[2]["1 - Spearman"] == pytest.approx(0)
    assert all(0 <= row["steady: rows that stay"] <= 1 for row in rows)
