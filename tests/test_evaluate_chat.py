"""Asked in its chat template, a model gets the figures that the harness gives with its own flag."""

import datetime
from types import SimpleNamespace

import pytest
from transformers.utils import chat_template_utils

from stages.evaluate import Params, evaluate
from stages.lib.core.artifacts import read_table
from stages.lib.core.errors import UserError
from stages.lib.evaluation.metrics import scores_by_task
from stages.lib.text.chat_format import chat_template
from tests.chats import stock, style, with_control_tokens
from tests.harness import ask_the_harness

TASKS = ["copa", "hellaswag"]
SHOTS = [0, 2]


@pytest.fixture(scope="module")
def model_with(build, save, tokenizer):
    """Make a model whose tokenizer has a chat template and, if asked, begins every text with BOS."""

    def make(template, bos=False):
        from tokenizers.processors import TemplateProcessing

        made = with_control_tokens(tokenizer)
        made.chat_template = template
        if bos:
            ids = [(made.bos_token, made.bos_token_id)]
            made.backend_tokenizer.post_processor = TemplateProcessing(single="<|start|> $A", special_tokens=ids)
        sizes = {"vocab_size": len(made), "initializer_range": 0.1, "max_position_embeddings": 512}
        return save(build("LlamaConfig", "LlamaForCausalLM", **sizes), made)

    return make


@pytest.fixture(scope="module")
def run(new_folder, benchmark):
    def stage(model, chat=True, tasks=TASKS):
        settings = {"tasks": tasks, "shots": SHOTS, "batch": 8, "dtype": "fp32", "quantize": None, "chat": chat}
        params, folder = Params.model_validate({"threads": 1, "evaluate": settings}), new_folder()
        evaluate(params, "tiny", model, model, benchmark, folder / "checkpoints", folder / "eval")
        return read_table(folder / "eval" / "items.parquet")

    return stage


TEMPLATES = {
    "llama3, with BOS": (stock("llama3"), True),
    "qwen3, marked": (style("qwen3"), False),
    "gemma2, with BOS": (stock("gemma2"), True),
    "exaone4": (stock("exaone4"), False),
    "koalpaca, with BOS": (chat_template("koalpaca", begins_with_bos=True), True),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_figures_and_likelihoods_are_those_of_the_harness_with_its_flag(name, model_with, run, new_folder, benchmark):
    model = model_with(*TEMPLATES[name])
    rows = run(model)
    scores = scores_by_task(rows)
    found = {(row.task, row.shots, row.item): list(row.log_likelihoods) for row in rows.itertuples()}
    theirs = ask_the_harness(new_folder(), model, benchmark, TASKS, SHOTS, batch=8, chat=True)
    for shots in SHOTS:
        for task in TASKS:
            result = theirs[f"{shots}-shot"]["results"][task]
            assert scores[f"{shots}-shot"][task]["accuracy"] == pytest.approx(result["acc,none"])
            assert scores[f"{shots}-shot"][task]["macro_f1"] == pytest.approx(result["f1,none"])
            for sample in theirs[f"{shots}-shot"]["samples"][task]:
                expected = [response[0] for response in sample["filtered_resps"]]
                assert found[task, shots, sample["doc_id"]] == expected


def test_examples_are_earlier_turns_of_the_conversation(model_with, new_folder, benchmark):
    model = model_with(stock("llama3"), bos=True)
    theirs = ask_the_harness(new_folder(), model, benchmark, ["copa"], [2], batch=8, chat=True)
    prompt, _ = theirs["2-shot"]["samples"]["copa"][0]["arguments"][0]
    assert prompt.count("<|start_header_id|>assistant<|end_header_id|>") == 3


def test_the_flag_changes_the_answers(model_with, run):
    model = model_with(stock("llama3"))
    asked, plain = (run(model, chat, ["copa"]) for chat in (True, False))
    pairs = zip(asked["log_likelihoods"], plain["log_likelihoods"], strict=True)
    assert all(list(one) != list(other) for one, other in pairs)


def test_the_day_of_an_evaluation_changes_no_answer(model_with, run, monkeypatch):
    model, found = model_with(stock("llama32")), []
    for day in ((2024, 7, 26), (2026, 10, 2)):
        clock = SimpleNamespace(now=lambda day=day: datetime.datetime(*day))
        monkeypatch.setattr(chat_template_utils, "datetime", clock)
        found.append(run(model, tasks=["copa"]))
    assert found[0].equals(found[1])


def test_a_model_without_a_chat_template_is_refused(lm, run):
    with pytest.raises(UserError, match=r"evaluate\.chat: true needs a chat template, and this tokenizer has none"):
        run(lm)
