"""The cache of scores: none is computed twice; they are found by text and fingerprint, and checked when read."""

import hashlib
import json
import logging
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages import embed, ppl, rate
from stages.lib.scoring import cache as module
from stages.lib.scoring import fingerprint
from stages.lib.scoring.cache import Cache, complete, read_fingerprint
from stages.lib.scoring.fingerprint import compute_fingerprint, describe_changes, short_hash, without_comments
from stages.lib.text.hashing import text_hash
from tests.project import ROOT
from tools.wire import closure, path_of

FINGERPRINT = {"weights": "a", "batch_tokens": "64"}


@pytest.fixture
def scored():
    """The texts whose scores were computed."""
    return []


@pytest.fixture
def score(tmp_path, scored, monkeypatch):
    """Score texts in batches of two, each a chunk; a text's score is its length. `die_at` is the number of a batch."""
    monkeypatch.setattr(module, "CHUNK_SECONDS", -1.0)

    def run(texts, fingerprint=FINGERPRINT, die_at=None):
        def compute(missing):
            for number, start in enumerate(range(0, len(missing), 2)):
                if number == die_at:
                    raise KeyboardInterrupt
                part = missing[start : start + 2]
                scored.extend(part)
                yield list(range(start, start + len(part))), torch.tensor([[float(len(text))] for text in part])

        def columns(values):
            return {"score": pa.array(values[:, 0].astype(np.float64))}

        cache = Cache(tmp_path / "cache", fingerprint, columns, ["score"], Path("out.parquet"))
        return complete(cache, texts, compute)["score"].to_pylist()

    return run


@pytest.fixture
def files(tmp_path):
    return lambda: sorted((tmp_path / "cache").iterdir())


TEXTS = ["가", "나나", "다다다", "라라라라", "마마마마마"]


def test_scores_come_in_the_order_of_the_texts(score):
    assert score(TEXTS) == [1, 2, 3, 4, 5]
    assert score(TEXTS[::-1]) == [5, 4, 3, 2, 1]


def test_a_text_is_scored_once(score, scored, files):
    score(TEXTS[:2])
    score(TEXTS)
    score(TEXTS[1:4])
    assert scored == TEXTS
    (path,) = files()  # chunks are merged into one file
    table = pa.parquet.read_table(path)
    assert dict(zip(*table.to_pydict().values(), strict=True)) == {text_hash(text): len(text) for text in TEXTS}
    assert table.column_names == ["text_hash", "score"]
    assert read_fingerprint(table.schema) == FINGERPRINT


def test_what_was_scored_before_a_kill_is_not_scored_again(score, scored, files):
    with pytest.raises(KeyboardInterrupt):
        score(TEXTS, die_at=2)
    assert len(files()) == 2
    assert score(TEXTS) == [1, 2, 3, 4, 5]
    assert scored == TEXTS


def test_a_file_half_written_is_removed(score, files, tmp_path):
    score(TEXTS)
    (tmp_path / "cache" / ".x.parquet.part").write_bytes(b"PAR1")
    score(TEXTS)
    assert len(files()) == 1


def test_scores_with_another_fingerprint_are_not_used_but_stay(score, scored, files, caplog):
    caplog.set_level(logging.INFO, "stages")
    score(TEXTS)
    score(TEXTS, fingerprint=FINGERPRINT | {"batch_tokens": "32"})
    assert "have another fingerprint: batch_tokens (was 64, is 32)" in caplog.text
    assert scored == TEXTS * 2
    score([*TEXTS, "바"])
    assert scored == [*TEXTS * 2, "바"]
    assert len(files()) == 2


def test_whatever_bit_flips_the_scores_are_right(score, scored, files, caplog):
    score(TEXTS)
    (path,) = files()
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        scored.clear()
        assert score(TEXTS) == [1, 2, 3, 4, 5], place
        assert scored == TEXTS
        assert f"{path}: damaged, removed" in caplog.text
        caplog.clear()


def test_a_repeated_key_is_kept_once(score, files):
    score(TEXTS)
    (path,) = files()
    content = path.read_bytes()
    score([*TEXTS, "바"])
    path.write_bytes(content)
    assert len(files()) == 2
    assert score(TEXTS) == [1, 2, 3, 4, 5]
    (path,) = files()
    assert len(pa.parquet.read_table(path)) == 6


@pytest.fixture
def committed(tmp_path, score, monkeypatch):
    """Start a project whose last commit has the scores of TEXTS in DVC's cache or in a remote; `url` is its remote."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "ppl")

    def start(url, cached=False, locked=True):
        score(TEXTS)
        (kept,) = (tmp_path / "cache").iterdir()
        content, name = kept.read_bytes(), "out.parquet"
        kept.unlink()
        md5 = hashlib.md5(content).hexdigest()
        stage = {"cmd": "true", "outs": [{"path": name, "hash": "md5", "md5": md5, "size": len(content)}]}
        remote = f"[core]\nremote = far\n['remote \"far\"']\nurl = {url}\n" if url else ""
        files = {
            ".dvc/config": remote,
            "dvc.yaml": json.dumps({"stages": {"ppl": {"cmd": "true", "outs": [name]}}}),
            "dvc.lock": json.dumps({"schema": "2.0", "stages": {"ppl": stage} if locked else {}}),
        }
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(text)
        for command in ("init -q", "add .dvc/config dvc.yaml dvc.lock", "-c user.name=a -c user.email=a commit -qm a"):
            subprocess.run(["git", *command.split()], check=True)
        place = Path(".dvc/cache") if cached else tmp_path / "remote"
        (place / "files/md5" / md5[:2]).mkdir(parents=True)
        (place / "files/md5" / md5[:2] / md5[2:]).write_bytes(content)

    return start


@pytest.fixture
def server():
    """The address of a remote that answers every request with 403."""

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(403)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/remote"
        http.shutdown()


@pytest.mark.parametrize("cached", [True, False], ids=["in the cache", "in the remote"])
def test_scores_of_the_last_commit_are_not_computed_again(cached, committed, score, scored, tmp_path, caplog):
    committed(str(tmp_path / "remote"), cached)
    scored.clear()
    assert score([*TEXTS, "바"]) == [1, 2, 3, 4, 5, 1]
    assert scored == ["바"]
    assert not caplog.records


NONE = {"no commit": None, "no output": {"url": None, "locked": False}, "no remote": {"url": None}}


@pytest.mark.parametrize("why", NONE)
def test_without_scores_in_the_last_commit_there_is_no_warning(why, committed, score, scored, caplog):
    if NONE[why]:
        committed(**NONE[why])
    scored.clear()
    assert score(TEXTS) == [1, 2, 3, 4, 5]
    assert scored == TEXTS
    assert not caplog.records


@pytest.mark.parametrize("why", ["refused", "unreachable", "not pushed", "damaged"])
def test_scores_of_the_last_commit_that_cannot_be_read_are_a_warning_with_the_reason_and_what_it_costs(
    why, committed, score, scored, server, tmp_path, caplog
):
    places = {"refused": server, "unreachable": "http://127.0.0.1:9/remote", "not pushed": str(tmp_path / "empty")}
    committed(places.get(why, str(tmp_path / "remote")))
    if why == "damaged":
        (path,) = (path for path in (tmp_path / "remote").rglob("*") if path.is_file())
        path.write_bytes(path.read_bytes()[:-1])
    scored.clear()
    score(TEXTS[:1])
    assert score(TEXTS) == [1, 2, 3, 4, 5]
    reasons = {"refused": "403", "unreachable": "Cannot connect", "not pushed": "No such file", "damaged": "is damaged"}
    texts = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "out.parquet of the last commit cannot be read, so 4 texts are scored anew: " in texts[-1]
    assert reasons[why] in texts[-1]
    assert scored == TEXTS


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(name)
    (tmp_path / "code.py").write_text("x = 1\n")
    return folder


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("config.json", "weights"),
        ("model.safetensors", "weights"),
        ("tokenizer.json", "tokenizer"),
        ("vocab", "tokenizer"),
    ],
)
def test_every_file_of_the_model_is_in_the_fingerprint(name, part, model, tmp_path):
    def find():
        return compute_fingerprint(model, {"dtype": "fp32"}, [tmp_path / "code.py"])

    before = find()
    assert find() == before
    (model / name).write_text("other")
    assert {key for key in before if find()[key] != before[key]} == {part}
    assert short_hash(find()) != short_hash(before)


def test_settings_and_code_are_in_the_fingerprint_and_comments_are_not(model, tmp_path):
    code = tmp_path / "code.py"
    before = compute_fingerprint(model, {"dtype": "fp32"}, [code])
    in_bf16 = compute_fingerprint(model, {"dtype": "bf16"}, [code])
    assert describe_changes(before, in_bf16) == "dtype (was fp32, is bf16)"
    code.write_text('"""A docstring."""\n\nx = 1  # one\n')
    assert compute_fingerprint(model, {"dtype": "fp32"}, [code]) == before
    code.write_text("x = 2\n")
    assert compute_fingerprint(model, {"dtype": "fp32"}, [code])["code"] != before["code"]


@pytest.mark.parametrize("library", ["tokenizers", "torch", "transformers"])
def test_the_versions_of_libraries_that_change_scores_are_in_the_fingerprint(library, model, tmp_path, monkeypatch):
    code = [tmp_path / "code.py"]
    before = compute_fingerprint(model, {}, code)
    monkeypatch.setattr(fingerprint, "version", lambda name: "99+cpu" if name == library else before[name])
    assert describe_changes(before, compute_fingerprint(model, {}, code)) == f"{library} (was {before[library]}, is 99)"


def test_a_function_that_is_only_a_docstring_is_still_code():
    assert without_comments('def f():\n    """Describe."""\n') == "def f():\n    pass"


SCORING = [(ppl, ["log_likelihood"]), (embed, ["embedding", "encoder"]), (rate, ["answers", "labels"])]


@pytest.mark.parametrize(("stage", "scoring"), SCORING)
def test_the_fingerprint_covers_every_module_that_scores(stage, scoring):
    kept = {f"scoring.{name}" for name in ("cache", "committed", "fingerprint")}  # how a score is kept
    kept |= {"text.hashing", "core.artifacts"}
    without_effect = {f"core.{name}" for name in ("errors", "params", "processes", "progress")} | kept
    imported = set().union(*(closure(f"stages.lib.scoring.{module}") for module in scoring))
    modules = imported - {f"stages.lib.{name}" for name in without_effect}
    own, *others = (path.relative_to(ROOT) for path in stage.CODE)
    assert str(own) == f"stages/{stage.__name__.split('.')[1]}.py"
    assert set(others) == {path_of(name) for name in modules}
