"""One table of cells, scores and reasons, of which row i is row i of raw."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.candidates import CANDIDATES
from stages.lib.core.artifacts import read_arrow, read_table, write_jsonl, write_table
from stages.lib.core.errors import UserError
from stages.lib.selection.candidates import allow_repeated, mark_repeated, may_be_candidates, reasons
from stages.lib.selection.quotas import rank_in_group
from stages.merge import RAW
from tests.selecting import make_candidates, write_clusters, write_ppl, write_ratings

ROWS = st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.booleans()), max_size=30)
"""(number of the instruction, has a perplexity, leaked)"""


def plain_reasons(rows):
    """The definition of a candidate, row by row."""
    found, seen = [], set()
    for text, scored, leaked in rows:
        if leaked:
            found.append("leaked")
        elif not scored:
            found.append("no perplexity")
        else:
            found.append("repeated instruction" if text in seen else None)
            seen.add(text)
    return found


def columns(rows):
    """Instructions, perplexities and leaks of the rows."""
    texts, scored, leaked = (list(values) for values in zip(*rows, strict=True)) if rows else ([], [], [])
    ppl = pd.Series([5.0 if score else None for score in scored], dtype=float)
    return pd.Series([f"{text}번 질문" for text in texts], dtype=object), ppl, pd.Series(leaked, dtype=bool)


def none(rows):
    return pd.Series(False, index=range(len(rows)))


def listed(reason):
    return [None if pd.isna(value) else value for value in reason]


@given(ROWS)
def test_each_row_has_the_reason_that_the_definition_gives(rows):
    assert listed(reasons(*columns(rows), *[none(rows)] * 3)) == plain_reasons(rows)


@given(ROWS)
def test_repeated_rows_can_be_made_candidates_again(rows):
    reason = allow_repeated(reasons(*columns(rows), *[none(rows)] * 3))
    assert listed(reason) == ["leaked" if leaked else None if scored else "no perplexity" for _, scored, leaked in rows]


@given(ROWS, st.data())
def test_in_a_subset_of_the_rows_another_row_can_be_the_first_of_its_instruction(rows, data):
    instruction, ppl, leaked = columns(rows)
    kept = data.draw(st.lists(st.sampled_from(range(len(rows))), unique=True).map(sorted)) if rows else []
    subset = mark_repeated(instruction.iloc[kept], reasons(instruction, ppl, leaked, *[none(rows)] * 3).iloc[kept])
    assert listed(subset) == plain_reasons([rows[n] for n in kept])


@given(ROWS, st.sets(st.integers(0, 6)))
def test_a_near_row_says_so_unless_it_leaked_or_has_no_perplexity(rows, near):
    instruction, ppl, leaked = columns(rows)
    is_near = pd.Series([text in near for text, _, _ in rows], dtype=bool)
    expected = [
        "near held out" if text in near and scored and not leaked else reason
        for (text, scored, leaked), reason in zip(rows, plain_reasons(rows), strict=True)
    ]
    assert listed(reasons(instruction, ppl, leaked, is_near, none(rows), none(rows))) == expected


@given(ROWS, st.sets(st.integers(0, 6)), st.data())
def test_a_near_duplicate_says_so_unless_another_reason_holds_and_the_next_row_of_its_instruction_is_the_first(
    rows, near, data
):
    instruction, ppl, leaked = columns(rows)
    doubled = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    is_near = pd.Series([text in near for text, _, _ in rows], dtype=bool)
    expected, seen = [], set()
    for (text, scored, leak), double in zip(rows, doubled, strict=True):
        reasons_of = {"leaked": leak, "no perplexity": not scored, "near held out": text in near}
        found = [why for why, holds in (reasons_of | {"near duplicate": double}).items() if holds]
        expected.append(found[0] if found else "repeated instruction" if text in seen else None)
        if not found:
            seen.add(text)
    assert listed(reasons(instruction, ppl, leaked, is_near, pd.Series(doubled, dtype=bool), none(rows))) == expected


@given(ROWS, st.sets(st.integers(0, 6)), st.sets(st.integers(0, 6)), st.data())
def test_a_row_that_cannot_be_a_candidate_is_none_whatever_perplexities_and_held_out_rows_say(
    rows, near, unscored, data
):
    instruction, _, leaked = columns(rows)
    doubled = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    ids = pd.Series([f"row{n}" for n in range(len(rows))], dtype=object)
    flags = [pd.DataFrame({"id": ids, "drop": pd.Series(values, dtype=bool)}) for values in (leaked, doubled)]
    possible = may_be_candidates(instruction, ids, *flags)
    texts = [text for text, _, _ in rows]
    ppl = pd.Series([None if text in unscored else 5.0 for text in texts], dtype=float)  # a function of the instruction
    is_near = pd.Series([text in near for text in texts], dtype=bool)
    reason = reasons(instruction, ppl, leaked, is_near, pd.Series(doubled, dtype=bool), none(rows))
    assert not (reason.isna() & ~possible).any()
    if not near | unscored:
        assert list(reason.isna()) == list(possible)


def test_a_pair_that_drops_nothing_keeps_its_row_possible():
    ids, texts = pd.Series(["a", "b", "c"]), pd.Series(["가", "나", "다"])
    flags = [pd.DataFrame({"id": ["a", "b"], "drop": [True, False]}), pd.DataFrame({"id": ["c"], "drop": [False]})]
    assert list(may_be_candidates(texts, ids, *flags)) == [False, True, True]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), st.sampled_from([1.0, 2.0, 3.0])), max_size=30))
def test_ranks_count_from_0_in_each_cell_and_ties_keep_the_order_of_raw(rows):
    table = pd.DataFrame(rows, columns=["length_group", "cluster", "ppl"])
    ranks = rank_in_group(table, "ppl")
    for group, cluster in {row[:2] for row in rows}:
        cell = [n for n, row in enumerate(rows) if row[:2] == (group, cluster)]
        assert [ranks[n] for n in sorted(cell, key=lambda n: (rows[n][2], n))] == list(range(len(cell)))


@pytest.fixture(scope="module")
def files(new_folder, write_leaks):
    """Six rows that have every reason, and scores that differ from row to row."""
    folder, ids = new_folder(), [f"row{n}" for n in range(6)]
    texts = ["가?", "나?", "가?", "다?", "나?", "라?"]
    outputs = ["답", "둘째 답", "셋", "넷째 답이다", "다섯", "마지막 답"]
    texts_of = {"instruction": texts, "output": outputs, "turns": [None] * 6, "final": [None] * 6}
    write_table(folder / "raw", {"id": ids, "source": [*"aabbcc"]} | texts_of, RAW)
    ppl = write_ppl(folder / "ppl", ids, [1.5, 2.5, 1.5, None, 2.5, 4.5], tokens=[3, 4, 3, 0, 4, 6])
    groups, clusters, distances = [0, 0, 0, 1, 0, 1], [0, 1, 0, 2, 1, 0], [0.5, 0.25, 0.5, 0.0, 0.25, 0.75]
    leaks = write_leaks(
        ("row1", "copa", "test", 7, "exact", True),
        ("row3", "copa", "test", 8, "exact", True),
        ("row5", "copa", "test", 9, "near", False),
    )
    clusters = write_clusters(folder / "clusters", ids, clusters, groups, distances)
    scores = {"nll_answer": 1.0, "nll_answer_alone": 2.0, "ifd": 0.3, "score": 7.5}
    marks = {name: [value, None, *(value + n for n in range(4))] for name, value in scores.items()}
    ratings = write_ratings(folder / "ratings", ids, **marks)
    return {"raw": folder / "raw", "ppl": ppl, "clusters": clusters, "leaks": leaks, "ratings": ratings}


def test_row_i_has_the_cell_and_the_scores_of_row_i_of_raw(files, tmp_path):
    path = make_candidates(tmp_path, **files)
    assert read_arrow(path).schema.remove_metadata() == CANDIDATES
    table = read_table(path)
    raw, scores, cells, marks = (read_table(files[name]) for name in ("raw", "ppl", "clusters", "ratings"))
    for columns_of, *names in (
        (raw, "id", "source"),
        (scores, "tokens", "nll", "ppl"),
        (cells, "length_group", "cluster", "distance"),
        (marks, "nll_answer", "nll_answer_alone", "ifd", "score"),
    ):
        pd.testing.assert_frame_equal(table[names], columns_of[names], check_dtype=False)
    assert list(table["characters"]) == [1, 4, 1, 6, 2, 5]


def test_every_reason_is_written_and_a_flag_without_drop_is_none(files, tmp_path, caplog):
    with caplog.at_level("INFO", logger="stages"):
        table = read_table(make_candidates(tmp_path, **files))
    # row 3 leaked and has no perplexity; row 4 is the first usable row of its instruction, because row 1 leaked
    assert listed(table["reason"]) == [None, "leaked", "repeated instruction", "leaked", None, None]
    assert "3 of 6 rows are candidates; others: {'leaked': 2, 'repeated instruction': 1}" in caplog.text


def test_a_row_without_perplexity_says_so(files, tmp_path, write_leaks):
    table = read_table(make_candidates(tmp_path, **files | {"leaks": write_leaks()}))
    assert listed(table["reason"]) == [
        None,
        None,
        "repeated instruction",
        "no perplexity",
        "repeated instruction",
        None,
    ]


HELD_OUT = ["서울에서 부산까지 얼마나 걸리나요?", "너무 힘들다."]
NEAR = [
    "서울에서 부산까지 얼마나 걸리나요",
    "서울서 부산까지는 얼마나 걸리나?",
    "『서울』에서 부산 까지 얼마나걸리나요?!",
    "너무 힘들다",
]
OTHERS = ["서울에서 대전까지 얼마나 걸리나요?", "서울에서 부산까지 왜 오래 걸리나요?", "너무 힘드네", "힘들다"]


def test_a_row_that_differs_from_a_held_out_one_only_in_punctuation_spaces_or_particles_is_no_candidate(
    tmp_path, write_raw, write_leaks, caplog
):
    raw, ids = write_raw(NEAR + OTHERS), [f"row{n}" for n in range(8)]
    write_jsonl(tmp_path / "held_out", [{"instruction": text} for text in HELD_OUT])
    ppl, clusters = write_ppl(tmp_path / "ppl", ids, [1.0] * 8), write_clusters(tmp_path / "clusters", ids, [0] * 8)
    tables = {"raw": raw, "ppl": ppl, "clusters": clusters, "leaks": write_leaks()}
    with caplog.at_level("INFO", logger="stages"):
        table = read_table(make_candidates(tmp_path, held_out=tmp_path / "held_out", **tables))
    assert listed(table["reason"]) == ["near held out"] * 4 + [None] * 4
    assert "4 of 8 rows are candidates; others: {'near held out': 4}" in caplog.text


def test_a_row_that_nearly_equals_an_earlier_one_is_no_candidate_if_the_pair_says_so(files, tmp_path, write_duplicates):
    pairs = write_duplicates(("row4", "row1", True), ("row5", "row0", False))
    table = read_table(make_candidates(tmp_path, **files | {"duplicates": pairs}))
    assert listed(table["reason"]) == [None, "leaked", "repeated instruction", "leaked", "near duplicate", None]


WRITERS = {
    "ppl": lambda path, ids: write_ppl(path, ids, [1.0] * 6),
    "clusters": lambda path, ids: write_clusters(path, ids, [0] * 6),
    "ratings": write_ratings,
}


@pytest.mark.parametrize("name", WRITERS)
def test_tables_of_another_merge_stop_the_stage(name, files, tmp_path):
    ids = [*(f"row{n}" for n in range(5)), "rowX"]
    other = WRITERS[name](tmp_path / "other", ids)
    with pytest.raises(UserError, match=f"{name} has rowX in row 5, not row5 as in raw"):
        make_candidates(tmp_path, **files | {name: other})
    assert not (tmp_path / "candidates.parquet").exists()
