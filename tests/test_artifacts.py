"""Files that stages hand to each other are whole or absent, equal for equal content, and checked when read."""

import json
import math
import re
from contextlib import suppress

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stages.lib.core.artifacts import (
    atomic,
    read_json,
    read_jsonl,
    read_table,
    require_same_rows,
    write_json,
    write_jsonl,
    write_table,
)
from stages.lib.core.errors import UserError
from stages.lib.text.hashing import text_hash, uniform_hash

SCHEMA = pa.schema([("id", pa.string()), ("ppl", pa.float64())])
COLUMNS = {"id": [f"한글{n}" for n in range(300)], "ppl": [n / 7 for n in range(300)]}


def files(folder):
    return sorted(path.name for path in folder.rglob("*"))


def break_off(path, *names):
    """Write a file, or a folder of these files, and fail before the end."""
    with atomic(path) as scratch:
        if names:
            scratch.mkdir()
        for part in [scratch / name for name in names] or [scratch]:
            part.write_text("half")
        raise ZeroDivisionError


def test_an_exception_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        break_off(tmp_path / "new" / "a.txt")
    assert files(tmp_path) == ["new"]


def test_an_exception_keeps_the_file_that_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        break_off(path)
    assert (files(tmp_path), path.read_text()) == (["a.txt"], "old")


def test_an_exception_keeps_the_folder_that_was_there(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(ZeroDivisionError):
        break_off(folder, "half")
    assert files(tmp_path) == ["model", "old"]


def test_a_folder_replaces_the_whole_folder_before_it(tmp_path):
    for name in ("one", "two"):
        with atomic(tmp_path / "model") as scratch:
            scratch.mkdir()
            (scratch / name).touch()
    assert files(tmp_path) == ["model", "two"]


def test_what_a_killed_run_left_is_in_nobodys_way(tmp_path):
    with atomic(tmp_path / "model") as scratch:
        scratch.mkdir()
        killed = scratch
    killed.mkdir()
    (killed / "half").touch()
    with atomic(tmp_path / "model") as scratch:
        scratch.mkdir()
    assert files(tmp_path) == ["model"]


def test_nothing_is_written_through_a_link_into_the_cache(tmp_path):
    cached, path = tmp_path / "cached", tmp_path / "a.json"
    cached.write_text("cached")
    path.symlink_to(cached)
    write_json(path, {})
    assert cached.read_text() == "cached"
    assert not path.is_symlink()


def test_a_table_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(pa.ArrowException):
        write_table(tmp_path / "a.parquet", COLUMNS | {"ppl": ["글"] * 300}, SCHEMA)
    with pytest.raises(TypeError):
        write_jsonl(tmp_path / "a.jsonl", iter([{"a": 1}, {"b": object()}]))
    assert files(tmp_path) == []


def test_equal_content_gives_equal_bytes(tmp_path):
    frame = pd.DataFrame(COLUMNS).iloc[::-1].iloc[::-1].assign(extra=1)[["ppl", "extra", "id"]]
    write_table(tmp_path / "a.parquet", COLUMNS, SCHEMA)
    write_table(tmp_path / "b.parquet", frame, SCHEMA)
    write_json(tmp_path / "a.json", {"가": 1.5, "b": {"y": [1, 2], "x": None}})
    write_json(tmp_path / "b.json", {"b": {"x": None, "y": [1, 2]}, "가": 1.5})
    for suffix in ("parquet", "json"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_a_table_comes_back_as_it_was_written(tmp_path):
    write_table(tmp_path / "a.parquet", COLUMNS | {"ppl": pd.Series([math.nan, *COLUMNS["ppl"][1:]])}, SCHEMA)
    assert pq.read_table(tmp_path / "a.parquet")["ppl"].null_count == 1
    table = read_table(tmp_path / "a.parquet")
    assert list(table.columns) == ["id", "ppl"]
    assert list(table["ppl"][1:]) == COLUMNS["ppl"][1:]
    assert list(read_table(tmp_path / "a.parquet", "ppl").columns) == ["ppl"]


def test_no_flipped_byte_of_a_page_is_read_as_data(tmp_path):
    path = tmp_path / "a.parquet"
    write_table(path, COLUMNS, SCHEMA)
    good, want, misread = path.read_bytes(), read_table(path), []
    group = pq.read_metadata(path).row_group(0)
    pages = [group.column(n) for n in range(2)]
    spans = [(page.dictionary_page_offset or page.data_page_offset, page.total_compressed_size) for page in pages]
    for place in [place for start, size in spans for place in range(start, start + size, 5)]:
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        with suppress(UserError):
            misread += [] if read_table(path).equals(want) else [place]
    assert misread == []


def test_a_table_that_is_not_there_or_cut_stops_by_name(tmp_path):
    path = tmp_path / "a.parquet"
    with pytest.raises(UserError, match=r"a\.parquet: not readable.*dvc repro"):
        read_table(path)
    write_table(path, COLUMNS, SCHEMA)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"a\.parquet: not readable.*dvc repro"):
        read_table(path)


@pytest.mark.parametrize("number", [math.nan, math.inf, np.float64("-inf")])
def test_json_of_no_finite_number_is_refused_by_key(number, tmp_path):
    with pytest.raises(UserError, match=r"a\.json: arms: spread: loss is (nan|inf|-inf)"):
        write_json(tmp_path / "a.json", {"arms": {"spread": {"loss": number}, "random": {"loss": 1.0}}})
    with pytest.raises(UserError, match=r"a\.json: losses: step is"):
        write_json(tmp_path / "a.json", {"losses": [{"step": 1.0}, {"step": number}]})
    assert files(tmp_path) == []


def test_json_is_sorted_text_that_ends_in_a_newline(tmp_path):
    write_json(tmp_path / "a.json", {"나": 1, "가": {"b": 2, "a": 0.1}})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert "가" in text
    assert list(json.loads(text)) == ["가", "나"]
    assert read_json(tmp_path / "a.json") == {"나": 1, "가": {"b": 2, "a": 0.1}}


@example([{"a": "앞\u2028가운데\r\n뒤\x85끝"}])
@given(st.lists(st.fixed_dictionaries({"a": st.text(st.characters(exclude_categories=["Cs"]))}), max_size=5))
def test_json_lines_come_back_whatever_they_hold(new_folder, rows):
    path = new_folder() / "a.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows
    assert path.read_bytes().count(b"\n") == len(rows)


def test_rows_of_different_merges_are_told_apart():
    require_same_rows(raw=pd.Series(["a", "b"]), ppl=["a", "b"])
    with pytest.raises(UserError, match=r"clusters has c in row 1, not b as in raw: .*dvc repro"):
        require_same_rows(raw=["a", "b"], ppl=["a", "b"], clusters=["a", "c"])
    with pytest.raises(UserError, match=r"ppl has 1 rows, not 2 as in raw"):
        require_same_rows(raw=["a", "b"], ppl=["a"])
    with pytest.raises(UserError, match=r"ppl has 3 rows, not 2 as in raw"):
        require_same_rows(raw=["a", "b"], ppl=["a", "b", "c"])


def test_the_parts_of_a_table_leave_no_mark(tmp_path):
    texts, schema = pa.array([f"{n} 한글 " * 20 for n in range(20_000)]), pa.schema([("text", pa.string())])
    parts = pa.chunked_array([texts[:7_001], texts[7_001:]])
    for name, column in (("whole", texts), ("parts", parts)):
        write_table(tmp_path / name, {"text": column}, schema)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()


def test_a_hash_knows_where_one_text_ends():
    assert text_hash("ab", "c") != text_hash("a", "bc") != text_hash("abc")
    assert re.fullmatch("[0-9a-f]{16}", text_hash("한글"))


@given(st.lists(st.text(), unique=True, max_size=20), st.integers())
def test_a_die_is_the_rows_own(texts, seed):
    thrown = uniform_hash(texts, "draw", seed)
    assert ((thrown >= 0) & (thrown < 1)).all()
    assert [uniform_hash([text], "draw", seed)[0] for text in texts] == list(thrown)


def test_dice_are_even_and_differ_by_key():
    texts = [str(number) for number in range(4000)]
    one, other = uniform_hash(texts, "draw", 1), uniform_hash(texts, "draw", 2)
    assert np.histogram(one, 10, (0, 1))[0] == pytest.approx(np.full(10, 400), abs=80)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.06


def test_a_missing_column_is_one_line_that_names_it_and_what_is_there(tmp_path):
    path = tmp_path / "ppl.parquet"
    write_table(path, {"id": ["a"], "ppl": [1.0]}, pa.schema([("id", pa.string()), ("ppl", pa.float64())]))
    with pytest.raises(UserError) as stop:
        read_table(path, "id", "instruction")
    assert str(stop.value) == f"{path}: no column instruction; it has id, ppl; is it the wrong file?"
