"""A row that a person takes out stays out of every arm, whatever source its text comes from."""

import json
import subprocess

import pyarrow as pa
import pytest

from stages.lib.core.artifacts import read_arrow, read_jsonl, read_table
from stages.lib.core.errors import UserError
from stages.lib.selection.reviews import READ, match_reviews, read_reviews, review_hashes
from stages.lib.text.conversations import Turn, as_column
from tests.clones import each
from tests.project import commit, ran, run
from tests.selecting import arm_of, make_candidates, select_rows, write_clusters, write_ppl
from tools import ask, review

LINE = {"id": "row0", "verdict": "out", "who": "김", "why": "개인 정보"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A git repository of 김's, in which `tools.review` runs."""
    monkeypatch.chdir(tmp_path)
    for words in (["init", "-q"], ["config", "user.name", "김"]):
        subprocess.run(["git", *words], check=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/reviews.jsonl").touch()
    return tmp_path


def reasons_of(folder, raw, write_leaks):
    """Return why each row of raw is not a candidate, by data/reviews.jsonl in this folder."""
    ids = list(read_table(raw, "id")["id"])
    ppl = write_ppl(folder / "ppl", ids, [float(n) for n in range(len(ids))])
    clusters = write_clusters(folder / "clusters", ids, [0] * len(ids))
    files = {"ppl": ppl, "clusters": clusters, "leaks": write_leaks(), "reviews": folder / "data/reviews.jsonl"}
    return make_candidates(folder, raw=raw, **files)


def write_lines(path, *lines):
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def test_a_row_reviewed_out_is_in_no_arm_and_stays_out_if_its_text_comes_from_another_source(
    folder, run_merge, rows, write_leaks
):
    run_merge({"one": rows}, out=folder / "data")
    row = read_table(folder / "data/raw.parquet").loc[7]
    assert review.main([row["id"], "--reason", "틀린 답"]) == 0
    again = {"instruction": f" {row['instruction']}!!", "output": row["output"].replace(" ", "  ")}
    for sources in ({"one": rows}, {"other": [again], "one": rows[:7] + rows[8:]}):
        run_merge(sources, out=folder / "data")
        raw = folder / "data/raw.parquet"
        path = reasons_of(folder, raw, write_leaks)
        table = read_table(path).set_index("id")["reason"]
        (out,) = table.index[table == "reviewed out"]
        assert (out == row["id"]) == ("other" not in sources)
        for method in ("all", "random", "longest", "spread", "threshold"):
            arm = arm_of(method) | ({} if method in ("all", "threshold") else {"fraction": 0.9})
            found = select_rows(folder, raw, path, {"ours": arm | ({"by": "ppl"} if method == "threshold" else {})})
            assert found.samples
            assert out not in {one["id"] for one in found.samples}
            assert set(found.why.loc[found.why["id"] == out, "reason"]) == {"reviewed out"}


def test_a_verdict_is_said_before_any_other_reason_and_the_next_answer_to_a_question_takes_its_place(
    folder, write_raw, write_leaks
):
    raw = write_raw(["가?", "가?", "가?", "나?"], outputs=["틀린 답", "맞는 답", "다른 답", "답"])
    write_lines(folder / "data/reviews.jsonl", LINE, LINE | {"id": "row3"})
    path = reasons_of(folder, raw, lambda: write_leaks(("row3", "copa", "test", 7, "exact", True)))
    found = read_table(path)["reason"]
    assert list(found.fillna("a candidate")) == ["reviewed out", "a candidate", "repeated instruction", "reviewed out"]


def test_a_judge_is_asked_about_the_row_that_takes_the_place_too(folder, write_raw, write_leaks, write_duplicates):
    write_raw(["가?", "가?", "가?", "나?"]).rename(folder / "data/raw.parquet")
    write_leaks().rename(folder / "data/leaks.parquet")
    write_duplicates().rename(folder / "data/duplicates.parquet")
    write_lines(folder / "data/reviews.jsonl", LINE)
    assert ask.needed_rows(folder / "data")["id"].to_pylist() == ["row0", "row1", "row3"]


def table_of(**columns):
    count = len(columns["instruction"])
    return pa.table({"id": [f"row{n}" for n in range(count)], "turns": as_column([None] * count)} | columns)


def test_texts_are_equal_but_for_spaces_punctuation_case_and_width_and_other_answers_are_not():
    asked = ["Docker란?", "docker 란", "ＤＯＣＫＥＲ란?!", "Docker란?", "5 - 6은?", "56은?"]
    hashes = review_hashes(table_of(instruction=asked, output=["상자.", "상자", "상자!", "배", "-1", "-1"]))
    assert len({*hashes[:3]}) == 1
    assert len({*hashes}) == 4


def test_a_hash_never_changes_because_every_review_would_lose_its_row():
    rows = table_of(instruction=["장보고는 누구인가요?"], output=["신라의 장군입니다."])
    assert review_hashes(rows) == ["2bf2a65ebde1a70e"]


def test_of_a_conversation_every_turn_counts():
    turns = [Turn("user", "하나?"), Turn("assistant", "둘"), Turn("user", "셋?"), Turn("assistant", "넷")]
    other = [turns[0], Turn("assistant", "이"), *turns[2:]]
    rows = table_of(instruction=["하나?"] * 2, output=["넷"] * 2).set_column(1, "turns", as_column([turns, other]))
    assert len(set(review_hashes(rows))) == 2


def test_a_review_with_only_an_id_takes_out_equal_texts_and_one_by_hash_needs_no_id(folder):
    rows = table_of(instruction=["가?", "가", "나?"], output=["답"] * 3)
    for line in (LINE, LINE | {"id": "gone", "text_hash": review_hashes(rows)[0]}):
        write_lines(folder / "data/reviews.jsonl", line)
        is_out, lost = match_reviews(read_reviews(folder / "data/reviews.jsonl"), rows)
        assert (list(is_out), lost) == ([True, True, False], [])


def test_a_review_that_matches_no_row_is_returned(folder):
    write_lines(folder / "data/reviews.jsonl", LINE, LINE | {"id": "gone", "text_hash": "0" * 16})
    is_out, (lost,) = match_reviews(
        read_reviews(folder / "data/reviews.jsonl"), table_of(instruction=["가"], output=["답"])
    )
    assert (list(is_out), lost.id) == ([True], "gone")


WRONG = {
    "line 1: not JSON: .*got '<<<<<<< HEAD'": "<<<<<<< HEAD",
    "line 1: verdict: should be 'out' .got 'in'.": LINE | {"verdict": "in"},
    "line 1: whom: unknown key": LINE | {"whom": "이"},
    "line 1: why: missing": {key: value for key, value in LINE.items() if key != "why"},
    "line 1: who: .*got ' '": LINE | {"who": " "},
    "line 1: needs an id or a text_hash": {key: value for key, value in LINE.items() if key != "id"},
    "line 1: text_hash: .*got '1234'": LINE | {"text_hash": "1234"},
    "line 1: should be a valid dictionary": 5,
}


@pytest.mark.parametrize("message", WRONG)
def test_a_line_that_is_no_review_stops_the_stage_and_is_named(message, folder):
    wrong = WRONG[message]
    (folder / "data/reviews.jsonl").write_text(wrong if isinstance(wrong, str) else json.dumps(wrong))
    with pytest.raises(UserError, match=rf"reviews\.jsonl, {message}"):
        read_reviews(folder / "data/reviews.jsonl")


def test_a_line_that_is_not_utf_8_is_named_too(folder):
    (folder / "data/reviews.jsonl").write_bytes(json.dumps(LINE, ensure_ascii=False).encode("cp949"))
    with pytest.raises(UserError, match=r"reviews\.jsonl, line 1: not JSON"):
        read_reviews(folder / "data/reviews.jsonl")


@pytest.mark.parametrize("key", ["id", "text_hash"])
def test_two_people_may_take_out_one_row(key, folder):
    lines = [LINE | {"id": f"row{n}", "text_hash": f"{n}" * 16} for n in range(3)]
    lines[2][key] = lines[0][key]
    write_lines(folder / "data/reviews.jsonl", *lines)
    assert len(read_reviews(folder / "data/reviews.jsonl")) == 3


@pytest.fixture
def corpus(folder, write_raw):
    """Four rows: the first two have one question, the first and the last one text."""
    raw = write_raw(["가?", "가?", "나?", "가"], outputs=["답", "다른 답", "답", "답."])
    raw.rename(folder / "data/raw.parquet")
    return folder


def test_the_command_adds_a_line_with_who_and_why_and_names_what_stays(corpus, capsys):
    (corpus / "data/reviews.jsonl").write_text('{"id": "gone",   "verdict": "out", "who": "이", "why": "낡음"}')
    assert review.main(["row0", "row2", "--reason", "틀린 답"]) == 0
    first, *added = (corpus / "data/reviews.jsonl").read_text(encoding="utf-8").splitlines()
    assert first == '{"id": "gone",   "verdict": "out", "who": "이", "why": "낡음"}'
    hashes = review_hashes(read_arrow(corpus / "data/raw.parquet", *READ))
    assert [json.loads(line) for line in added] == [
        {"id": row, "text_hash": hashes[n], "verdict": "out", "who": "김", "why": "틀린 답"}
        for row, n in (("row0", 0), ("row2", 2))
    ]
    out = capsys.readouterr().out
    assert "out: row0 [life] 가?" in out
    assert "1 rows have other answers to these questions, and stay: row1;" in out
    assert "2 lines added to data/reviews.jsonl; next: `dvc repro" in out


def test_the_same_text_is_not_reviewed_twice(corpus, capsys):
    assert review.main(["row0", "row3", "--reason", "틀린 답"]) == 0
    assert review.main(["row3", "--reason", "틀린 답"]) == 0
    assert "row3: 김 already took out these texts" in capsys.readouterr().out
    assert len(read_jsonl(corpus / "data/reviews.jsonl")) == 1


def test_an_unknown_id_adds_nothing_and_says_what_next(corpus, capsys):
    assert review.main(["row0", "nope", "--reason", "틀린 답"]) == 1
    assert "data/raw.parquet has no row nope, and nothing was added; `python -m tools.why" in capsys.readouterr().err
    assert read_jsonl(corpus / "data/reviews.jsonl") == []


def test_without_raw_or_a_name_the_command_says_what_to_run(corpus, capsys, monkeypatch):
    (corpus / "data/raw.parquet").unlink()
    assert review.main(["row0", "--reason", "틀린 답"]) == 1
    assert "data/raw.parquet: missing; run `dvc pull data/raw.parquet`" in capsys.readouterr().err
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    subprocess.run(["git", "config", "--unset", "user.name"], check=True)
    assert review.main(["row0", "--reason", "틀린 답"]) == 1
    assert "run `git config user.name NAME`" in capsys.readouterr().err


def test_without_a_reason_nothing_is_taken_out(corpus, capsys):
    for words in (["row0"], ["row0", "--reason", " "], ["--reason", "틀린 답"]):
        with pytest.raises(SystemExit):
            review.main(words)
    assert read_jsonl(corpus / "data/reviews.jsonl") == []


def test_a_review_reruns_no_score_and_the_summary_counts_it(project):
    row = read_table(project / "data/raw.parquet", "id")["id"][3]
    run(project, "python", "-m", "tools.review", row, "--reason", "틀린 답")
    assert ran(run(project, "dvc", "repro", "audit", *each("sample"))) == {"candidates", "audit", *each("sample")}
    for arm in ("spread", "random", "full"):
        assert row not in {one["id"] for one in read_jsonl(project / f"data/samples/{arm}.jsonl")}
    counts = json.loads((project / "data/audit.json").read_text())["reviews"]
    assert counts == {"lines": 1, "lines_without_row": 0, "rows_out": 1, "lost": []}


def test_two_branches_that_review_rows_merge_without_a_conflict(project):
    path = project / "data/reviews.jsonl"
    for branch, row in (("one", "row1"), ("two", "row2")):
        run(project, "git", "checkout", "-q", "-b", branch, "main")
        write_lines(path, LINE | {"id": row})
        commit(project, branch)
    run(project, "git", "merge", "-q", "one")
    assert {one.id for one in read_reviews(path)} == {"row1", "row2"}
    run(project, "git", "checkout", "-q", "main")
