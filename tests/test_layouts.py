"""The entries that `tools.look` proposes read every row of files in the layouts of published sets."""

import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages import fetch
from stages.lib.reading.entry import MergeSource
from stages.lib.reading.mapping import Field, Place
from stages.lib.reading.rows import read_source
from tests.layouts import LAYOUTS, PAIRS, as_json
from tests.project import ROOT
from tools import look


def proposed(path):
    """Return the entries that `tools.look` prints, parsed as YAML."""
    text = "\n".join(look.look(path))
    return YAML(typ="safe").load(text[text.index("\nfetch:") :])


def fetched(entries, inputs, folder):
    settings = {"inputs": "x", "sources": entries["fetch"]["sources"]}
    fetch.fetch(fetch.Params.model_validate({"fetch": settings}), inputs, folder)


def joined(entry, changes):
    return entry | {
        key: joined(entry.get(key) or {}, value) if isinstance(value, dict) else value for key, value in changes.items()
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_proposed_entry_reads_every_row_of_a_published_layout(name, tmp_path):
    layout = LAYOUTS[name]
    path = layout.write(tmp_path / "inputs")
    entries = proposed(path)
    fetched(entries, Path(entries["fetch"]["inputs"]), tmp_path / "sources")
    (entry,) = entries["merge"]["sources"]
    source = MergeSource.model_validate(joined(entry, layout.by_hand))
    rows = [row for row in read_source(tmp_path / "sources" / source.name, source) if row.reason != "unreadable"]
    assert [(row.instruction, row.output) for row in rows] == layout.rows
    assert {row.reason for row in rows} == {None}


def test_few_layouts_need_an_edit_and_the_page_lists_them_all():
    page = (ROOT / "docs/mapping.md").read_text(encoding="utf-8")
    by_hand = {name for name, layout in LAYOUTS.items() if layout.by_hand}
    print(f"{len(LAYOUTS)} layouts, {len(by_hand)} by hand: {', '.join(sorted(by_hand))}")
    listed = re.findall(r"^- (.+?)( \(needs an edit\))?$", page[page.index("## Layouts") :], re.MULTILINE)
    assert [name for name, _ in listed] == list(LAYOUTS)
    assert {name for name, mark in listed if mark} == by_hand
    assert len(by_hand) <= len(LAYOUTS) / 10


def blocks(language):
    text = (ROOT / "docs/mapping.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_entries_on_the_page_are_valid():
    entries = [entry for block in blocks("yaml") for entry in YAML(typ="safe").load(block)]
    assert len([MergeSource.model_validate(entry) for entry in entries]) == 5


def test_the_fields_on_the_page_say_where_the_text_of_their_rows_is():
    page = (ROOT / "docs/mapping.md").read_text(encoding="utf-8")
    texts = []
    for fields, row in re.findall(r"^\| (`.+`) \| .* \| `(\{.*\})` \|$", page, re.MULTILINE):
        for written in re.findall(r"`(.+?)`", fields.replace("\\|", "|")):
            field = YAML(typ="safe").load(written) if written[0] in "'\"" else written
            texts.append(Field(field).text(Place(json.loads(row))))
    assert texts == [
        "첨성대는 언제 세웠나요?",
        "신라 때입니다.",
        "신라",
        "",
        "본문 1\n본문 2",
        "글",
        "네.",
        "셋 더하기 넷\n\n정답: 7",
    ]


def test_the_script_on_the_page_makes_conversations_of_turns_that_are_keys(tmp_path, monkeypatch):
    (script,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "감성대화").mkdir()
    (tmp_path / "data/mine/inputs").mkdir(parents=True)
    rows = [{"talk": {"content": {"HS01": q, "SS01": a, "HS02": "응.", "SS02": "네.", "HS03": ""}}} for q, a in PAIRS]
    (tmp_path / "감성대화/1.json").write_bytes(as_json(rows))
    exec(compile(script, "docs/mapping.md", "exec"), {})  # it is ours, on the page
    source = MergeSource.model_validate({"name": "emotion", "turns": {"path": "data"}})
    read = list(read_source(tmp_path / "data/mine/inputs", source))
    assert [(row.instruction, row.output, len(row.turns)) for row in read] == [(q, "네.", 4) for q, _ in PAIRS]


def test_an_unknown_layout_is_shown_with_an_entry_to_fill_in(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(as_json([{"height": 1947, "where": "제주"}]))
    lines = list(look.look(path))
    assert "  where   제주" in lines
    assert lines[-2] == "    - {name: x, instruction: [WHICH COLUMN], output: WHICH COLUMN}"


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "no rows"), (b"\x1f\x8b\x08", "packed with gzip"), (None, "missing")]
)
def test_a_file_that_cannot_be_read_is_one_message(content, words, tmp_path, capsys):
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    assert look.main([str(tmp_path / "x")]) == 1
    assert words in capsys.readouterr().err
