"""The audit says what a judge's marks are worth: whether they tell rows apart, agree, or follow the length."""

import json
import logging

import numpy as np
import pandas as pd
import pytest

from stages.audit import Params, audit
from stages.candidates import CANDIDATES
from stages.dedup import DUPLICATES
from stages.lib.core.artifacts import read_json, write_jsonl, write_table
from stages.lib.statistics.agreement import icc, kept_overlap, weighted_kappa
from stages.merge import RAW
from stages.rate import RATINGS

KORAE = {8.0: 49_400, 8.5: 8_700, 9.0: 500, 10.0: 3_400, 5.0: 800, 7.0: 900}
"""Marks that KoRAE's judge gave, read off the histogram that the project has published."""
ASK = {
    "url": "http://localhost", "key": "KEY", "concurrency": 1, "timeout": 1, "retries": 0,
    "price_per_million": {"input": 0.5, "output": 2, "currency": "USD"},
}  # fmt: skip
ARMS = {
    "best": {"method": "threshold", "by": "score", "min": 8.5, "seed": 1},
    "random": {"method": "random", "size": {"method": "threshold", "by": "score", "min": 8.5}, "seed": 1},
}


NO_REVIEWS = {"lines": 0, "lines_without_row": 0, "rows_out": 0, "lost": []}


def korae_marks(rows: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(list(KORAE), rows, p=np.array(list(KORAE.values())) / sum(KORAE.values()))


@pytest.fixture
def audited(tmp_path, caplog):
    """Run the stage on made-up rows with these columns of candidates and ratings; return its JSON and its log."""

    def audited(columns, pairs=(), arms=ARMS, reviews=()):
        rows = pd.DataFrame(columns)
        rows["id"] = [f"{number:05}" for number in range(len(rows))]
        defaults = {"source": "one", "instruction": "물음", "output": "답", "turns": None, "reason": None}
        rows = rows.assign(**{name: value for name, value in defaults.items() if name not in rows})
        for schema, name in ((RAW, "raw"), (CANDIDATES, "candidates"), (RATINGS, "ratings")):
            write_table(tmp_path / f"{name}.parquet", rows.reindex(columns=schema.names), schema)
        table = pd.DataFrame(pairs, columns=DUPLICATES.names)
        write_table(tmp_path / "duplicates.parquet", table, DUPLICATES)
        write_jsonl(tmp_path / "reviews.jsonl", reviews)
        caplog.clear()
        with caplog.at_level(logging.INFO, "stages"):
            audit(
                Params.model_validate({"arms": arms, "ask": ASK}),
                *(tmp_path / f"{name}.parquet" for name in ("raw", "candidates", "duplicates", "ratings")),
                reviews=tmp_path / "reviews.jsonl",
                audit=tmp_path / "audit.json",
            )
        return read_json(tmp_path / "audit.json"), caplog.text

    return audited


def test_a_judge_with_koraes_histogram_is_saturated_and_the_threshold_stands_on_a_cliff(audited):
    marks = korae_marks(5000, np.random.default_rng(1))
    found, log = audited({"score": marks, "kind": "ok", "characters": np.arange(5000) % 97})
    assert "% of the rows have the mark 8: this judge hardly tells rows apart" in log
    assert "the threshold 8.5 stands on a cliff" in log
    assert found["ratings"]["histogram"]["8"] == (marks == 8).sum()
    assert found["ratings"]["kept"]["8.5"]["all"] == pytest.approx(np.mean(marks >= 8.5))
    assert "follows the length" not in log


def test_marks_that_are_spread_get_no_warning(audited):
    marks = np.random.default_rng(1).choice(np.arange(0, 10.5, 0.5), 2000)
    _, log = audited({"score": marks, "kind": "ok", "characters": np.arange(2000) % 97})
    assert not [word for word in ("hardly", "cliff", "follows") if word in log]


def test_a_judge_that_draws_a_fifth_of_its_marks_anew_agrees_with_itself_at_080(audited):
    rng = np.random.default_rng(2)
    first = korae_marks(5000, rng)
    again = np.where(rng.random(5000) < 0.2, korae_marks(5000, rng), first)
    found, log = audited({"score": first, "kind": "ok", "score_again": again, "characters": 1})
    agreement = found["ratings"]["agreement"]
    assert 0.75 < agreement["weighted_kappa"] < 0.85
    assert 0.75 < agreement["icc"] < 0.85
    assert agreement["exact"] > 0.9  # which flatters the judge
    overlap = agreement["kept"]["8.5"]
    assert overlap["lo"] < overlap["est"] < overlap["hi"] < agreement["exact"]
    assert "5,000 rows were marked twice: exact 0.9" in log


def test_a_judge_whose_mark_is_the_length_of_the_answer_is_named(audited):
    length = np.random.default_rng(3).integers(10, 2000, 500)
    sources = np.where(np.arange(500) % 2, "one", "two")
    found, log = audited({"score": length / 200, "kind": "ok", "characters": length, "source": sources})
    assert found["ratings"]["length"]["score"] == {"one": 1, "two": 1, "all": 1}
    assert "score follows the length of the answer (Spearman +1.00 within sources" in log


def test_a_source_with_longer_and_better_answers_is_no_bias_inside_sources(audited):
    rng = np.random.default_rng(4)
    sources = np.repeat(["one", "two"], 300)
    longer = np.repeat([0, 1000], 300)
    marks = rng.choice([4, 5, 6], 600) + longer / 500
    found, log = audited(
        {"score": marks, "kind": "ok", "characters": rng.integers(1, 100, 600) + longer, "source": sources}
    )
    assert abs(found["ratings"]["length"]["score"]["all"]) < 0.15
    assert "follows" not in log


def test_cheap_scores_are_checked_for_length_too(audited):
    length = np.arange(100)
    found, log = audited({"ifd": length / 50, "nll_answer": -length / 9, "characters": length})
    assert found["ratings"] == {"length": {"ifd": {"one": 1, "all": 1}, "nll_answer": {"one": -1, "all": -1}}}
    assert "nll_answer follows the length of the answer (Spearman -1.00" in log
    assert "high values mean short answers" in log


def test_kinds_and_kept_rows_are_counted_by_source_and_the_price_is_named(audited):
    found, log = audited(
        {
            "source": ["one", "one", "two", "two", "two"],
            "score": [9, None, 8.5, 3, 10],
            "kind": ["ok", "refused", "ok", "ok", "ok"],
            "reason": [None, None, None, None, "leaked"],
            "prompt_tokens": [1000, 1000, 1000, None, 1000],
            "reply_tokens": [10, 0, 10, None, 10],
            "characters": 1,
        }
    )
    ratings = found["ratings"]
    assert ratings["kinds"] == {"one": {"ok": 1, "refused": 1}, "two": {"ok": 3}, "all": {"ok": 4, "refused": 1}}
    assert ratings["kept"] == {"8.5": {"one": 0.5, "two": 0.5, "all": 0.5}}
    assert ratings["paid"] == {"prompt_tokens": 4000, "reply_tokens": 30, "USD": 0.00206}
    assert "replies: ok 4, refused 1" in log


def test_near_duplicates_are_counted_by_kind_source_and_similarity_with_examples(audited):
    rows = {"source": ["one"] * 4 + ["two"], "instruction": ["가" * 300, *"나다라마"], "characters": 1}
    pairs = [
        ("00001", "00000", "lexical", 0.7, False),
        ("00002", "00000", "lexical", 0.85, True),
        ("00002", "00001", "lexical", 1.0, True),
        ("00004", "00003", "semantic", 0.9, True),
    ]
    found, _ = audited(rows, pairs)
    lexical = found["near_duplicates"]["lexical"]
    assert (lexical["pairs"], lexical["rows_dropped"]) == (3, 1)
    assert lexical["by_similarity"] == {"0.70": 1, "0.85": 1, "1.00": 1}
    assert found["near_duplicates"]["semantic"]["by_source"] == {"two": {"pairs": 1, "rows_dropped": 1}}
    assert lexical["examples"][0] == {"similarity": 0.7, "first": "가" * 200, "later": "나\n답"}


def test_a_review_of_a_row_that_is_gone_is_told(audited):
    review = {"verdict": "out", "who": "김", "why": "틀린 답"}
    found, log = audited(
        {"characters": [1, 2, 3], "instruction": ["가?", "나?", "가"]},
        arms={},
        reviews=[review | {"id": "00000"}, review | {"id": "gone", "text_hash": "0a" * 8}],
    )
    lost = [review | {"id": "gone", "text_hash": "0a" * 8}]
    assert found["reviews"] == {"lines": 2, "lines_without_row": 1, "rows_out": 2, "lost": lost}
    assert "reviews: 2, rows that they take out: 2" in log
    assert "reviews that no longer match a row: 1, such as gone (틀린 답); if a row was changed, review it again" in log


def test_without_pairs_and_marks_both_sections_are_empty(audited):
    found, _ = audited({"characters": [1, 2, 3]}, arms={})
    assert found == {"near_duplicates": {}, "ratings": {}, "reviews": NO_REVIEWS}
    assert json.dumps(found, allow_nan=False)


def test_a_weighted_kappa_weighs_by_the_distance_of_marks_and_not_by_their_ranks():
    first, again = np.array([0.0, 9.0, 10.0, 0.0, 9.5]), np.array([0.0, 10.0, 9.0, 0.0, 9.5])
    observed = np.mean((first - again) ** 2)
    expected = np.mean((first[:, None] - again[None]) ** 2)
    assert weighted_kappa(first, again) == pytest.approx(1 - observed / expected)


def test_the_intraclass_correlation_is_that_of_a_table_worked_by_hand():
    # rows' means 2, 4, 6.5: mean squares between 10.17 and within 0.5
    first, again = np.array([2.0, 3.5, 7.0]), np.array([2.0, 4.5, 6.0])
    means = (first + again) / 2
    between, within = 2 * ((means - means.mean()) ** 2).sum() / 2, ((first - again) ** 2 / 2).sum() / 3
    assert icc(first, again) == pytest.approx((between - within) / (between + within))


def test_agreement_that_is_undefined_is_left_out():
    same = np.full(5, 8.0)
    assert (weighted_kappa(same, same), icc(same, same), kept_overlap(same, same, 9)) == (None, None, None)


def test_the_interval_of_the_overlap_covers_the_true_overlap_in_95_of_100_samples():
    rng, covered = np.random.default_rng(5), 0
    for _ in range(400):
        first = rng.random(200)
        again = np.where(rng.random(200) < 0.3, rng.random(200), first)
        found = kept_overlap(first, again, 0.6)
        covered += found["lo"] <= 0.328 / 0.472 <= found["hi"]
    assert 0.92 <= covered / 400 <= 0.98
