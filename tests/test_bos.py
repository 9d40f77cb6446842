"""One beginning of text, where the tokenizer adds it: in training, held-out loss, use and the benchmark alike."""

import copy
import shutil
from functools import cache
from string import ascii_lowercase
from types import SimpleNamespace

import pytest
import torch

from stages.evaluate import Params, evaluate
from stages.lib.core.artifacts import read_jsonl, read_table
from stages.lib.core.errors import UserError
from stages.lib.evaluation.lm_eval_model import SharedLM
from stages.lib.models.loading import LoadConfig, load_model, load_tokenizer
from stages.lib.text import chat_format
from stages.lib.text.bos import added_bos
from tests.chats import encode_pairs, prompt_of
from tests.conftest import BENCHMARK
from tests.harness import ask_the_harness
from tests.training import prepare, train_here

ADDS = {"bos": ["<|start|> $A"], "bos and eos": ["<|start|> $A <|endoftext|>"], "nothing": []}
QUESTION, ANSWER = "김치찌개는?", "물을 붓고 끓입니다."
ROW = {"instruction": QUESTION, "output": ANSWER}
TASKS = ["copa", "hellaswag"]


@pytest.fixture(scope="module")
def tokenizers(tokenizer):
    """Copies of the tokenizer, by what they add to a text."""
    from tokenizers.processors import TemplateProcessing

    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in (tokenizer.bos_token, tokenizer.eos_token)]
    made = {name: copy.deepcopy(tokenizer) for name in ADDS}
    for name, templates in ADDS.items():
        for template in templates:
            processor = TemplateProcessing(single=template, special_tokens=ids)
            made[name].backend_tokenizer.post_processor = processor
    return made


@pytest.fixture(scope="module")
def models(build, save, tokenizers):
    """Folders of one random Llama, each with another of the tokenizers."""
    network = build("LlamaConfig", "LlamaForCausalLM", initializer_range=0.1)
    return {name: save(network, tokenizer) for name, tokenizer in tokenizers.items()}


@pytest.fixture(scope="module")
def answers(models, benchmark, new_folder):
    """Evaluate a model; return its log-likelihoods by task, shots and item."""

    @cache
    def of(name):
        settings = {"tasks": TASKS, "shots": [0, 2], "batch": 8, "dtype": "fp32", "quantize": None, "chat": False}
        params, folder = Params.model_validate({"threads": 1, "evaluate": settings}), new_folder()
        evaluate(params, "tiny", models[name], models[name], benchmark, folder / "checkpoints", folder / "eval")
        rows = read_table(folder / "eval" / "items.parquet")
        return {(row.task, row.shots, row.item): list(row.log_likelihoods) for row in rows.itertuples()}

    return of


@pytest.mark.parametrize("name", ["bos", "nothing"])
def test_the_benchmark_has_the_bits_that_the_harness_gives_it(name, answers, models, benchmark, new_folder):
    found = answers(name)
    for shots, theirs in ask_the_harness(new_folder(), models[name], benchmark, TASKS, [0, 2], batch=8).items():
        for task in TASKS:
            for sample in theirs["samples"][task]:
                expected = [response[0] for response in sample["filtered_resps"]]
                assert found[task, int(shots[0]), sample["doc_id"]] == expected


def test_the_beginning_changes_the_answers_and_an_end_does_not(answers):
    bos, both, nothing = (answers(name) for name in ("bos", "bos and eos", "nothing"))
    assert both == bos
    assert all(bos[key] != nothing[key] for key in bos if key[0] == "copa")  # longer prompts lose their beginning


@pytest.mark.parametrize("name", ADDS)
def test_one_tokenizer_call_tells_what_is_added(name, tokenizers):
    assert added_bos(tokenizers[name]) == ([] if name == "nothing" else [tokenizers[name].bos_token_id])


@pytest.mark.parametrize("name", ADDS)
def test_an_example_begins_as_the_tokenizer_does(name, tokenizers):
    tokenizer = tokenizers[name]
    (example,) = encode_pairs(tokenizer, "koalpaca", [ROW], 500)
    prompt = tokenizer(prompt_of("koalpaca", QUESTION, tokenizer.eos_token))["input_ids"]
    expected = prompt[:-1] if name == "bos and eos" else prompt
    start = example.answers[0][0]
    assert example.ids[:start] == expected
    assert example.ids.count(tokenizer.bos_token_id) == (name != "nothing")
    answer = tokenizer(f" {ANSWER}", add_special_tokens=False)["input_ids"]
    assert example.ids[start:] == [*answer, tokenizer.eos_token_id]


@pytest.mark.parametrize("name", ADDS)
def test_a_trained_model_is_used_as_it_was_trained(name, build, save, tokenizers, rows, tmp_path):
    base = save(build("LlamaConfig", "LlamaForCausalLM", initializer_range=0.02), tokenizers[name])
    folder = prepare(tmp_path / "run", base, rows[:4], rows[30:34])
    train_here(folder, budget={"unit": "steps", "amount": 1})
    used, (example,) = load_tokenizer(folder / "model"), encode_pairs(tokenizers[name], "koalpaca", [ROW], 500)
    chat = [{"role": "user", "content": QUESTION}]
    assert (
        used.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] == example.ids[: example.answers[0][0]]
    )
    model = load_model(base, LoadConfig(dtype="fp32"), threads=1)
    held = read_table(folder / "training.parquet")["nll_base"]
    for row, nll in zip(rows[30:34], held, strict=True):
        assert nll == pytest.approx(plain_nll(model, used, row), rel=1e-4)


@torch.inference_mode()
def plain_nll(model, tokenizer, row):
    """Sum of -log p of the answer and its end after the prompt that the tokenizer's chat template writes."""
    chat = [{"role": "user", "content": row["instruction"]}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    answer = [*tokenizer(f" {row['output']}", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    log_p = model(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return -sum(log_p[len(prompt) + n - 1, token].item() for n, token in enumerate(answer))


def test_a_format_that_begins_with_bos_too_stops(tokenizers, tmp_path, monkeypatch):
    formats = shutil.copytree(chat_format.FORMATS, tmp_path / "formats")
    monkeypatch.setattr(chat_format, "FORMATS", formats)
    koalpaca = (formats / "koalpaca.jinja").read_text(encoding="utf-8")
    (formats / "with_bos.jinja").write_text("{{- bos_token }}" + koalpaca, encoding="utf-8")
    with pytest.raises(UserError, match=r"its text begins with <\|start\|> twice; the tokenizer adds one by itself"):
        encode_pairs(tokenizers["bos"], "with_bos", [ROW], 500)
    (example,) = encode_pairs(tokenizers["nothing"], "with_bos", [ROW], 500)
    assert example.ids.count(tokenizers["nothing"].bos_token_id) == 1


def test_a_benchmark_text_that_begins_with_bos_gets_no_second_one(models, tokenizers):
    network = load_model(models["bos"], LoadConfig(dtype="fp32"), threads=1)
    shared = SharedLM(network, tokenizers["bos"], 8, added_bos(tokenizers["bos"]))
    assert shared.tok_encode("<|start|>한라산") == shared.tok_encode("한라산")
    assert shared.tok_encode("한라산", add_special_tokens=False) == shared.tok_encode("한라산")[1:]


def test_a_softmax_in_fp32_ends_the_ties_that_one_in_bf16_makes(models, tokenizers):
    premises = [item["premise"] for item in read_jsonl(BENCHMARK / "copa" / "test.jsonl")]
    requests = [SimpleNamespace(args=(premise, letter)) for premise in premises for letter in ascii_lowercase]
    shared = SharedLM(load_model(models["nothing"], LoadConfig(dtype="bf16"), 1), tokenizers["nothing"], 16, [])

    def ties():
        found = [likelihood for likelihood, _ in shared.loglikelihood(requests)]
        return sum(one == other for one, other in zip(found[::2], found[1::2], strict=True)) / len(premises) / 13

    in_fp32 = ties()
    shared.softmax_dtype = None  # the harness's default: the model's own dtype
    print("ties in fp32, in bf16:", in_fp32, ties())
    assert ties() > 0.005 > in_fp32
