"""`tools.why` finds a row by id or text, wherever it went, and gives the reason of every arm."""

import pytest
from ruamel.yaml import YAML

from stages.lib.core.artifacts import read_table, write_jsonl, write_table
from stages.merge import DROPPED, RAW
from tests.selecting import make_candidates, select_rows, write_clusters, write_ppl
from tools.why import MAX_ROWS, main

ARMS = {
    "low": {"method": "spread", "fraction": 0.2, "seed": 1},
    "long": {"method": "highest", "fraction": 0.2, "seed": 1, "by": "characters"},
    "full": {"method": "all", "seed": 1},
    "low_2": {"method": "spread", "fraction": 0.2, "seed": 2, "partition": 1},
    "few": {"method": "middle", "fraction": 0.2, "seed": 1, "by": "characters", "max": 19, "allocation": "source"},
    "half": {"method": "highest", "fraction": 0.2, "seed": 1, "by": "characters", "allocation": "whole"},
    "longest": {"method": "longest", "fraction": 0.2, "seed": 1},
}
TEXTS = [f"{n}번째 한라산 질문" for n in range(20)]


@pytest.fixture(scope="module")
def data(new_folder, write_leaks):
    """Twenty rows in two cells of two partitions: row 3 has no perplexity, row 4 leaked, a leak of row 5 is kept.

    Row 6 nearly equals a held-out row; row 7 was reviewed out.
    """
    folder, ids = new_folder(), [f"{n:016x}" for n in range(20)]
    turns = [[{"role": "user", "text": "하나?"}, {"role": "assistant", "text": "가운데 말"}]] + [None] * 19
    table = {"id": ids, "source": ["life"] * 20, "instruction": TEXTS, "output": ["답" * (n + 1) for n in range(20)]}
    table |= {"turns": turns, "final": [None] * 20}
    write_table(folder / "raw.parquet", table, RAW)
    held_out = [("h", "숨긴 질문"), ("near", "6번째의 한라산 질문은?")]
    write_jsonl(
        folder / "held_out.jsonl",
        [{"id": row, "source": "faq", "instruction": text, "output": "답"} for row, text in held_out],
    )
    dropped = {"id": ["d", None], "source": ["faq"] * 2, "line": [7, 8], "reason": ["empty", "unreadable"]}
    write_table(folder / "dropped.parquet", dropped | {"file": ["faq.csv"] * 2, "text": ["빈 질문", '{"cut']}, DROPPED)
    nll = [None if n == 3 else 2.0 + n for n in range(20)]
    review = {"id": ids[7], "verdict": "out", "who": "김", "why": "개인 정보"}
    write_jsonl(folder / "reviews.jsonl", [review])
    ppl = write_ppl(folder / "ppl", ids, nll)
    halves = [[n // 10 for n in range(20)]]
    cells = [n % 2 for n in range(20)]
    clusters = write_clusters(folder / "clusters", ids, cells, distances=[0.25] * 20, others=halves)
    leaks = write_leaks((ids[4], "copa", "test", 7, "exact", True), (ids[5], "wic", "train", 8, "near", False))
    leaks.rename(folder / "leaks.parquet")
    files = {"raw": folder / "raw.parquet", "ppl": ppl, "clusters": clusters, "leaks": folder / "leaks.parquet"}
    candidates = make_candidates(folder, held_out=folder / "held_out.jsonl", reviews=folder / "reviews.jsonl", **files)
    (folder / "samples").mkdir()
    for arm in ARMS:
        select_rows(folder / "samples", files["raw"], candidates, ARMS, arm)
    return folder


@pytest.fixture
def ask(data, tmp_path, monkeypatch, capsys):
    """Run the command in a project whose data folder this is; return its exit status and what it printed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(data)
    YAML().dump({"arms": ARMS}, tmp_path / "params.yaml")

    def run(*words):
        status = main([*words])
        printed = capsys.readouterr()
        return status, printed.out.splitlines(), printed.err

    return run


def test_a_row_of_raw_has_its_cell_its_scores_and_the_reason_of_every_arm(ask, data):
    samples = {arm: read_table(data / f"samples/{arm}.parquet").loc[19] for arm in ARMS}
    assert (samples["long"]["selected"], samples["low"]["selected"]) == (True, False)
    assert (samples["low"]["rank"], samples["low_2"]["rank"]) == (
        7,
        9,
    )  # the last of eight in one cell, of ten in another
    assert ask(f"{19:016x}") == (
        0,
        [
            f"{19:016x} [life] 19번째 한라산 질문",
            "  cell 0.1, cell 0.1 in partition 1, distance 0.25, tokens 9, nll 21, ppl 21, characters 20",
            f"  low: out (outside the quota; rank {samples['low']['rank']:.0f} of its cell by ppl)",
            f"  long: IN (selected; rank {samples['long']['rank']:.0f} of its cell by characters)",
            "  full: IN (selected)",
            f"  low_2: out (outside the quota; rank {samples['low_2']['rank']:.0f} of its cell in partition 1 by ppl)",
            "  few: out (characters above 19)",
            "  half: IN (selected; rank 15 of the corpus by characters)",
            f"  longest: IN (selected; rank {samples['longest']['rank']:.0f} of its cell by characters)",
        ],
        "",
    )


def test_a_row_is_found_by_a_text_in_any_of_its_turns(ask):
    _, lines, _ = ask("가운데 말")
    assert lines[0].startswith(f"{0:016x} [life]")


def test_a_row_that_is_not_a_candidate_has_its_reason_and_no_rank(ask):
    _, lines, _ = ask(f"{3:016x}")
    assert lines[1] == "  cell 0.1, cell 0.0 in partition 1, distance 0.25, tokens 9, characters 4"
    assert lines[2:] == [f"  {arm}: out (no perplexity)" for arm in ARMS]


def test_a_leak_names_the_item_and_whether_the_row_is_kept(ask):
    _, dropped, _ = ask(f"{4:016x}")
    assert dropped[2:] == ["  leak (exact): copa test 7, 문항", *(f"  {arm}: out (leaked)" for arm in ARMS)]
    _, kept, _ = ask(f"{5:016x}")
    assert kept[2] == "  leak (near): wic train 8, 문항; kept"
    assert "leaked" not in "\n".join(kept)


def test_a_row_that_nearly_equals_a_held_out_one_names_it(ask):
    _, lines, _ = ask(f"{6:016x}")
    assert lines[2] == "  near held out: near [faq] 6번째의 한라산 질문은?"
    assert lines[3:] == [f"  {arm}: out (near held out)" for arm in ARMS]


def test_a_row_that_was_reviewed_out_names_who_did_it_and_why(ask):
    _, lines, _ = ask(f"{7:016x}")
    assert lines[2:] == ["  reviewed out by 김: 개인 정보", *(f"  {arm}: out (reviewed out)" for arm in ARMS)]


def test_held_out_and_dropped_rows_say_so(ask):
    assert ask("h")[1][-1] == "  held out: in no arm"
    assert ask("숨긴") == (0, ["h [faq] 숨긴 질문", "  held out: in no arm"], "")
    assert ask("빈 질")[1] == ["d [faq] 빈 질문", "  dropped by merge: empty, row 7 of faq"]
    assert ask('{"cut')[1] == ['no id [faq] {"cut', "  dropped by merge: unreadable, row 8 of faq"]


def test_a_piece_of_text_in_many_rows_explains_the_first_ones_and_counts_the_others(ask):
    _, lines, _ = ask("한라산")
    assert sum("[life]" in line for line in lines) == MAX_ROWS
    assert lines[-1] == "... and 11 more; give an id, or a longer piece of text"


def test_a_text_in_no_row_fails_in_one_line_and_no_text_prints_the_usage(ask):
    status, lines, error = ask("없는 글")
    assert (status, lines) == (1, [])
    assert error == "no row has the id '없는 글' or contains it in its text; data/raw.parquet has the ids\n"
    assert ask()[0] == 2


def test_an_empty_held_out_file_can_be_read(ask, data):
    before = (data / "held_out.jsonl").read_bytes()
    (data / "held_out.jsonl").write_bytes(b"")
    try:
        assert ask("빈 질")[0] == 0
    finally:
        (data / "held_out.jsonl").write_bytes(before)
