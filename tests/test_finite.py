"""A model that computes NaN stops every stage that uses it, with the place and what to try; nothing is written."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from stages import embed, evaluate, ppl, rate
from stages.lib.core.artifacts import read_jsonl
from stages.lib.core.errors import UserError
from tests.test_rate import SETTINGS
from tests.training import LORA, prepare, train_here


@pytest.fixture
def spoiled(new_folder):
    """Copy a model; change its weights by name."""

    def make(model, change):
        folder = shutil.copytree(model, new_folder() / "spoiled")
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


def head_of_nan(weights):
    weights["embed_out.weight"].fill_(float("nan"))


def token_of_nan(token):
    def change(weights):
        weights["gpt_neox.embed_in.weight"][token] = float("nan")

    return change


def evaluate_on(benchmark, model, out, shots=(0,)):
    settings = {"tasks": ["copa"], "shots": list(shots), "batch": 4, "dtype": "fp32", "quantize": None, "chat": False}
    params = evaluate.Params.model_validate({"threads": 1, "evaluate": settings})
    evaluate.evaluate(params, "tuned", model, model, benchmark, out / "checkpoints", out / "eval")


def test_an_evaluation_names_arm_task_and_item(spoiled, lm, benchmark, tmp_path):
    with pytest.raises(
        UserError, match=r"tuned: copa, 0-shot, item 0: the log-likelihoods are nan, nan.*evaluate\.dtype"
    ):
        evaluate_on(benchmark, spoiled(lm, head_of_nan), tmp_path)
    assert list(tmp_path.rglob("*")) == []


def test_an_evaluation_stops_at_the_only_item_that_is_not_finite(spoiled, lm, benchmark, tokenizer, tmp_path):
    items = read_jsonl(benchmark / "copa" / "test.jsonl")
    others = set(tokenizer("\n".join(" ".join(map(str, item.values())) for item in items[:3] + items[4:]))["input_ids"])
    rare = next(token for token in tokenizer(items[3]["premise"])["input_ids"][1:-1] if token not in others)
    with pytest.raises(UserError, match=r"tuned: copa, 0-shot, item 3:"):
        evaluate_on(benchmark, spoiled(lm, token_of_nan(rare)), tmp_path)


def test_perplexities_stop(spoiled, lm, write_raw, questions, tmp_path):
    settings = {"max_tokens": 32, "add_bos": False, "batch_tokens": 256, "dtype": "fp32"}
    params = ppl.Params.model_validate({"threads": 1, "ppl": settings})
    places = tmp_path / "checkpoints", tmp_path / "ppl.parquet"
    with pytest.raises(UserError, match=r"40 of 40 perplexities are not finite in its dtype; try ppl\.dtype: fp32"):
        ppl.ppl(params, write_raw(questions), spoiled(lm, head_of_nan), *places)
    assert list(tmp_path.rglob("*.parquet")) == []


def test_ratings_stop(spoiled, lm, write_raw, questions, tmp_path):
    settings = SETTINGS | {"judge": "likelihood"}
    params = rate.Params.model_validate({"threads": 1, "rate": settings})
    unread = (tmp_path / name for name in ("leaks", "duplicates"))
    places = tmp_path / "ledger", tmp_path / "checkpoints", tmp_path / "ratings.parquet"
    with pytest.raises(UserError, match=r"40 of 40 ratings are not finite in its dtype; try rate\.dtype: fp32"):
        rate.rate(params, write_raw(questions), *unread, spoiled(lm, head_of_nan), *places)
    assert list(tmp_path.rglob("*.parquet")) == []


def test_embeddings_stop(spoiled, encoder, write_raw, questions, tmp_path):
    def change(weights):
        weights["embeddings.word_embeddings.weight"].fill_(float("inf"))

    settings = {"max_tokens": 32, "pooling": "mean", "batch_tokens": 256, "dtype": "fp32"}
    params = embed.Params.model_validate({"threads": 1, "embed": settings})
    places = tmp_path / "checkpoints", tmp_path / "embeddings.parquet"
    with pytest.raises(UserError, match=r"40 of 40 vectors are not finite in its dtype; try embed\.dtype: fp32"):
        embed.embed(params, write_raw(questions), spoiled(encoder, change), *places)
    assert list(tmp_path.rglob("*.parquet")) == []


@pytest.fixture
def folder(tmp_path, base, rows):
    return prepare(tmp_path / "run", base, rows[:16], held_out=())


def nothing_written(folder):
    return not any((folder / name).exists() for name in ("model", "training.json", "training.parquet"))


def test_a_training_stops_at_the_step_whose_loss_is_not_finite(folder, monkeypatch):
    steps = nan_at_step(monkeypatch, 4)
    with pytest.raises(UserError, match=r"step 4 of 12: the loss is nan; try a lower train\.learning_rate"):
        train_here(folder)
    assert (steps[-1], nothing_written(folder)) == (4, True)


def test_a_training_of_micro_batches_stops_at_the_step_too(folder, monkeypatch):
    nan_at_step(monkeypatch, 5)  # of the model's calls, two of which make a step
    with pytest.raises(UserError, match="step 3 of 12: the loss is nan"):
        train_here(folder, micro_batch=2, adapter=LORA)


def nan_at_step(monkeypatch, step):
    """Make the model's loss NaN at one of its calls; return the numbers of the calls, as they come."""
    from transformers import GPTNeoXForCausalLM

    plain, calls = GPTNeoXForCausalLM.forward, []

    def forward(self, *args, **kwargs):
        output = plain(self, *args, **kwargs)
        calls.append(len(calls) + 1)
        if calls[-1] == step:
            output.loss = output.loss * float("nan")
        return output

    monkeypatch.setattr(GPTNeoXForCausalLM, "forward", forward)
    return calls


def test_a_training_stops_at_the_step_whose_gradient_is_not_finite(folder, monkeypatch):
    from transformers import GPTNeoXForCausalLM

    plain, calls = GPTNeoXForCausalLM.forward, []

    def forward(self, *args, **kwargs):
        output = plain(self, *args, **kwargs)
        calls.append(output.loss.item())
        if len(calls) == 12:  # the last step, which no later loss would tell of
            output.loss.register_hook(lambda gradient: gradient * float("inf"))
        return output

    monkeypatch.setattr(GPTNeoXForCausalLM, "forward", forward)
    with pytest.raises(UserError, match=r"step 12 of 12: the norm of the gradient is (nan|inf); try"):
        train_here(folder)
    assert nothing_written(folder)


def test_a_base_of_nan_stops_before_the_training(spoiled, base, rows, tmp_path, monkeypatch):
    calls = nan_at_step(monkeypatch, 0)
    folder = prepare(tmp_path / "run", spoiled(base, head_of_nan), rows[:16], held_out=rows[30:])
    with pytest.raises(UserError, match=r"base: the loss of 10 of 10 held-out answers is not finite.*line 1: nan"):
        train_here(folder)
    assert nothing_written(folder)
    assert len(calls) < 12
