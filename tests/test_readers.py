"""A file gives the same rows in every format and container, and an unreadable row is kept as it was."""

import json
import random
import unicodedata
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from stages.lib.core.errors import UserError
from stages.lib.reading.entry import MergeSource
from stages.lib.reading.mapping import Field, Place
from stages.lib.reading.rows import read_source
from tests.corpus import parquet
from tests.layouts import TITLE, table, tar_of_parts, workbook, zip_in_cp949, zipped

ROWS = [
    {"instruction": "한라산의 높이는?", "output": "1947미터입니다."},
    {"instruction": "시를 써 줘", "output": "첫째 줄\n둘째 줄, 그리고 “끝”"},
]
CELLS = [list(row.values()) for row in ROWS]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()
KEYED = json.dumps(dict(enumerate(ROWS, 1))).encode("utf-8-sig")
CSV = table(["instruction", "output"], CELLS)
XLSX = workbook(["instruction", "output"], CELLS)
IN_CP949 = table(["instruction", "output"], [[cell.replace("“끝”", "끝") for cell in row] for row in CELLS], "cp949")
ZIP = zipped({"a/rows.jsonl": LINES})
FILES = {
    "JSON Lines": LINES,
    "JSON Lines, escaped": "\n".join(json.dumps(row) for row in ROWS).encode(),
    "JSON Lines, BOM and CRLF": "\r\n".join(json.dumps(row) for row in ROWS).encode("utf-8-sig"),
    "objects with a comma after each": LINES.replace(b"}\n", b"},\n") + b",",
    "a JSON array": json.dumps(ROWS, ensure_ascii=False).encode(),
    "a JSON array, a row a line": b"[\n" + LINES.replace(b"}\n", b"},\n") + b"\n]\n",
    "CSV": CSV,
    "CSV, BOM": table(["instruction", "output"], CELLS, "utf-8-sig"),
    "TSV": table(["instruction", "output"], CELLS, separator="\t"),
    "Parquet": parquet(ROWS),
    "a workbook": XLSX,
    "a zip": ZIP,
    "a zip with cp949 names": zip_in_cp949({"라벨/행.jsonl": LINES}),
    "a workbook in a zip": zipped({"행.xlsx": XLSX}),
    "Parquet in a zip in a zip": zipped({"a.zip": zipped({"b.parquet": parquet(ROWS)})}),
    "a tar of parts": tar_of_parts("TL.zip", ZIP, [len(ZIP) * cut // 12 for cut in range(1, 12)]),
}


@pytest.fixture
def read(tmp_path):
    """Read a source that has these files; return its rows."""

    def run(content, **entry):
        contents = content if isinstance(content, dict) else {"life.dat": content}
        for name, content in contents.items():
            path = tmp_path / "life" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        entry = entry if "turns" in entry else {"instruction": ["instruction"], "output": "output"} | entry
        return list(read_source(tmp_path / "life", MergeSource.model_validate({"name": "life"} | entry)))

    return run


@pytest.fixture
def complaint(read):
    def run(content, **entry):
        with pytest.raises(UserError) as stop:
            read(content, **entry)
        assert "\n" not in str(stop.value)
        return str(stop.value)

    return run


def pairs(rows):
    return [(row.instruction, row.output) for row in rows]


@pytest.mark.parametrize("name", FILES)
def test_every_format_and_container_gives_the_same_rows_whatever_its_ending(name, read):
    assert pairs(read(FILES[name])) == [tuple(row.values()) for row in ROWS]


def test_text_in_cp949_and_an_object_of_objects_are_read_too(read):
    assert pairs(read(IN_CP949))[0] == tuple(ROWS[0].values())
    assert pairs(read(KEYED, records="[]")) == [tuple(row.values()) for row in ROWS]


def test_files_of_a_folder_are_read_in_the_order_of_their_names_and_keep_them(read):
    rows = read({"b.jsonl": LINES, "a/다.zip": ZIP, "a/.DS_Store": b"\0", "~$b.xlsx": b"\0"})
    assert [(row.file, row.line) for row in rows] == [
        *(("a/다.zip/a/rows.jsonl", line) for line in (1, 2)),
        *(("b.jsonl", line) for line in (1, 2)),
    ]


def test_names_of_files_choose_which_are_read(read, complaint):
    files = {"all.zip": zipped({"[라벨]/SFT 1.json": LINES, "[라벨]/RM.json": b"no rows"})}
    assert len(read(files, files="*[라벨]/SFT*")) == 2
    assert "no file matches `files: *DPO*` of life in merge.sources; it has all.zip/" in complaint(files, files="*DPO*")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1e"])
def test_only_a_newline_ends_a_json_line(separator, read):
    row = {"instruction": f"앞{separator}뒤", "output": "답"}
    assert pairs(read(json.dumps(row, ensure_ascii=False).encode() + b"\n" + LINES))[0] == (f"앞{separator}뒤", "답")


def test_a_csv_field_can_have_every_kind_of_line_end(read):
    text = "앞\u2028가운데\r뒤\x85끝"
    assert pairs(read(f'instruction,output\n"{text}",{text[:2]}\n'.encode())) == [(text, text[:1])]


def test_lines_are_numbered_as_in_an_editor(read):
    rows = read(b'{"instruction": "1", "output": "1"}\n\n{"instruction": "3", "output": "3"}\nbroken\n')
    assert [row.line for row in rows] == [1, 3, 4]


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (b'{"instruction": "cut', '{"instruction": "cut'),
        ("{'instruction': '따옴표'}".encode(), "{'instruction': '따옴표'}"),
        ('["목록"]'.encode(), '["목록"]'),
        ('{"instruction": "가'.encode() + b'\xff"}', '{"instruction": "가\ufffd"}'),
        (b'{"instruction": "\\ud800"}', '{"instruction": "\\ud800"}'),
        (b"null", "null"),
        (b"[" * 100_000, "[" * 100_000),
    ],
    ids=["cut", "single quotes", "not an object", "broken UTF-8", "lone surrogate", "null", "too deep"],
)
def test_an_unreadable_line_is_kept_as_it_is(line, kept, read):
    first, second, *_ = read(LINES[: LINES.index(b"\n") + 1] + line + b"\n" + LINES)[1:3]
    assert (first.reason, first.original) == ("unreadable", kept)
    assert second.reason is None


def test_a_csv_row_of_another_width_is_unreadable(read):
    rows = read("instruction,output\n하나,둘\n하나,둘,셋\n하나\n".encode())
    assert [row.reason for row in rows] == [None, "unreadable", "unreadable"]
    assert rows[1].original == "하나,둘,셋"


def test_other_scalars_become_text_and_missing_values_are_empty(read):
    outputs = [3, 0.5, None, float("nan"), True, "nan", "난 nan"]
    rows = read("\n".join(json.dumps({"instruction": "?", "output": one}) for one in outputs).encode())
    assert [row.output for row in rows] == ["3", "0.5", "", "", "true", "", "난 nan"]
    rows = read(workbook(["instruction", "output"], [["?", None], ["?", 3], ["?", date(2024, 3, 1)]]))
    assert [row.output for row in rows] == ["", "3", "2024-03-01 00:00:00"]


def test_dates_and_decimals_in_parquet_become_text(read):
    (row,) = read(parquet([{"instruction": date(2024, 3, 1), "output": Decimal("1.50")}]))
    assert (row.instruction, row.output) == ("2024-03-01", "1.50")


def test_keys_in_nfd_or_with_spaces_around_them_are_the_same_keys(read):
    nfd = unicodedata.normalize("NFD", "질문")
    rows = read(json.dumps([{nfd: unicodedata.normalize("NFD", " 한글? "), "답변 ": "답"}]).encode(), **MAPPED)
    assert pairs(rows) == [("한글?", "답")]


MAPPED = {"instruction": ["질문"], "output": "답변"}
RECORD = {
    "q": "물음",
    "none": "",
    "a": {"b": "안"},
    "a.b": "점",
    "list": ["하나", "", "둘"],
    "of": [{"t": "첫째", "n": "1"}, {"t": "둘째", "n": "2"}],
    "json": '{"t": ["글"]}',
    "질문(요청)": "괄호",
}
FIELDS = {
    "q": "물음",
    "a.b": "안",
    '"a.b"': "점",
    "list[]": "하나\n둘",
    "list[0]": "하나",
    "list[-1]": "둘",
    "list[-9]": "",
    "list[7]": "",
    "of[].t": "첫째\n둘째",
    "of[-1].t": "둘째",
    "json.t[0]": "글",
    "질문(요청)": "괄호",
    "none | missing | q": "물음",
    "{q}\n\n정답: {a.b}": "물음\n\n정답: 안",
    "{q}: {none} | a.b": "안",
    "^context": "바깥",
    "^^title": "더 바깥",
    "^^^title": "",
}


@pytest.mark.parametrize("written", FIELDS)
def test_a_field_says_where_its_text_is(written):
    place = Place(RECORD, ({"context": "바깥"}, {"title": "더 바깥"}))
    assert Field(written).text(place) == FIELDS[written]


@pytest.mark.parametrize("written", ["", "a..b", "a[", "a[x]", "a|b", "{}", "a[0]]", '"a', "^"])
def test_text_that_is_not_a_field_is_an_error(written):
    with pytest.raises(ValueError, match=r"docs/mapping\.md"):
        Field(written)


def messages(*said, role="role", text="content"):
    return [{role: who, text: what} for who, what in said]


ROLES = {"user": "user", "gpt": "assistant", "system": "system", "tool": "tool"}
LONG = messages(("user", "하나"), ("gpt", "둘"), ("user", "셋"), ("gpt", "넷"))
TURNS = {"path": "messages", "role": "role", "text": "content", "roles": ROLES}


def test_turns_are_kept_unless_they_are_one_question_and_its_answer(read):
    data = json.dumps([{"messages": LONG}, {"messages": LONG[:2]}]).encode()
    long, short = read(data, turns=TURNS)
    assert (long.instruction, long.output) == ("하나", "넷")
    assert long.turns == [("user", "하나"), ("assistant", "둘"), ("user", "셋"), ("assistant", "넷")]
    assert (short.instruction, short.output, short.turns) == ("하나", "둘", None)


def test_a_system_text_makes_turns_of_a_pair(read):
    (row,) = read(json.dumps([{"instruction": "질문", "output": "답", "s": "너는 비서다."}]).encode(), system="s")
    assert row.turns == [("system", "너는 비서다."), ("user", "질문"), ("assistant", "답")]


def test_without_roles_the_first_to_speak_is_the_user(read):
    said = [messages(("SD1", "하나"), ("SD1", "둘"), ("SD2", "셋")), messages(("SD9", "가"), ("SD1", "나"))]
    turns = {key: value for key, value in TURNS.items() if key != "roles"}
    assert pairs(read(json.dumps([{"messages": one} for one in said]).encode(), turns=turns)) == [
        ("하나\n둘", "셋"),
        ("가", "나"),
    ]


NO_ROWS = {
    "no_turns": {"messages": []},
    "no_turns, because they are text": {"messages": "안녕하세요"},
    "speakers": {"messages": messages(("a", "하나"), ("b", "둘"), ("c", "셋"))},
    "empty": {"messages": messages(("a", "하나"), ("b", ""))},
    "no_answer": {"messages": messages(("a", "하나"))},
}


@pytest.mark.parametrize("name", NO_ROWS)
def test_a_record_that_is_not_a_conversation_has_its_reason(name, read):
    turns = {"path": "messages", "role": "role", "text": "content"}
    good = {"messages": messages(("a", "하나"), ("b", "둘"))}
    bad, _ = read(json.dumps([NO_ROWS[name], good]).encode(), turns=turns)
    assert bad.reason == name.partition(",")[0]
    assert bad.original


def test_markers_divide_a_text_and_what_is_before_them_has_no_role(read):
    texts = ["Q: 하나\n보기 A: 둘\nA: 셋", "인사말\nQ: 하나\nA: 둘", "표지가 없는 글"]
    turns = {"path": "text", "roles": {"Q:": "user", "A:": "assistant"}}
    rows = read(json.dumps([{"text": text} for text in texts]).encode(), turns=turns)
    assert pairs(rows)[0] == ("하나\n보기 A: 둘", "셋")
    assert [row.reason for row in rows] == [None, "no_role", "no_turns"]


def test_a_record_without_the_group_it_belongs_to_has_its_reason(read):
    rows = [
        {"id": "1", "who": "a", "text": "하나"},
        {"id": "", "who": "b", "text": "둘"},
        {"id": "1", "who": "b", "text": "셋"},
    ]
    turns, group = {"role": "who", "text": "text"}, {"by": "id"}
    found = read(json.dumps(rows).encode(), turns=turns, group=group)
    assert [(row.reason, row.instruction, row.output) for row in found] == [("no_group", "", ""), (None, "하나", "셋")]


def test_a_row_of_a_file_without_records_has_its_reason(read):
    rows = read(json.dumps([{"qas": ROWS}, {"title": "빈 글"}]).encode(), records="qas[]")
    assert [row.reason for row in rows] == [None, None, "no_records"]
    assert json.loads(rows[-1].original) == {"title": "빈 글"}


def test_lines_of_kakaotalk_that_no_user_wrote_are_not_messages(read):
    chat = (
        f"{TITLE}2026. 10. 2. 오후 3:15, 이름/#: 님 : 점심?\n둘째 줄\n2026. 10. 2. 오후 3:16: 나무님이 들어왔습니다.\n"
    )
    chat += "2026년 10월 2일 금요일\n2026. 10. 2. 15:17, 나 : 사진\n"
    (row,) = read(chat.encode(), turns={"role": "user", "text": "message"}, group={"by": "date"})
    assert (row.instruction, row.output) == ("점심?\n둘째 줄", "사진")


def test_a_broken_file_among_others_is_one_unreadable_row(read):
    rows = read(
        {"1.json": json.dumps(ROWS[0]).encode(), "2.json": b'{"id": (x)}', "3.json": json.dumps(ROWS[1]).encode()}
    )
    assert [(row.file, row.reason) for row in rows] == [("1.json", None), ("2.json", "unreadable"), ("3.json", None)]
    assert rows[1].original.startswith("Expecting value")


def claiming(size, content):
    """Return a zip that claims that its file unpacks to this size, as a zip bomb does."""
    place = content.index(b"PK\x01\x02") + 24
    return content[:place] + size.to_bytes(4, "little") + content[place + 4 :]


def password(content):
    """Return a zip that says that its first file is encrypted."""
    content = bytearray(content)
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


PARTS = tar_of_parts("TL.zip", ZIP, [100, 200], lost=100)
DEEP = {"instruction": [{"a": 1}], "output": "답"}
BAD = {
    "a path without records": (
        KEYED,
        {"records": "data[]"},
        ["life: no records at `records: data[]` of life in merge.sources", 'life.dat has {"1": {'],
    ),
    "a ragged table": (b'instruction,output\n"a,b\n', {}, ["life.dat: line 2 is not CSV", "unexpected end of data"]),
    "a column that is twice": (b"a,b,b\n1,2,3\n", {}, ["life.dat: the header has the column b more than once"]),
    "a zip bomb": (claiming(2**28, ZIP), {}, ["268,435,456 bytes", "zip bomb", "unpack it"]),
    "a bomb in a bomb": (
        zipped({"a.zip": claiming(2**28, ZIP)}),
        {},
        ["life.dat/a.zip: a zip that unpacks", "zip bomb"],
    ),
    "archives in archives": (
        zipped({"a.zip": zipped({"a.zip": zipped({"a.zip": ZIP})})}),
        {},
        ["a.zip/a.zip/a.zip: archives are nested 4 deep"],
    ),
    "a password": (password(ZIP), {}, ["life.dat: a/rows.jsonl in it needs a password"]),
    "a part is missing": (PARTS, {}, ["TL.zip: a part is missing before .part200", "there are .part0, .part200"]),
    "the last part is missing": (
        tar_of_parts("TL.zip", ZIP[:-9], [100]),
        {},
        ["TL.zip: a zip that is cut", "last part"],
    ),
    "gzip": (b"\x1f\x8b\x08\x00", {}, ["life.dat: packed with gzip; unpack it"]),
    "an old workbook": (b"\xd0\xcf\x11\xe0" + bytes(600), {}, ["an old .xls, or a workbook with a password"]),
    "a damaged workbook": (XLSX[:900] + bytes(500) + XLSX[1400:], {}, ["life.dat: "]),
    "a workbook without sheets": (zipped({"xl/workbook.xml": b"<a"}), {}, ["life.dat: not readable as .xlsx"]),
    "a damaged table": (b"PAR1 PAR1", {}, ["life.dat: "]),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\x00", {}, ["life.dat: neither JSON, a table"]),
    "no encoding": (
        b"a,b\n\xff\xff,1\n",
        {},
        ["life.dat: byte 4 is not utf-8 and byte 4 is not cp949; state its `encoding`"],
    ),
    "plain text": ("그냥 글입니다.".encode(), {}, ["life.dat: neither JSON, a table", "그냥 글입니다."]),
    "another encoding": (IN_CP949, {"encoding": "utf-8"}, ["life.dat: byte 20 is not utf-8", "merge.sources"]),
    "a broken character": (CSV.replace("써".encode(), b"\xec\x8d"), {}, ["life.dat: byte", "is not utf-8"]),
    "an encoding that is none": (CSV, {"encoding": "cp94"}, ["unknown encoding: cp94"]),
    "a column is missing": (CSV, {"output": "정답"}, ["no column 정답; it has instruction, output; see life in merge"]),
    "a point in a name": (b"instruction,a.b\n1,2\n", {"output": "a.b"}, ["no column a.b; it has a.b", "needs quotes"]),
    "an object": (
        json.dumps([DEEP]).encode(),
        {},
        ["row 1: expected text in the column instruction, got a list", "`turns`"],
    ),
    "an unknown role": (
        json.dumps([{"messages": LONG[:2]}, {"messages": messages(("bing", "하나"))}]).encode(),
        {"turns": TURNS},
        ["life.dat, row 2: the role 'bing' is not in turns.roles of life", "which has user, gpt", "add it there"],
    ),
    "a number of order that is none": (
        b"id,n,text\n1,a,b\n",
        {"turns": {"text": "text"}, "group": {"by": "id", "order": "n"}},
        ["row 1: the group.order of life in merge.sources must be a number, got 'a'"],
    ),
    "no rows": (b"[]", {}, ["life: no rows"]),
    "an empty file": (b"\n", {}, ["life: no rows"]),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_named_in_one_message(name, complaint):
    content, entry, words = BAD[name]
    message = complaint(content, **entry)
    for word in words:
        assert word in message


def damaged(content, rng):
    """Return content with bytes changed, cut out, repeated or added."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 20])):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice([1, 2, 40]))
        piece = content[start:end]
        noise = bytes(rng.randrange(256) for _ in piece)
        content[start:end] = rng.choice([noise, b"", piece * 2, b'"', b"[", "가".encode("cp949"), bytes(len(piece))])
    return bytes(content)


ENTRIES = [
    {},
    {"records": "[]"},
    {"turns": {"path": "output"}},
    {"turns": {"text": "output"}, "group": {"by": "instruction"}},
]


def open_files():
    return len(list(Path("/dev/fd").iterdir()))


def test_a_thousand_damaged_files_give_rows_or_one_message_and_leave_nothing_open(read, tmp_path):
    rng, opened, messages = random.Random(1), open_files(), []
    for number in range(1000):
        content = damaged(FILES[rng.choice(sorted(FILES))], rng)
        try:
            rows = read(content, **ENTRIES[number % len(ENTRIES)])
        except UserError as error:
            messages.append(str(error))
        else:
            "".join(f"{row.instruction}{row.output}{row.original}" for row in rows).encode()
    assert not [message for message in messages if "\n" in message or "life" not in message]
    assert 500 < len(messages) < 900
    assert [path.name for path in tmp_path.rglob("*")] == ["life", "life.dat"]
    assert open_files() <= opened + 1
