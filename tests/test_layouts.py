"""Files in the layouts of published sets are read whole by the entries that `tools.look` proposes."""

import pytest
from ruamel.yaml import YAML

from stages import fetch
from stages.lib.reading.entry import MergeSource
from stages.lib.reading.rows import read_source
from tests.layouts import LAYOUTS
from tools.look import look


def proposed(path):
    """Return the entries that `tools.look` prints, as they are read from params.yaml."""
    text = "\n".join(look(path))
    return YAML(typ="safe").load(text[text.index("\nfetch:") :])


def fetched(entries, inputs, folder):
    settings = {"inputs": "x", "sources": entries["fetch"]["sources"]}
    fetch.fetch(fetch.Params.model_validate({"fetch": settings}), inputs, folder)


def joined(entry, changes):
    return entry | {
        key: joined(entry.get(key) or {}, value) if isinstance(value, dict) else value for key, value in changes.items()
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_layout_is_read_whole_by_the_proposed_entry(name, tmp_path):
    layout = LAYOUTS[name]
    path = layout.write(tmp_path / "inputs")
    entries = proposed(path)
    fetched(entries, path.parent, tmp_path / "sources")
    (entry,) = entries["merge"]["sources"]
    source = MergeSource.model_validate(joined(entry, layout.by_hand))
    rows = [row for row in read_source(tmp_path / "sources" / source.name, source) if row.reason != "unreadable"]
    assert [(row.instruction, row.output) for row in rows] == layout.rows
    assert {row.reason for row in rows} == {None}
