"""What tests share: Korean text, tiny random models, the files stages read. Nothing here reaches the network."""

import stages  # noqa: F401  # isort: skip  # sets what numpy and torch read when they are imported

import json
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pandas as pd
import pyarrow as pa
import pytest

from stages import decontaminate, dedup, merge
from stages.lib.core.artifacts import read_jsonl, read_table, write_table
from stages.lib.core.runner import ALWAYS, IN_A_LOG, OFFLINE
from tests.clones import done, origin, own_clone, project, shared, team  # noqa: F401

HF_HOME = Path(tempfile.mkdtemp(prefix="hf-home-"))  # read when the libraries are imported, so set here
os.environ.update(ALWAYS | IN_A_LOG | OFFLINE | {"HF_HOME": str(HF_HOME), "HF_HUB_CACHE": str(HF_HOME / "hub")})

hypothesis.settings.register_profile("tests", derandomize=True, deadline=None, max_examples=30)
hypothesis.settings.load_profile("tests")

SUBJECTS = ("김치찌개", "한라산", "장보고", "양자역학", "전세 보증금", "다육식물", "허리 통증", "와이파이 공유기")
ASKS = (
    "{}?",
    "{} 알려 줘",
    "{}에 대해 아는 대로 설명해 주세요.",
    "처음 접하는 사람에게 {}의 뜻과 쓰임을 두 문장으로 소개하는 글을 써 주세요.",
    "다음 낱말을 넣어 어린이도 알기 쉬운 이야기를 지어 주세요. 낱말은 {}, 바다, 구름, 오래된 시계, 그리고 겨울입니다.",
)
COLUMNS = {"instruction": ["instruction"], "output": "output"}
DROP = {
    "empty": True,
    "duplicate": "exact",
    "max_characters": 200,
    "min_korean": 0.5,
    "min_korean_output": 0.5,
    "foreign_script": True,
    "broken_characters": True,
    "max_unreadable": 0.01,
}
HELD_OUT = {"sources": [], "share": 0.0, "max_rows": 1000, "seed": 1}
SLOWEST = [
    "test_dvc",
    "test_killed",
    "test_default",
    "test_team",
    "test_remotes",
    "test_processes",
    "test_train_processes",
]
BENCHMARK = Path(__file__).parent.parent / "data" / "benchmark_inputs"


def pytest_collection_modifyitems(items):
    """Run the files with few, slow tests first, so that no worker waits for one of them at the end."""
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


def pytest_unconfigure():
    shutil.rmtree(HF_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def hub_cache():
    """Where the hub's client looks, and finds what a test puts there."""
    return HF_HOME / "hub"


@pytest.fixture(scope="session")
def new_folder(tmp_path_factory):
    """Make an empty folder; for tests that need several, or run many examples."""
    return lambda: tmp_path_factory.mktemp("folder")


@pytest.fixture(scope="session")
def questions():
    """Forty instructions from three tokens to about sixty."""
    return [ask.format(subject) for subject in SUBJECTS for ask in ASKS]


@pytest.fixture(scope="session")
def rows(questions):
    return [{"instruction": q, "output": f"{q.split()[0]}의 답은 {len(q)}자입니다."} for q in questions]


@pytest.fixture(scope="session")
def jsonl():
    return lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.fixture(scope="session")
def run_merge(new_folder, jsonl):
    """Merge {source: rows, or (suffix, bytes)}; `columns`, `drop` and `held_out` change the defaults."""

    def run(files, columns=None, drop=None, held_out=None, out=None):
        folder = new_folder()
        for source, content in files.items():
            suffix, data = content if isinstance(content, tuple) else (".jsonl", jsonl(content))
            path = folder / "sources" / source / f"{source}{suffix}"
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
        sources = [{"name": source} | COLUMNS | (columns or {}).get(source, {}) for source in files]
        settings = {"sources": sources, "drop": DROP | (drop or {}), "held_out": HELD_OUT | (held_out or {})}
        params = merge.Params.model_validate({"merge": settings})
        out = out or folder
        raw, held, dropped = out / "raw.parquet", out / "held_out.jsonl", out / "dropped.parquet"
        merge.merge(params, folder / "sources", raw, held, dropped)
        held_rows = pd.DataFrame(read_jsonl(held), columns=merge.COLUMNS)
        return SimpleNamespace(raw=read_table(raw), held_out=held_rows, dropped=read_table(dropped), folder=out)

    return run


@pytest.fixture(scope="session")
def write_raw(new_folder):
    """Write raw.parquet with these instructions; ids are `row0`, `row1`, ... unless given."""

    def write(instructions, ids=None, sources=None, outputs=None, turns=None):
        path = new_folder() / "raw.parquet"
        count = len(instructions)
        columns = {
            "id": ids or [f"row{number}" for number in range(count)],
            "source": sources or ["life"] * count,
            "instruction": instructions,
            "output": outputs or [f"{number}번째 답" for number in range(count)],
            "turns": turns or [None] * count,
            "final": [None] * count,
        }
        write_table(path, columns, merge.RAW)
        return path

    return write


@pytest.fixture(scope="session")
def write_leaks(new_folder):
    """Write leaks.parquet of (id, task, split, item, kind, drop)."""

    def write(*leaks):
        path = new_folder() / "leaks.parquet"
        columns = ["id", "task", "split", "item", "kind", "drop"]
        rows = pd.DataFrame(leaks, columns=columns).assign(share=1.0, text="행", item_text="문항")
        write_table(path, rows, decontaminate.LEAKS)
        return path

    return write


@pytest.fixture(scope="session")
def write_duplicates(new_folder):
    """Write duplicates.parquet of (id, of, drop)."""

    def write(*pairs):
        path = new_folder() / "duplicates.parquet"
        rows = pd.DataFrame(pairs, columns=["id", "of", "drop"]).assign(kind="lexical", similarity=0.9)
        write_table(path, rows, dedup.DUPLICATES)
        return path

    return write


@pytest.fixture(scope="session")
def write_vectors(new_folder):
    """Write embeddings.parquet beside nothing else."""

    def write(ids, vectors):
        path = new_folder() / "embeddings.parquet"
        width = vectors.shape[1]
        schema = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32(), width))])
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype("float32").ravel()), width)
        write_table(path, {"id": ids, "vector": column}, schema)
        return path

    return write


@pytest.fixture(scope="session")
def tokenizer(questions):
    """A byte-level BPE without a start or an end of its own."""
    from stages.lib.models.toy import Small
    from stages.lib.models.toy_training import make_tokenizer

    numbers = dict.fromkeys(Small.model_fields, 1) | {"vocabulary": 400, "learning_rate": 0.1, "whole": False}
    made = make_tokenizer(questions, Small.model_validate(numbers))
    made.backend_tokenizer.post_processor = None
    return made


@pytest.fixture(scope="session")
def build(tokenizer):
    """Build a tiny random model of an architecture, with weights large enough that its logits differ."""
    import torch
    import transformers

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }

    def make(config, model, seed=1, **changes):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        settings = getattr(transformers, config)(**(sizes | {"vocab_size": len(tokenizer)} | changes))
        return getattr(transformers, model)(settings).eval()

    return make


@pytest.fixture(scope="session")
def save(new_folder):
    """Save a model and its tokenizer in a new folder."""

    def write(model, tokenizer):
        folder = new_folder()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def lm(build, save, tokenizer):
    """Folder of a tiny random GPT-NeoX."""
    return save(build("GPTNeoXConfig", "GPTNeoXForCausalLM"), tokenizer)


@pytest.fixture(scope="session")
def base(build, save, tokenizer):
    """A base model that has something to learn: its weights are small."""
    return save(build("GPTNeoXConfig", "GPTNeoXForCausalLM", initializer_range=0.02), tokenizer)


@pytest.fixture(scope="session")
def encoder(build, save, tokenizer):
    """Folder of a tiny random RoBERTa with a pooler."""
    return save(build("RobertaConfig", "RobertaModel", max_position_embeddings=258), tokenizer)


@pytest.fixture(scope="session")
def benchmark(new_folder):
    """The bundled benchmark, cut to six items of each split."""
    folder = new_folder()
    for path in sorted(BENCHMARK.glob("*/*.jsonl")):
        out = folder / path.parent.name / path.name
        out.parent.mkdir(exist_ok=True)
        out.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:6]))
    return folder
