"""Models and data sets from the hub's cache, at a pinned commit, and from folders: safetensors only."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from stages import fetch, fetch_benchmark, fetch_model, fetch_preferences
from stages.lib.core.artifacts import read_jsonl, read_table
from stages.lib.core.errors import UserError
from tests.test_fetch_preferences import ENTRY, RULE

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TASKS = ("boolq", "copa", "hellaswag", "sentineg", "wic")


@pytest.fixture
def put(hub_cache):
    """Lay files out as the hub's client caches a repository at COMMIT; return the folder to fill."""
    filled = []

    def place(repo_type, name):
        folder = hub_cache / f"{repo_type}s--{name.replace('/', '--')}"
        filled.append(folder)
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(COMMIT)
        snapshot = folder / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        return snapshot

    yield place
    for folder in filled:
        shutil.rmtree(folder)


@pytest.fixture
def get_model(tmp_path):
    """Fetch a model; return its folder."""

    def run(role="base", inputs=Path("data"), **settings):
        defaults = {"from": "hub", "inputs": str(inputs), "name": "org/model", "revision": COMMIT, "small": None}
        params = {"threads": 1, "fetch_model": {role: defaults | settings}}
        params = fetch_model.Params.model_validate(params)
        fetch_model.fetch_model(params, role=role, inputs=inputs, model=tmp_path / "model")
        return tmp_path / "model"

    return run


@pytest.fixture
def get_source(tmp_path):
    """Fetch one data set of the hub; return the folder of sources."""

    def run(**settings):
        source = {"from": "hub", "name": "org/data", "revision": COMMIT, "config": None, "split": "train"} | settings
        params = {"fetch": {"inputs": "data", "sources": {"alpaca": source}}}
        fetch.fetch(fetch.Params.model_validate(params), inputs=tmp_path, sources=tmp_path / "sources")
        return tmp_path / "sources/alpaca"

    return run


def weights(folder, auto="AutoModelForCausalLM"):
    import transformers

    return getattr(transformers, auto).from_pretrained(folder, use_safetensors=True).state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def pickled(folder, out):
    """Copy a model folder, its weights as pytorch_model.bin, as older repositories have them."""
    shutil.copytree(folder, out, dirs_exist_ok=True)
    (out / "model.safetensors").unlink()
    auto = "AutoModel" if "Roberta" in (folder / "config.json").read_text() else "AutoModelForCausalLM"
    torch.save(weights(folder, auto), out / "pytorch_model.bin")


def test_a_model_comes_from_the_cache_as_it_is(put, get_model, lm):
    folder = put("model", "org/model")
    for path in lm.iterdir():
        (folder / path.name).symlink_to(path)  # as the cache links to its blobs
    found = get_model()
    assert not any(path.is_symlink() for path in found.iterdir())
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {
        path.name: path.read_bytes() for path in lm.iterdir()
    }


@pytest.mark.parametrize(("role", "auto"), [("scorer", "AutoModelForCausalLM"), ("encoder", "AutoModel")])
def test_a_repository_of_pickles_is_converted(role, auto, put, get_model, lm, encoder):
    from transformers import AutoTokenizer

    source = encoder if role == "encoder" else lm
    pickled(source, put("model", "org/model"))
    found = get_model(role)
    assert same(weights(found, auto), weights(source, auto))
    assert not list(found.glob("*.bin"))
    assert AutoTokenizer.from_pretrained(found)("한라산?")["input_ids"]


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_code_in_a_pickle_is_not_run(put, get_model, lm, tmp_path):
    folder = put("model", "org/model")
    pickled(lm, folder)
    torch.save({"weights": Attack(tmp_path / "attacked")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"could not be read with weights_only"):
        get_model()
    assert not (tmp_path / "attacked").exists()
    assert not (tmp_path / "model").exists()


def test_pickles_beside_safetensors_are_left_behind(put, get_model, lm):
    folder = put("model", "org/model")
    shutil.copytree(lm, folder, dirs_exist_ok=True)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert same(weights(get_model()), weights(lm))


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:12], COMMIT.upper(), COMMIT + "0"])
def test_a_revision_that_is_no_commit_stops(revision, put, get_model, get_source, lm):
    shutil.copytree(lm, put("model", "org/model"), dirs_exist_ok=True)
    message = rf"revision: expected a commit hash \(40 hex digits\), got {revision!r}; .*huggingface\.co/"
    with pytest.raises(UserError, match=rf"fetch_model\.base\.{message}org/model "):
        get_model(revision=revision)
    with pytest.raises(UserError, match=rf"fetch\.sources\.alpaca\.{message}datasets/org/data "):
        get_source(revision=revision)


def test_a_repository_without_a_name_stops(get_model):
    with pytest.raises(UserError, match=r"fetch_model\.base\.name: missing"):
        get_model(name=None)


def test_what_the_cache_lacks_stops_offline_and_leaves_nothing(get_model, get_source, tmp_path):
    with pytest.raises(UserError, match=rf"fetch_model\.base: org/model at {COMMIT} could not be fetched"):
        get_model()
    with pytest.raises(UserError, match=rf"fetch\.sources\.alpaca: org/data at {COMMIT} could not be fetched"):
        get_source()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_gives_its_safetensors_and_no_pickle(get_model, lm, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(lm, folder)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "notes.md"):
        (folder / name).write_bytes(b"pickle")
    (folder / "checkpoint-10").mkdir()
    found = get_model(inputs=folder, **{"from": "folder", "name": None, "revision": None})
    assert {path.name for path in found.iterdir()} == {path.name for path in lm.iterdir()}
    assert same(weights(found), weights(lm))


def test_a_folder_without_safetensors_stops(get_model, lm, tmp_path):
    folder = tmp_path / "mine"
    pickled(lm, folder)
    with pytest.raises(UserError, match=r"mine: no \*\.safetensors, found .*pytorch_model\.bin.*save_pretrained"):
        get_model(inputs=folder, **{"from": "folder"})
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"mine: no model, config\.json is missing"):
        get_model(inputs=folder, **{"from": "folder"})
    with pytest.raises(UserError, match=r"nowhere: no such folder; set fetch_model\.\*\.inputs"):
        get_model(inputs=tmp_path / "nowhere", **{"from": "folder"})
    assert not (tmp_path / "model").exists()


def test_a_data_set_becomes_parquet(put, get_source, rows, jsonl):
    (put("dataset", "org/data") / "train.jsonl").write_bytes(jsonl(rows))
    found = get_source()
    assert [path.name for path in found.iterdir()] == ["alpaca.parquet"]
    assert pq.read_table(found / "alpaca.parquet").to_pylist() == rows
    once = (found / "alpaca.parquet").read_bytes()
    assert (get_source() / "alpaca.parquet").read_bytes() == once


def test_pairs_of_a_data_set_are_read_as_those_of_a_file(put, tmp_path, benchmark, jsonl):
    pairs = [{"prompt": question, "chosen": "그렇습니다.", "rejected": "그렇다."} for question in ("물은?", "불은?")]
    (put("dataset", "org/pairs") / "train.jsonl").write_bytes(jsonl(pairs))
    entry = ENTRY | {"from": "hub", "name": "org/pairs", "revision": COMMIT}
    settings = {"fetch_preferences": {"polite": entry | {"split": "train"}}, "decontaminate": RULE}
    places = {"inputs": tmp_path, "benchmark": benchmark, "held_out": tmp_path / "held_out.jsonl"}
    places["held_out"].write_bytes(b"")
    places["preferences"] = tmp_path / "polite.parquet"
    fetch_preferences.fetch_preferences(fetch_preferences.Params.model_validate(settings), pairs="polite", **places)
    assert read_table(places["preferences"])[["prompt", "chosen", "rejected"]].to_dict("records") == pairs
    settings["fetch_preferences"]["polite"] = entry
    with pytest.raises(UserError, match=r"fetch_preferences\.polite\.split: missing; a hub data set needs a split"):
        fetch_preferences.fetch_preferences(fetch_preferences.Params.model_validate(settings), pairs="polite", **places)


def test_a_configuration_and_a_split_choose_rows(put, get_source, rows, jsonl):
    folder = put("dataset", "org/data")
    files = {"ko": {"train": rows[:3], "test": rows[3:4]}, "en": {"train": rows[4:6]}}
    write_configs(folder, {config: {s: jsonl(r) for s, r in splits.items()} for config, splits in files.items()})
    found = get_source(config="ko", split="test") / "alpaca.parquet"
    assert pq.read_table(found).to_pylist() == rows[3:4]


def write_configs(folder, files):
    """Write {config: {split: JSON Lines}} with the README that names them."""
    configs = []
    for config, splits in files.items():
        (folder / config).mkdir()
        for split, content in splits.items():
            (folder / config / f"{split}.jsonl").write_bytes(content)
        parts = [{"split": split, "path": f"{config}/{split}.jsonl"} for split in splits]
        configs.append({"config_name": config, "data_files": parts})
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")


WRONG = {
    "no split": ({"split": None}, r"fetch\.sources\.alpaca\.split: missing"),
    "a split that is none": ({"split": "validation"}, r"fetch\.sources\.alpaca: org/data did not load: .*validation"),
    "a configuration that is none": ({"config": "fr"}, r"fetch\.sources\.alpaca: org/data did not load: .*fr"),
    "a broken file": ({}, r"fetch\.sources\.alpaca: org/data did not load"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_data_set_that_does_not_load_stops_by_name(wrong, put, get_source, rows, jsonl, tmp_path):
    settings, message = WRONG[wrong]
    content = b'{"instruction": "cut' if wrong == "a broken file" else jsonl(rows)
    (put("dataset", "org/data") / "train.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        get_source(**settings)
    assert not (tmp_path / "sources").exists()


def get_benchmark(origin, tasks, inputs, out, revisions=None):
    settings = {"from": origin, "inputs": "data", "revisions": revisions or {}}
    params = {"fetch_benchmark": settings, "evaluate": {"tasks": list(tasks), "shots": [0]}}
    fetch_benchmark.fetch_benchmark(fetch_benchmark.Params.model_validate(params), inputs=inputs, benchmark=out)


def test_the_benchmark_comes_from_the_hub_as_from_files(put, benchmark, tmp_path):
    content = {task: {p.stem: p.read_bytes() for p in (benchmark / task).glob("*.jsonl")} for task in TASKS}
    write_configs(put("dataset", "skt/kobest_v1"), content)
    for origin in ("hub", "files"):
        get_benchmark(origin, TASKS, benchmark, tmp_path / origin, {"skt/kobest_v1": COMMIT})
    for task in TASKS:
        for split in ("train", "validation", "test"):
            from_hub = read_jsonl(tmp_path / "hub" / task / f"{split}.jsonl")
            assert from_hub == read_jsonl(tmp_path / "files" / task / f"{split}.jsonl")
            assert len(from_hub) == 6


def test_tasks_of_several_repositories_come_each_at_its_commit(put, tmp_path, jsonl):
    history, exam = {"query": "조선을 세운 이는?", "answer": "(A)"}, {"question": "부채는?", "answer": 1}
    write_configs(put("dataset", "HAERAE-HUB/HAE_RAE_BENCH"), {"history": {"test": jsonl([history])}})
    write_configs(put("dataset", "HAERAE-HUB/KMMLU"), {"Accounting": {"test": jsonl([exam]), "dev": jsonl([exam] * 5)}})
    tasks, commits = ["haerae_history", "kmmlu_accounting"], {"HAERAE-HUB/HAE_RAE_BENCH": COMMIT}
    with pytest.raises(
        UserError, match=r"fetch_benchmark\.revisions\.HAERAE-HUB/KMMLU\.revision: expected a commit hash"
    ):
        get_benchmark("hub", tasks, tmp_path, tmp_path / "out", commits)
    get_benchmark("hub", tasks, tmp_path, tmp_path / "out", commits | {"HAERAE-HUB/KMMLU": COMMIT})
    found = {str(path.relative_to(tmp_path / "out")): read_jsonl(path) for path in (tmp_path / "out").rglob("*.jsonl")}
    assert found == {
        "haerae_history/test.jsonl": [history],
        "kmmlu_accounting/test.jsonl": [exam],
        "kmmlu_accounting/dev.jsonl": [exam] * 5,
    }
