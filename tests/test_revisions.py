"""A file is read as a revision has it, from git, the cache or the remote; other bytes are refused."""

import json

import pytest

from stages.lib.core.errors import UserError
from tests.objects import commit_outs, out_entry, write_object
from tools.revisions import DamagedError, MissingError, RemoteError, read_at, read_lock, table_at

REMOTE = "[core]\nremote = far\n['remote \"far\"']\nurl = {}\n"
OUT = "data/out.txt"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two commits: `HEAD~1` has the out `first`, `HEAD` has `second`; both are on the remote, none in the cache."""
    monkeypatch.chdir(tmp_path)
    config = {".dvc/config": REMOTE.format(tmp_path / "remote")}
    commit_outs(tmp_path, {OUT: b"first"}, tmp_path / "remote", config | {"params.yaml": "k: 1\n"})
    commit_outs(tmp_path, {OUT: b"second"}, tmp_path / "remote", {"params.yaml": "k: 2\n"})
    return tmp_path


def test_each_revision_has_its_own_content_and_nothing_is_written(project):
    assert [read_at(OUT, revision) for revision in ("HEAD~1", "HEAD", "main")] == [b"first", b"second", b"second"]
    assert [read_at("params.yaml", revision) for revision in ("HEAD~1", "HEAD")] == [b"k: 1\n", b"k: 2\n"]
    assert [read_lock(revision)["stages"][OUT]["outs"][0]["size"] for revision in ("HEAD~1", "HEAD")] == [5, 6]
    assert not (project / OUT).exists()
    assert not (project / ".dvc/cache").exists()


def test_the_cache_is_read_before_the_remote(project):
    write_object(project / ".dvc/cache", b"second")
    (project / "remote").rename(project / "away")
    assert read_at(OUT, "HEAD") == b"second"
    with pytest.raises(RemoteError, match=r"data/out.txt at HEAD~1: not on the remote; `dvc push` from a clone"):
        read_at(OUT, "HEAD~1")


@pytest.mark.parametrize("place", ["remote", ".dvc/cache"])
def test_other_bytes_are_refused_with_the_place_where_they_are_and_read_once_they_are_put_back(place, project):
    stored = write_object(project / place, b"second")
    stored.write_bytes(b"tampered")
    with pytest.raises(DamagedError, match=f"data/out.txt at HEAD: .*{stored} is damaged"):
        read_at(OUT, "HEAD")
    stored.write_bytes(b"second")
    assert read_at(OUT, "HEAD") == b"second"


@pytest.mark.parametrize("damaged", ["", "the list of files", "the file"])
def test_a_file_of_a_folder_is_found_in_its_list_which_is_compared_too(damaged, project):
    stored = write_object(project / "remote", b"item")
    entry = {"md5": stored.parent.name + stored.name, "relpath": "copa/test.jsonl"}
    listed = write_object(project / "remote", json.dumps([entry]).encode(), ".dir")
    lock = {"schema": "2.0", "stages": {"fetch": {"cmd": "true", "outs": [out_entry("data/items", listed)]}}}
    commit_outs(project, {}, project / "remote", {"dvc.lock": json.dumps(lock)})
    if damaged:
        (listed if damaged == "the list of files" else stored).write_bytes(b"[]")
        with pytest.raises(DamagedError, match="is damaged"):
            read_at("data/items/copa/test.jsonl", "HEAD")
        return
    assert read_at("data/items/copa/test.jsonl", "HEAD") == b"item"
    with pytest.raises(MissingError, match="data/items at HEAD: it is a folder; name a file in it"):
        read_at("data/items", "HEAD")
    with pytest.raises(MissingError, match="data/items/wic at HEAD: neither git nor DVC tracks it"):
        read_at("data/items/wic", "HEAD")


def test_a_file_that_was_added_by_hand_is_read_too(project):
    md5 = write_object(project / "remote", b"mine")
    pointer = {"outs": [{"md5": md5.parent.name + md5.name, "hash": "md5", "path": "rows.jsonl"}]}
    commit_outs(project, {}, project / "remote", {"data/mine/rows.jsonl.dvc": json.dumps(pointer)})
    assert read_at("data/mine/rows.jsonl", "HEAD") == b"mine"


@pytest.mark.parametrize(
    ("path", "revision", "message"),
    [
        ("data/none", "HEAD", "data/none at HEAD: neither git nor DVC tracks it there; is the path right"),
        (OUT, "nowhere", "nowhere: git has no such revision here; `git fetch` it"),
        ("dvc.yaml", "HEAD", "dvc.yaml at HEAD: neither git nor DVC tracks it there"),
    ],
)
def test_what_a_revision_does_not_have_is_missing(path, revision, message, project):
    with pytest.raises(MissingError, match=message):
        read_at(path, revision)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "not in the cache, and no remote is set; `dvc remote default NAME`"),
        (
            REMOTE.format("http://127.0.0.1:9/remote"),
            "the remote cannot be read: .*Cannot connect.*; check the network",
        ),
    ],
)
def test_a_remote_that_cannot_be_read_is_told_apart_from_a_missing_file(config, message, project):
    (project / ".dvc/config").write_text(config)
    with pytest.raises(RemoteError, match=f"data/out.txt at HEAD: {message}"):
        read_at(OUT, "HEAD")
    assert read_at("params.yaml", "HEAD") == b"k: 2\n"


def test_a_file_that_is_not_a_table_is_named_with_its_revision(project):
    with pytest.raises(UserError, match=r"data/out\.txt at HEAD: not readable as Parquet"):
        table_at(OUT, "HEAD")
