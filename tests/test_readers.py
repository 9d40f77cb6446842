"""An instruction file gives the same rows in every format, and an unreadable row is kept as it was."""

import json
import unicodedata
from datetime import date
from decimal import Decimal

import pytest

from stages.lib.text.readers import read_records
from tests.corpus import parquet

ROWS = [
    {"instruction": "한라산의 높이는?", "output": "1947미터입니다."},
    {"instruction": "시를 써 줘", "output": "첫째 줄\n둘째 줄, 그리고 “끝”"},
]
CSV = (
    '"instruction","output"\r\n"한라산의 높이는?","1947미터입니다."\r\n"시를 써 줘","첫째 줄\n둘째 줄, 그리고 “끝”"\r\n'
)


FORMATS = {
    "jsonl": (".jsonl", "utf-8", "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()),
    "jsonl, escaped": (".jsonl", "utf-8", "\n".join(json.dumps(row) for row in ROWS).encode()),
    "jsonl, BOM and CRLF": (".jsonl", "utf-8", "\r\n".join(json.dumps(row) for row in ROWS).encode("utf-8-sig")),
    "json list": (".json", "utf-8", json.dumps(ROWS, ensure_ascii=False).encode()),
    "json by number, BOM": (".json", "utf-8", json.dumps(dict(enumerate(ROWS, 1))).encode("utf-8-sig")),
    "csv": (".csv", "utf-8", CSV.encode()),
    "csv, BOM": (".csv", "UTF_8", CSV.encode("utf-8-sig")),
    "csv, cp949": (".csv", "cp949", CSV.encode("cp949")),
    "parquet": (".parquet", "utf-8", parquet(ROWS)),
}


@pytest.fixture
def read(tmp_path):
    def run(suffix, data, encoding="utf-8"):
        path = tmp_path / f"life{suffix}"
        path.write_bytes(data)
        return list(read_records(path, encoding))

    return run


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(name, read):
    suffix, encoding, data = FORMATS[name]
    assert [record.values for record in read(suffix, data, encoding)] == ROWS


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1e"])
def test_only_a_newline_ends_a_json_line(separator, read):
    row = {"instruction": f"앞{separator}뒤", "output": "답"}
    records = read(".jsonl", json.dumps(row, ensure_ascii=False).encode() + b"\n")
    assert [record.values for record in records] == [row]


def test_a_csv_field_can_have_every_kind_of_line_end(read):
    text = "앞\u2028가운데\r뒤\x85끝"
    records = read(".csv", f'질문,답변\n"{text}",{text[:2]}\n'.encode())
    assert [record.values for record in records] == [{"질문": text, "답변": text[:2]}]


def test_lines_are_numbered_as_in_an_editor(read):
    data = b'{"a": "1"}\n\n{"a": "3"}\nbroken\n'
    assert [record.line for record in read(".jsonl", data)] == [1, 3, 4]


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (b'{"instruction": "cut', '{"instruction": "cut'),
        ("{'instruction': '따옴표'}".encode(), "{'instruction': '따옴표'}"),
        ('["목록"]'.encode(), '["목록"]'),
        (b'{"a": "\xff"}', '{"a": "\ufffd"}'),
        (b'{"a": "\\ud800"}', '{"a": "\\ud800"}'),
        (b"[" * 100_000, "[" * 100_000),
    ],
    ids=["cut", "single quotes", "not an object", "broken UTF-8", "lone surrogate", "too deep"],
)
def test_an_unreadable_line_is_kept_as_it_is(line, kept, read):
    records = read(".jsonl", line + b'\n{"a": "good"}\n')
    assert (records[0].values, records[0].raw) == (None, kept)
    assert records[1].values == {"a": "good"}


def test_a_csv_row_of_another_width_is_unreadable(read):
    records = read(".csv", "질문,답변\n하나,둘\n하나,둘,셋\n하나\n".encode())
    assert [record.values is None for record in records] == [False, True, True]
    assert records[1].raw == "하나,둘,셋"


def test_other_scalars_become_text_and_null_becomes_empty(read):
    data = b'{"number": 3, "share": 0.5, "null": null, "nan": NaN, "true": true}'
    values = read(".jsonl", data)[0].values
    assert values == {"number": "3", "share": "0.5", "null": "", "nan": "", "true": "true"}


def test_dates_and_decimals_in_parquet_become_text(read):
    data = parquet([{"day": date(2024, 3, 1), "price": Decimal("1.50")}])
    assert read(".parquet", data)[0].values == {"day": "2024-03-01", "price": "1.50"}


def test_a_list_and_an_object_stay_what_they_are(read):
    row = {"messages": [{"role": "user", "content": "안녕"}], "label": {"a": 1}}
    for suffix, data in ((".jsonl", json.dumps(row).encode()), (".parquet", parquet([row]))):
        assert read(suffix, data)[0].values == row


def test_a_null_in_parquet_is_empty(read):
    assert read(".parquet", parquet([{"a": "글", "b": None}]))[0].values == {"a": "글", "b": ""}


def test_reading_changes_no_character(read):
    text = f"  {unicodedata.normalize('NFD', '한글')}\t"
    assert read(".json", json.dumps([{"a": text}]).encode())[0].values == {"a": text}
