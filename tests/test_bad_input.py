"""What is wrong, where, what was found and what to do next: one message, and nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stages import cluster, embed, evaluate, fetch, fetch_benchmark, fetch_model, ppl, sample, train
from stages.candidates import CANDIDATES, MARKS
from stages.lib.core.artifacts import write_jsonl, write_table
from stages.lib.core.errors import UserError
from stages.lib.evaluation import tasks
from stages.lib.evaluation.kobest import KOBEST
from stages.lib.models import loading
from tests import training

ROOT = Path(__file__).parent.parent
HISTORY = {"query": "조선을 세운 이는? (A) 이성계 (B) 왕건 (C) 온조 (D) 주몽 (E) 대조영", "answer": "(A)"}
GOOD = [{"instruction": f"{n}번 질문은 무엇인가요?", "output": "답입니다."} for n in range(3)]
SMALL = dict.fromkeys(("layers", "width", "heads", "steps", "warmup", "seed"), 1) | {
    "vocabulary": 300,
    "positions": 64,
    "context": 16,
    "batch": 2,
    "learning_rate": 0.1,
}


@pytest.fixture
def world(tmp_path, run_merge, write_raw, write_leaks, write_vectors, benchmark, lm, encoder, jsonl):
    """Good inputs for a case to spoil, and `out`, where nothing may be left."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    shutil.copytree(benchmark, tmp_path / "benchmark")
    shutil.copytree(lm, tmp_path / "model")
    shutil.copytree(encoder, tmp_path / "encoder")
    return SimpleNamespace(
        inputs=inputs,
        benchmark=tmp_path / "benchmark",
        model=tmp_path / "model",
        encoder=tmp_path / "encoder",
        raw=write_raw([row["instruction"] for row in GOOD]),
        leaks=write_leaks(),
        out=tmp_path / "out",
        merge=lambda files, **settings: run_merge(files, out=tmp_path / "out", **settings),
        write_vectors=write_vectors,
        jsonl=jsonl,
    )


def fetch_file(world, name):
    (world.inputs / "life.csv").touch()
    (world.inputs / "life.xlsx").touch()
    source = {"from": "file", "name": name, "revision": None, "config": None, "split": None}
    params = fetch.Params.model_validate({"fetch": {"inputs": "data", "sources": {"life": source}}})
    fetch.fetch(params, world.inputs, world.out / "sources")


def bytes_of(suffix, content, **columns):
    return lambda world: world.merge({"life": (suffix, content)}, columns={"life": columns})


def broken_lines(world):
    rows = [row | {"output": f"{n}번 답"} for n, row in enumerate(GOOD * 33)]
    world.merge({"life": (".jsonl", world.jsonl(rows) + b'{"instruction": "cut\n' * 2)})


def json_lines_in_another_encoding(world):
    data = world.jsonl(GOOD).decode().encode("cp949")
    world.merge({"life": (".jsonl", data)}, columns={"life": {"encoding": "utf-8"}})


def get_benchmark(world, names=KOBEST):
    settings = {"from": "files", "inputs": "data", "revisions": {}}
    params = {"fetch_benchmark": settings, "evaluate": {"tasks": list(names)}}
    params = fetch_benchmark.Params.model_validate(params)
    fetch_benchmark.fetch_benchmark(params, world.benchmark, world.out / "benchmark")


def benchmark_without_a_file(world):
    (world.benchmark / "copa" / "validation.jsonl").unlink()
    get_benchmark(world)


def benchmark_with(name, content):
    def case(world):
        (world.benchmark / name).write_bytes(content)
        get_benchmark(world)

    return case


def get_model(world, inputs, **settings):
    defaults = {"inputs": "data", "name": None, "revision": None, "small": None}
    params = fetch_model.Params.model_validate({"threads": 1, "fetch_model": {"base": defaults | settings}})
    fetch_model.fetch_model(params, "base", inputs, world.out / "model")


def small_model_from(name, content):
    def case(world):
        (world.inputs / name).write_bytes(content)
        get_model(world, world.inputs, small=SMALL, **{"from": "small"})

    return case


def score(world):
    settings = {"max_tokens": 16, "add_bos": False, "batch_tokens": 64, "dtype": "fp32"}
    params = ppl.Params.model_validate({"threads": 1, "ppl": settings})
    ppl.ppl(params, world.raw, world.model, world.out / "checkpoints", world.out / "ppl.parquet")


def score_a_cut_table(world):
    world.raw.write_bytes(world.raw.read_bytes()[:-9])
    score(world)


def score_a_missing_table(world):
    world.raw.unlink()
    score(world)


def score_by_pickles(world):
    (world.model / "model.safetensors").rename(world.model / "pytorch_model.bin")
    score(world)


def score_without_a_tokenizer(world):
    for path in world.model.glob("tokenizer*"):
        path.unlink()
    score(world)


def embed_rows(world):
    settings = {"max_tokens": 16, "pooling": "mean", "batch_tokens": 64, "dtype": "fp32"}
    params = embed.Params.model_validate({"threads": 1, "embed": settings})
    embed.embed(params, world.raw, world.encoder, world.out / "checkpoints", world.out / "embeddings.parquet")


def embed_without_a_config(world):
    (world.encoder / "config.json").unlink()
    embed_rows(world)


def embed_without_a_tokenizer(world):
    for path in world.encoder.glob("tokenizer*"):
        path.unlink()
    embed_rows(world)


def more_topics_than_rows(world):
    settings = {
        "length_groups": 1,
        "clusters": 4,
        "small_groups": "stop",
        "algorithm": "lloyd",
        "init": "hashed",
        "n_init": 1,
        "seeds": [1],
    }
    vectors = world.write_vectors(["row0", "row1", "row2"], np.eye(3))
    params = cluster.Params.model_validate({"threads": 1, "cluster": settings})
    cluster.cluster(params, world.raw, vectors, world.out / "clusters.parquet")


def an_arm_without_rows(world):
    ids, arms = ["row0", "row1", "row2"], {"tiny": {"method": "spread", "fraction": 0.25, "seed": 1}}
    columns = {"id": ids, "source": ["life"] * 3, "length_group": [0] * 3, "cluster": [0] * 3, "distance": [0.0] * 3}
    scores = {"tokens": [5] * 3, "nll": [1.0] * 3, "ppl": [3.0] * 3, "characters": [2] * 3, "reason": [None] * 3}
    scores |= {name: [None] * 3 for name in MARKS}
    write_table(world.inputs / "candidates", columns | scores, CANDIDATES)
    params = sample.Params.model_validate({"threads": 1, "cluster": {"seeds": [1]}, "arms": arms, "control": "tiny"})
    outs = world.out / "tiny.jsonl", world.out / "tiny.parquet"
    sample.sample(params, "tiny", world.raw, world.inputs / "candidates", world.inputs / "none", *outs)


def tune(world, rows, **changes):
    rows = [{"id": f"row{n}", "source": "life"} | row for n, row in enumerate(rows)]
    samples, held_out = world.inputs / "tiny.jsonl", world.inputs / "held_out.jsonl"
    write_jsonl(samples, rows)
    write_jsonl(held_out, rows[:1])
    outs = world.out / "model", world.out / "tiny.json", world.out / "tiny.parquet"
    params = training.settings(**{"max_tokens": 64, "held_out_batch_tokens": 64} | changes)
    train.train(params, "ours", samples, held_out, world.model, world.out / "checkpoints", *outs)


def evaluation(*names, spoil=None, **changes):
    def case(world):
        if spoil:
            spoil(world)
        settings = {
            "tasks": list(names),
            "shots": [0],
            "batch": 8,
            "dtype": "fp32",
            "quantize": None,
            "chat": False,
        } | changes
        params = evaluate.Params.model_validate({"threads": 1, "evaluate": settings})
        outs = world.out / "checkpoints", world.out / "tiny"
        evaluate.evaluate(params, "tiny", world.inputs, world.model, world.benchmark, *outs)

    return case


def benchmark_defined_as(**settings):
    """Ask for a task that the harness defines with these settings."""

    def case(world):
        path = world.inputs / "mine.yaml"
        known = {"output_type": "multiple_choice", "dataset_path": "org/mine"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tasks, "find_definition", lambda _: (path, known | settings))
            get_benchmark(world, ["mine"])

    return case


def write_items(name, *items):
    return lambda world: write_jsonl(world.benchmark / name, items)


def without_bitsandbytes(world):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "find_spec", lambda _: None)
        shutil.copytree(world.model, world.inputs, dirs_exist_ok=True)
        evaluation("copa", quantize="nf4")(world)


def evaluate_more_choices(world):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "MOST_CHOICES", 4)
        evaluation("haerae_history", spoil=write_items("haerae_history/test.jsonl", HISTORY))(world)


def an_adapter_that_is_pickled(world):
    (world.inputs / "adapter_config.json").write_text("{}")
    (world.inputs / "adapter_model.bin").write_bytes(b"pickle")


CASES = {
    "a source's file is missing": (
        lambda world: fetch_file(world, "live.csv"),
        ["params.yaml: fetch.sources.life.name", "live.csv", "has life.csv, life.xlsx"],
    ),
    "a column is missing": (
        bytes_of(".csv", "질문,답변\n한라산은?,산입니다.\n".encode(), instruction=["질문"], output="정답"),
        ["sources/life", "no column 정답", "it has 답변, 질문", "see life in merge.sources"],
    ),
    "too many lines are broken": (
        broken_lines,
        [
            "sources/life: ",
            "2 of 101 rows",
            "merge.drop.max_unreadable",
            "0.01",
            "row 100 of life.jsonl",
            "cut",
            "encoding of life",
            "(auto)",
        ],
    ),
    "JSON Lines have another encoding": (
        json_lines_in_another_encoding,
        ["sources/life", "3 of 3 rows are unreadable", "encoding of life in merge.sources (utf-8)"],
    ),
    "JSON has another encoding": (
        bytes_of(".json", json.dumps(GOOD, ensure_ascii=False).encode("cp949"), encoding="utf-8"),
        ["life.json", "byte", "utf-8", "`encoding` in merge.sources"],
    ),
    "JSON is cut": (bytes_of(".json", b'[{"instruction": "a"'), ["life.json: ", "line 1"]),
    "JSON is too deep": (bytes_of(".json", b"[" * 100_000), ["life.json: ", "recursion"]),
    "every row is dropped": (
        lambda world: world.merge(
            {"life": GOOD}, drop={"max_characters": 3}, held_out={"sources": ["life"], "share": 0.1}
        ),
        ["no row is left of 3", "too_long", "merge.drop"],
    ),
    "a source to hold out that is none": (
        lambda world: world.merge({"life": GOOD}, held_out={"sources": ["live"], "share": 0.1}),
        ["params.yaml: merge.held_out.sources", "live", "the sources are life"],
    ),
    "a benchmark file is missing": (
        benchmark_without_a_file,
        ["copa/validation.jsonl: missing", "fetch_benchmark.inputs", "{train,validation,test}.jsonl"],
    ),
    "a benchmark file lacks a column": (
        benchmark_with("wic/test.jsonl", '{"word": "배", "context_1": "[배]를 탄다.", "label": 1}\n'.encode()),
        ["wic/test, item 1", "lacks context_2", "expected word, context_1", "got word, context_1, label"],
    ),
    "a benchmark file is broken": (
        benchmark_with("boolq/train.jsonl", b'{"paragraph": '),
        ["boolq/train.jsonl", "not JSON Lines"],
    ),
    "a benchmark file has no objects": (
        benchmark_with("boolq/train.jsonl", b'["paragraph"]\n'),
        ["boolq/train", "paragraph, question, label"],
    ),
    "a benchmark file is empty": (benchmark_with("sentineg/test.jsonl", b""), ["sentineg/test", "no items"]),
    "a benchmark that the harness does not know": (
        lambda world: get_benchmark(world, ["haerae_opinion"]),
        ["evaluate.tasks: haerae_opinion: the harness has no task haerae_opinion"],
    ),
    "a group of benchmarks": (
        lambda world: get_benchmark(world, ["haerae"]),
        ["evaluate.tasks: haerae: a group", "haerae_general_knowledge, haerae_history"],
    ),
    "a benchmark without choices": (
        lambda world: get_benchmark(world, ["kmmlu_direct_accounting"]),
        ["evaluate.tasks: kmmlu_direct_accounting: only multiple-choice tasks"],
    ),
    "a benchmark without scores": (
        lambda world: get_benchmark(world, ["mmlu_anatomy_continuation"]),
        ["evaluate.tasks: mmlu_anatomy_continuation", "has no metric_list", "take another task"],
    ),
    "a benchmark without items to ask": (
        benchmark_defined_as(metric_list=[{"metric": "acc"}], training_split="train"),
        ["evaluate.tasks: mine", "mine.yaml has no test_split or validation_split", "take another task"],
    ),
    "a benchmark that was not fetched": (
        evaluation("kmmlu_accounting"),
        ["kmmlu_accounting/test.jsonl: missing", "reads test, dev"],
    ),
    "more shots than examples": (
        evaluation("copa", shots=[0, 7]),
        ["evaluate.shots: 7", "copa has only 6 examples"],
    ),
    "more shots than examples beside the item itself": (
        evaluation("haerae_history", shots=[1], spoil=write_items("haerae_history/test.jsonl", HISTORY)),
        ["evaluate.shots: 1", "haerae_history has only 0 examples"],
    ),
    "an answer that is no choice": (
        evaluation(
            "haerae_history", spoil=write_items("haerae_history/test.jsonl", HISTORY, HISTORY | {"answer": "(F)"})
        ),
        ["benchmark haerae_history, item 1: the answer is '(F)'", "not one of (A), (B)"],
    ),
    "more choices than a digit holds": (
        evaluate_more_choices,
        ["benchmark haerae_history, item 0: 5 choices, but at most 4"],
    ),
    "a column that the harness needs": (
        evaluation("haerae_history", spoil=write_items("haerae_history/test.jsonl", {"answer": "(A)"})),
        ["benchmark haerae_history: lacks columns that the harness reads", "'query' is undefined"],
    ),
    "an adapter that is pickled": (
        evaluation("copa", spoil=an_adapter_that_is_pickled),
        ["inputs: it has adapter_config.json, but no adapter_model.safetensors"],
    ),
    "4 bits without bitsandbytes": (
        without_bitsandbytes,
        ["quantize: nf4 needs bitsandbytes", "pip install"],
    ),
    "no text for a small model": (small_model_from("a.md", b""), ["inputs", "no *.txt and no *.jsonl"]),
    "too little text for a small model": (small_model_from("a.txt", "가나".encode()), ["tokens", "context", "16"]),
    "text for a small model lacks a column": (
        small_model_from("pairs.jsonl", b'{"instruction": "a"}\n'),
        ["pairs.jsonl", "output"],
    ),
    "text for a small model is broken": (small_model_from("pairs.jsonl", b'{"instruction": '), ["pairs.jsonl", "JSON"]),
    "a table is missing": (score_a_missing_table, ["raw.parquet: not readable as Parquet", "dvc repro"]),
    "a table is cut": (score_a_cut_table, ["raw.parquet: not readable as Parquet", "dvc pull"]),
    "a model has pickles only": (score_by_pickles, ["no *.safetensors", "pytorch_model.bin", "save_pretrained"]),
    "a model has no tokenizer": (score_without_a_tokenizer, ["model", "no tokenizer"]),
    "an encoder has no tokenizer": (embed_without_a_tokenizer, ["encoder", "no tokenizer"]),
    "an encoder has no config": (embed_without_a_config, ["encoder", "config.json", "save_pretrained"]),
    "more topics than rows": (
        more_topics_than_rows,
        ["params.yaml: cluster.clusters: 4", "length group 0 has 3 rows", "lower cluster.clusters"],
    ),
    "an arm without rows": (an_arm_without_rows, ["arms.tiny", "fraction 0.25 of 3", "raise the fraction"]),
    "no room for an answer": (
        lambda world: tune(world, GOOD, max_tokens=4),
        ["tiny.jsonl", "train.max_tokens (4)", "3 rows"],
    ),
    "more tokens than positions": (
        lambda world: tune(world, GOOD, max_tokens=999),
        ["train.max_tokens: 999", "256 positions"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named_and_leaves_nothing(case, world):
    spoil, words = CASES[case]
    with pytest.raises(UserError) as stop:
        spoil(world)
    for word in words:
        assert word in str(stop.value)
    assert "\n" not in str(stop.value)
    assert list(world.out.rglob("*")) == []


def test_a_stage_that_stops_says_so_in_one_line_and_fails(tmp_path):
    (tmp_path / "params.yaml").write_text("merge: {}\n")
    names = ("sources", "raw", "held_out", "dropped")
    command = [sys.executable, "-m", "stages.merge", *(w for name in names for w in (f"--{name}", name))]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("merge stopped: params.yaml: 3 to correct\n  merge.sources: missing\n")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
