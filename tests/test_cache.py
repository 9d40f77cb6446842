"""Scores that are never computed twice: found by text and fingerprint, kept in chunks, checked when they are read."""

import logging

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages import embed, ppl
from stages.lib.scoring import cache as module
from stages.lib.scoring.cache import Store, complete
from stages.lib.scoring.fingerprint import changes, compute_fingerprint, short, without_comments
from tests.test_wiring import closure

MADE_BY = {"weights": "a", "batch_tokens": "64"}


@pytest.fixture
def scored():
    """The texts that were computed."""
    return []


@pytest.fixture
def score(tmp_path, scored, monkeypatch):
    """Complete texts, a chunk for every batch of two; the score of a text is its length. `die_at` a batch."""
    monkeypatch.setattr(module, "SECONDS", -1.0)

    def run(texts, made_by=MADE_BY, die_at=None):
        def compute(missing):
            for number, start in enumerate(range(0, len(missing), 2)):
                if number == die_at:
                    raise KeyboardInterrupt
                part = missing[start : start + 2]
                scored.extend(part)
                yield list(range(start, start + len(part))), torch.tensor([[float(len(text))] for text in part])

        def columns(values):
            return {"score": pa.array(values[:, 0].astype(np.float64))}

        store = Store(tmp_path / "store", made_by, columns, ["score"], tmp_path / "out.parquet")
        return complete(store, texts, compute)["score"].to_pylist()

    return run


@pytest.fixture
def files(tmp_path):
    return lambda: sorted((tmp_path / "store").iterdir())


TEXTS = ["가", "나나", "다다다", "라라라라", "마마마마마"]


def test_scores_come_in_the_order_of_the_texts(score):
    assert score(TEXTS) == [1, 2, 3, 4, 5]
    assert score(TEXTS[::-1]) == [5, 4, 3, 2, 1]


def test_a_text_is_scored_once(score, scored, files):
    score(TEXTS[:2])
    score(TEXTS)
    score(TEXTS[1:4])
    assert scored == TEXTS
    assert len(files()) == 1  # chunks are brought into one file


def test_what_was_scored_before_a_kill_is_not_scored_again(score, scored, files):
    with pytest.raises(KeyboardInterrupt):
        score(TEXTS, die_at=2)
    assert len(files()) == 2
    assert score(TEXTS) == [1, 2, 3, 4, 5]
    assert scored == TEXTS


def test_a_torn_file_is_removed(score, files, tmp_path):
    score(TEXTS)
    (tmp_path / "store" / ".x.parquet.part").write_bytes(b"PAR1")
    score(TEXTS)
    assert len(files()) == 1


def test_scores_of_another_make_are_not_used_but_stay(score, scored, files, caplog):
    caplog.set_level(logging.INFO, "stages")
    score(TEXTS)
    score(TEXTS, made_by=MADE_BY | {"batch_tokens": "32"})
    assert "of another make: batch_tokens (was 64, is 32)" in caplog.text
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
    assert short(find()) != short(before)


def test_settings_and_code_are_in_the_fingerprint_and_comments_are_not(model, tmp_path):
    code = tmp_path / "code.py"
    before = compute_fingerprint(model, {"dtype": "fp32"}, [code])
    assert "dtype (was fp32, is bf16)" in changes(before, compute_fingerprint(model, {"dtype": "bf16"}, [code]))
    code.write_text('"""A docstring."""\n\nx = 1  # one\n')
    assert compute_fingerprint(model, {"dtype": "fp32"}, [code]) == before
    code.write_text("x = 2\n")
    assert compute_fingerprint(model, {"dtype": "fp32"}, [code])["code"] != before["code"]


def test_a_function_of_a_docstring_alone_is_still_code():
    assert without_comments('def f():\n    """Say."""\n') == "def f():\n    pass"


@pytest.mark.parametrize("stage", [ppl, embed])
def test_the_fingerprint_holds_every_module_that_scores(stage):
    heart = {"ppl": "scoring", "embed": "vectors"}[stage.__name__.split(".")[1]]
    modules = closure(f"stages.lib.{heart}") - {"stages.lib.core.progress", "stages.lib.core.errors"}
    named = {f"stages.lib.{path.stem}" for path in stage.CODE[1:]}
    assert named == modules
    assert stage.CODE[0].name == f"{stage.__name__.split('.')[1]}.py"
