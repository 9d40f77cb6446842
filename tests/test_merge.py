"""Many sources become one table of clean rows, and every other row has a reason."""

import csv
import io
import json
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import merge
from stages.lib.core.errors import UserError
from tests.corpus import parquet

TEXTS = ["한라산의 높이는?", "시를 써 줘", "김치찌개 끓이는 법", "장보고는 누구인가요?", "와이파이가 느려요", "전세란?"]
NOISE = ["", " \n", "hello there", "12 + 34", "가나다 " * 80, unicodedata.normalize("NFD", TEXTS[0]), f" {TEXTS[1]}\n"]
TABLES = st.dictionaries(
    st.sampled_from(["life", "chat", "faq"]),
    st.lists(
        st.tuples(st.sampled_from(TEXTS + NOISE), st.sampled_from(["답", "다른 답", ""])), min_size=1, max_size=12
    ),
    min_size=1,
)
SWITCHES = {
    "empty": (False, True),
    "duplicate": (None, "normalised"),
    "max_characters": (None, 200),
    "min_korean": (None, 0.5),
    "min_korean_output": (None, 0.5),
    "foreign_script": (False, True),
    "broken_characters": (False, True),
}
NO_FILTER = {key: off for key, (off, _) in SWITCHES.items()}


def pairs(rows):
    return [{"instruction": instruction, "output": output} for instruction, output in rows]


def dropped_rows(merged):
    return list(zip(merged.dropped["source"], merged.dropped["line"], merged.dropped["reason"], strict=True))


KNOWLEDGE = {"1": {"question": "장보고는?", "answer": "청해진을 세웠습니다."}}
KULLM = {"id": "dolly_17", "instruction": "요약해 줘.", "input": "긴 글이다.", "output": "짧은 글이다."}
SCHEMAS = {
    "KoAlpaca": (
        ".jsonl",
        '{"instruction": "양파는 어떤 식물인가요?", "output": "백합과입니다.", "url": "https://example.com"}\n'.encode(),
        {"instruction": ["instruction"], "output": "output"},
        ("set", "양파는 어떤 식물인가요?", "백합과입니다."),
    ),
    "kullm-v2": (
        ".jsonl",
        json.dumps(KULLM).encode(),
        {"instruction": ["instruction", "input"], "output": "output", "source": "id"},
        ("dolly", "요약해 줘.\n긴 글이다.", "짧은 글이다."),
    ),
    "kullm-v2, no input": (
        ".jsonl",
        json.dumps(KULLM | {"input": ""}).encode(),
        {"instruction": ["instruction", "input"], "output": "output", "source": "id"},
        ("dolly", "요약해 줘.", "짧은 글이다."),
    ),
    "OIG": (
        ".json",
        json.dumps([{"user": "hi", "user_translated": "안녕?", "chip2_translated": "반가워요."}]).encode(),
        {"instruction": ["user_translated"], "output": "chip2_translated"},
        ("set", "안녕?", "반가워요."),
    ),
    "Korean columns": (
        ".csv",
        "번호,질문,답변\r\n1,예금이란?,맡긴 돈입니다.\r\n".encode("cp949"),
        {"instruction": ["질문"], "output": "답변"},
        ("set", "예금이란?", "맡긴 돈입니다."),
    ),
    "by number": (
        ".json",
        json.dumps(KNOWLEDGE, ensure_ascii=False).encode("utf-8-sig"),
        {"records": "[]", "instruction": ["question"], "output": "answer"},
        ("set", "장보고는?", "청해진을 세웠습니다."),
    ),
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_columns_of_known_sets_become_one_table(schema, run_merge):
    suffix, data, columns, expected = SCHEMAS[schema]
    raw = run_merge({"set": (suffix, data)}, columns={"set": columns}).raw
    assert [tuple(row) for row in raw[["source", "instruction", "output"]].to_numpy()] == [expected]


def test_text_is_normalised_to_nfc_and_stripped(run_merge):
    raw = run_merge({"life": pairs([(f"  {unicodedata.normalize('NFD', '한글이란?')}\n", "\u3000글자 ")])}).raw
    assert raw[["instruction", "output"]].to_numpy().tolist() == [["한글이란?", "글자"]]


FILTERS = {
    "empty": ({"empty": True}, [("한라산은?", ""), ("  ", "답")]),
    "too_long": ({"max_characters": 200}, [("가" * 150, "나" * 51)]),
    "not_korean": ({"min_korean": 0.5}, [("tell me more 한글", "답"), ("123456", "답"), ("ㅋㅋㅋ", "답")]),
    "output_not_korean": (
        {"min_korean_output": 0.5},
        [("비는 왜 와?", "Warm air rises and cools down."), ("눈은?", "雪是从云中落下的水。")],
    ),
    "foreign_script": ({"foreign_script": True}, [("비는 왜 와?", "구름が たくさん 모여서 와요.")]),
    "broken_characters": (
        {"broken_characters": True},
        [("비는 왜 \ufffd와?", "답"), ("비는 왜 와?", "\uf0b7 구름 때문")],
    ),
    "duplicate": ({"duplicate": "exact"}, [("시를 써 줘", "답"), (" 시를 써 줘", "답\n")]),
    "duplicate, normalised": ({"duplicate": "normalised"}, [("시를써줘!", "답"), ("“시를 써 줘”", "답.")]),
}


@pytest.mark.parametrize("reason", FILTERS)
def test_a_filter_drops_its_rows_and_when_off_keeps_them(reason, run_merge):
    on, bad = FILTERS[reason]
    files = {"life": pairs([("시를 써 줘", "답"), ("가" * 150, "나" * 50), ("한글 ha", "답"), *bad])}
    merged = run_merge(files, drop=NO_FILTER | on)
    assert dropped_rows(merged) == [("life", line, reason.split(",")[0]) for line in range(4, 4 + len(bad))]
    assert len(merged.raw) == 3
    merged = run_merge(files, drop=NO_FILTER)
    assert (len(merged.raw), len(merged.dropped)) == (3 + len(bad), 0)


def test_the_first_reason_that_applies_counts(run_merge):
    bad = [("", "a" * 300), ("x" * 300, "답"), ("hello", "답"), ("hello", "답")]
    merged = run_merge({"life": pairs([("시를 써 줘", "답"), *bad])})
    assert list(merged.dropped["reason"]) == ["empty", "too_long", "not_korean", "not_korean"]


def test_an_unreadable_row_is_dropped_as_it_was_and_has_no_id(run_merge, jsonl):
    data = jsonl(pairs([("시를 써 줘", "답")])) + b'{"instruction": "cut'
    dropped = run_merge({"life": (".jsonl", data)}, drop={"max_unreadable": 0.5}).dropped
    assert dropped["id"].isna().all()
    assert dropped[["line", "reason", "text"]].to_numpy().tolist() == [[2, "unreadable", '{"instruction": "cut']]


def test_of_two_duplicates_the_first_in_source_order_stays(run_merge):
    row = pairs([("시를 써 줘", "답")])
    for order in (["life", "chat"], ["chat", "life"]):
        merged = run_merge(dict.fromkeys(order, row))
        assert (list(merged.raw["source"]), dropped_rows(merged)) == (order[:1], [(order[1], 1, "duplicate")])


def test_another_answer_to_the_same_instruction_is_no_duplicate(run_merge):
    assert len(run_merge({"life": pairs([("시를 써 줘", "답"), ("시를 써 줘", "다른 답")])}).raw) == 2


def test_dropped_rows_keep_their_text(run_merge):
    text = run_merge({"life": pairs([("시를 써 줘", "답"), ("hello", "안녕")])}).dropped["text"]
    assert list(text) == ["hello\n\n안녕"]


def test_ids_depend_on_the_text_and_nothing_else(run_merge):
    files = {"life": pairs([("시를 써 줘", "답"), ("전세란?", "답")]), "chat": pairs([("시를 써 줘", "답")])}
    once = run_merge(files, drop=NO_FILTER).raw
    again = run_merge(dict(reversed(files.items())), drop=NO_FILTER).raw
    assert once["id"].is_unique
    assert set(once["id"]) == set(again["id"])
    # pinned: a change here changes every id that was ever written
    assert list(once["id"]) == ["494f47425437b69f", "537f1827ba69e06b", "6e2c900da748b6a0"]


@given(st.integers(1, 5), st.integers(1, 5))
def test_repeated_rows_have_their_own_ids(run_merge, once, again):
    row = {"id": "life_1", "instruction": "시를 써 줘", "output": "답"}
    files = {"life": [row] * once, "other": [row] * again}
    raw = run_merge(files, columns={"other": {"source": "id"}}, drop=NO_FILTER).raw
    assert set(raw["source"]) == {"life"}
    assert raw["id"].nunique() == once + again


@given(
    TABLES,
    st.fixed_dictionaries({key: st.sampled_from([off, on]) for key, (off, on) in SWITCHES.items()}),
    st.integers(0, 3),
)
def test_every_row_read_is_in_raw_or_held_out_or_dropped(run_merge, jsonl, tables, drop, broken):
    base = pairs([("기준이 되는 글", "답")])
    lines = {source: jsonl([*base, *pairs(rows)]) + b"broken\n" * broken for source, rows in tables.items()}
    files = {source: (".jsonl", content) for source, content in lines.items()}
    first = next(iter(files))
    merged = run_merge(
        files, drop=drop | {"max_unreadable": 1.0}, held_out={"sources": [first], "share": 0.3, "max_rows": 3}
    )
    parts = (merged.raw, merged.held_out, merged.dropped)
    written = Counter(source for part in parts for source in part["source"])
    assert written == {source: content.count(b"\n") for source, content in lines.items()}
    ids = [row_id for part in parts for row_id in part["id"].dropna()]
    assert len(ids) == len(set(ids)) == sum(written.values()) - broken * len(files)


@given(TABLES, st.sampled_from(sorted(TEXTS)), st.data())
def test_an_added_row_changes_no_id_and_no_order_of_the_others(run_merge, tables, text, data):
    files = {source: pairs([("기준이 되는 글", "답"), *rows]) for source, rows in tables.items()}
    before = run_merge(files, drop={"duplicate": None}).raw
    source = data.draw(st.sampled_from(sorted(files)))
    place = data.draw(st.integers(0, len(files[source])))
    more = files | {source: [*files[source][:place], *pairs([(text, "새로운 답")]), *files[source][place:]]}
    after = run_merge(more, drop={"duplicate": None}).raw
    assert after[after["output"] != "새로운 답"].reset_index(drop=True).equals(before)
    assert len(after) == len(before) + 1


def many(source, count):
    return pairs([(f"{source}에 관한 {number}번 질문", "답") for number in range(count)])


def test_a_share_of_the_instructions_is_held_out(run_merge):
    merged = run_merge(
        {"life": many("생활", 300), "chat": many("대화", 50)}, held_out={"sources": ["life"], "share": 0.2}
    )
    assert set(merged.held_out["source"]) == {"life"}
    assert 40 <= len(merged.held_out) <= 80


def test_a_drawn_instruction_takes_all_its_rows(run_merge):
    files = {
        "life": many("생활", 60),
        "chat": [row | {"output": f"{n}번째 답"} for row in many("생활", 60) for n in range(2)],
    }
    merged = run_merge(files, held_out={"sources": ["life"], "share": 0.3})
    assert not set(merged.held_out["instruction"]) & set(merged.raw["instruction"])
    assert Counter(merged.held_out["source"])["chat"] == 2 * Counter(merged.held_out["source"])["life"] > 0


@given(st.integers(0, 30), st.integers(0, 30), st.sampled_from([0.1, 0.5]))
def test_added_rows_move_no_other_row_in_or_out(run_merge, inside, outside, share):
    settings = {"sources": ["life"], "share": share}
    before = run_merge({"life": many("생활", 40), "chat": many("대화", 5)}, held_out=settings).held_out
    more = {"life": many("살림", inside) + many("생활", 40), "chat": many("대화", 5 + outside)}
    after = run_merge(more, held_out=settings).held_out
    assert list(after.loc[after["instruction"].str.startswith("생활"), "id"]) == list(before["id"])


@given(st.integers(0, 20), st.sampled_from([0.2, 1.0]))
def test_no_more_rows_are_held_out_than_allowed(run_merge, most, share):
    files = {"life": many("생활", 30), "chat": [*many("생활", 30), *many("대화", 3)]}
    held = run_merge(
        files,
        drop={"duplicate": None},
        held_out={"sources": ["life"], "share": share, "max_rows": most},
    ).held_out
    assert len(held) <= most
    assert share < 1 or len(held) == most // 2 * 2  # every instruction has two rows


def test_a_share_of_zero_holds_nothing_out(run_merge):
    merged = run_merge({"life": many("생활", 100)}, held_out={"sources": ["life"], "share": 0.0})
    assert (len(merged.raw), len(merged.held_out)) == (100, 0)
    assert (merged.folder / "held_out.jsonl").read_bytes() == b""


def test_another_seed_holds_other_rows_out(run_merge):
    files, settings = {"life": many("생활", 1000)}, {"sources": ["life"], "share": 0.2}
    one, other = (set(run_merge(files, held_out=settings | {"seed": seed}).held_out["id"]) for seed in (1, 2))
    assert 160 <= len(one) <= 240
    assert 0.1 <= len(one & other) / len(one) <= 0.3  # two independent draws share 0.2 of their rows


def test_a_source_name_can_contain_a_dot(run_merge):
    raw = run_merge({"alpaca": many("첫째", 2), "alpaca.v2": many("둘째", 2)}).raw
    assert list(raw["source"]) == ["alpaca"] * 2 + ["alpaca.v2"] * 2


def test_the_same_sources_give_the_same_bytes(run_merge):
    files, settings = {"life": [*many("생활", 20), *pairs([("hello", "답")])]}, {"sources": ["life"], "share": 0.2}
    one, other = (run_merge(files, held_out=settings).folder for _ in range(2))
    for name in ("raw.parquet", "held_out.jsonl", "dropped.parquet"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_the_size_of_a_chunk_changes_no_byte(run_merge, monkeypatch):
    files = {"life": [*many("생활", 20), *pairs([("hello", "답")])], "chat": many("대화", 7) + many("생활", 3)}
    settings = {"held_out": {"sources": ["life"], "share": 0.2}}
    whole = run_merge(files, **settings).folder
    monkeypatch.setattr(merge, "CHUNK", 3)
    for name in ("raw.parquet", "held_out.jsonl", "dropped.parquet"):
        assert (run_merge(files, **settings).folder / name).read_bytes() == (whole / name).read_bytes()


def test_a_newline_in_a_quoted_csv_field_stays(run_merge):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["instruction", "output"], ["시를 써 줘", "첫째 줄\n둘째 줄"]])
    raw = run_merge({"faq": (".csv", text.getvalue().encode("utf-8-sig"))}).raw
    assert list(raw["output"]) == ["첫째 줄\n둘째 줄"]


def test_an_instruction_with_too_many_rows_is_skipped_for_later_ones(run_merge):
    often = pairs([("자주 묻는 질문입니다", f"답 {n}") for n in range(60)])
    for seed in range(8):
        held_out = {"sources": ["life"], "share": 0.5, "max_rows": 40, "seed": seed}
        merged = run_merge({"life": [*often, *many("생활", 200)]}, held_out=held_out)
        assert len(merged.held_out) == 40


def test_a_source_called_all_stops_the_stage(run_merge):
    with pytest.raises(UserError, match="called `all`"):
        run_merge({"all": many("생활", 3)})


CHAT = [{"role": "user", "content": "시를 써 줘"}, {"role": "assistant", "content": "답"}]
NOT_TEXT = {
    "messages": (CHAT, r"got a list: \[\{'role': 'user', 'content': '시를 써 줘'"),
    "an object": ({"text": "시"}, "got an object: {'text': '시'}"),
    "bytes": (b"\x89PNG", r"got bytes: b'\\x89PNG'"),
}


@pytest.mark.parametrize("what", NOT_TEXT)
@pytest.mark.parametrize("column", ["instruction", "output"])
def test_a_column_that_is_not_text_stops_the_stage_and_says_how_to_map_it(what, column, run_merge, jsonl):
    value, got = NOT_TEXT[what]
    rows = [{"instruction": "질문", "output": "답"} | {column: value} for _ in range(3)]
    files = {".parquet": parquet(rows)} if what == "bytes" else {".parquet": parquet(rows), ".jsonl": jsonl(rows)}
    for suffix, data in files.items():
        message = rf"life{suffix}, row 1: expected text in the column {column}, {got}.*life in merge\.sources.*`turns`"
        with pytest.raises(UserError, match=message):
            run_merge({"life": (suffix, data)}, drop={"max_unreadable": 1.0})


def test_a_list_in_a_single_line_stops_with_its_number_and_one_in_another_column_does_not(run_merge, jsonl):
    good, other = (
        {"instruction": "질문", "output": "답"},
        {"instruction": "시를 써 줘", "output": "답", "messages": CHAT},
    )
    assert len(run_merge({"life": [good, other]}).raw) == 2
    with pytest.raises(UserError, match=r"life\.jsonl, row 3: expected text in the column output"):
        run_merge({"life": [good, other, good | {"output": CHAT}]})


def test_a_conversation_that_is_not_a_row_is_dropped_with_its_file_and_reason(run_merge):
    turns = {"path": "messages", "role": "role", "text": "content", "roles": {"user": "user", "assistant": "assistant"}}
    columns = {"chat": {"instruction": [], "output": None, "turns": turns}}
    rows = [{"messages": CHAT}, {"messages": []}, {"messages": CHAT[:1]}, {"messages": CHAT[::-1]}]
    merged = run_merge({"chat": rows}, columns=columns)
    assert merged.raw[["instruction", "output"]].to_numpy().tolist() == [["시를 써 줘", "답"]]
    assert dropped_rows(merged) == [("chat", 2, "no_turns"), ("chat", 3, "no_answer"), ("chat", 4, "turn_order")]
    assert set(merged.dropped["file"]) == {"chat.jsonl"}
    assert merged.dropped["id"].isna().all()


def test_numbers_are_text(run_merge):
    raw = run_merge({"life": [{"instruction": "여섯 곱하기 일곱은?", "output": 42}]}).raw
    assert list(raw["output"]) == ["42"]


def test_a_column_that_is_twice_in_a_csv_header_stops_the_stage(run_merge):
    with pytest.raises(UserError, match="the header has the column output more than once"):
        run_merge({"life": (".csv", "instruction,output,output\n질문,답,답\n".encode())})


def test_a_final_answer_is_kept_beside_the_output_and_changes_no_id(run_merge):
    rows = [{"instruction": "사과 세 개씩 네 묶음은 몇 개인가요?", "output": "3*4", "n": 12}]
    fields = {"output": "{output}\n정답: {n}"}
    with_final = run_merge({"sums": rows}, {"sums": fields | {"final": "정답: {n}"}}).raw
    assert with_final["final"].tolist() == ["정답: 12"]
    assert with_final["output"].tolist() == ["3*4\n정답: 12"]
    without = run_merge({"sums": rows}, {"sums": fields}).raw
    assert without["final"].isna().all()
    assert without["id"].tolist() == with_final["id"].tolist()


def test_a_held_out_row_keeps_its_final_answer(run_merge):
    rows = [{"instruction": f"{n} 더하기 {n}은 몇인가요?", "output": f"정답: {2 * n}"} for n in range(4)]
    all_of_them = {"sources": ["sums"], "share": 1.0, "max_rows": 3, "seed": 1}
    held = run_merge({"sums": rows}, {"sums": {"final": "output"}}, held_out=all_of_them).held_out
    assert len(held) == 3
    assert held["final"].tolist() == held["output"].tolist()
