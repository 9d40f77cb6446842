"""A source is a file, a folder or the files whose names match, copied as they are into a folder of its own."""

import unicodedata

import pytest
from pydantic import ValidationError

from stages import fetch
from stages.lib.core.errors import UserError

FILES = {
    "민원.csv": b"a",
    "민원/라벨 [1]/x.json": b"b",
    "민원/라벨 [1]/y.json": b"c",
    "TL.zip.part0": b"d",
    "TL.zip.part9": b"e",
}
NAMES = {
    "민원.csv": {"민원.csv": b"a"},
    " 민원.csv ": {"민원.csv": b"a"},
    "민원/라벨 [1]/y.json": {"y.json": b"c"},
    "민원": {"라벨 [1]/x.json": b"b", "라벨 [1]/y.json": b"c"},
    "민원/라벨 [1]": {"x.json": b"b", "y.json": b"c"},
    "민원/*[1]/x*": {"민원/라벨 [1]/x.json": b"b"},
    "TL.zip.part*": {"TL.zip.part0": b"d", "TL.zip.part9": b"e"},
    "*": FILES,
}


@pytest.fixture
def fetched(tmp_path):
    """Fetch one source from files whose names are in NFD; return its files."""

    def run(name, source="life", more=()):
        for file, content in [*FILES.items(), *((one, b"") for one in more)]:
            path = tmp_path / "inputs" / unicodedata.normalize("NFD", file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for file in more:
            (tmp_path / "inputs" / file).write_bytes(b"")
        settings = {"from": "file", "name": name, "revision": None, "config": None, "split": None}
        params = fetch.Params.model_validate({"fetch": {"inputs": "x", "sources": {source: settings}}})
        fetch.fetch(params, tmp_path / "inputs", tmp_path / "sources")
        (folder,) = (tmp_path / "sources").iterdir()
        copied = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        return folder.name, copied

    return run


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_file_a_folder_or_all_that_it_matches(name, fetched):
    assert fetched(name) == ("life", NAMES[name])


def test_the_name_of_a_source_is_in_nfc(fetched):
    assert fetched("민원.csv", source=unicodedata.normalize("NFD", " 민원 "))[0] == "민원"


@pytest.mark.parametrize("source", ["../life", "a/b", ".hidden", " "])
def test_the_name_of_a_source_must_be_one_that_a_folder_can_have(source, fetched):
    with pytest.raises(ValidationError, match="a source's name must not be empty, contain a / or begin with a dot"):
        fetched("민원.csv", source=source)


def test_a_name_that_matches_nothing_stops_and_lists_the_files(fetched):
    with pytest.raises(UserError, match=r"fetch\.sources\.life\.name: no file .*민원\.tsv; .* has TL\.zip\.part0, TL"):
        fetched("민원.tsv")


def test_two_files_with_one_name_in_nfc_stop(fetched):
    with pytest.raises(UserError, match="have the same name in NFC; rename one"):
        fetched("*", more=["민원.csv"])
