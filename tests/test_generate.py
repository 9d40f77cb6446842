"""Every model answers every prompt, and an answer depends on its prompt only."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model

from stages.evaluate import Evaluate
from stages.generate import Params, generate
from stages.lib.core.artifacts import read_json, read_table, write_jsonl
from stages.lib.core.errors import UserError
from stages.lib.models import loading
from stages.lib.models.loading import load_tokenizer
from stages.lib.models.lora import load_network
from stages.lib.scoring.generation import end_ids_of, greedy
from stages.lib.text.chat_format import render, set_format
from stages.lib.text.conversations import Turn

NEW = 8
CONSTRAINT = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


@pytest.fixture(scope="module")
def network(build):
    return build("GPTNeoXConfig", "GPTNeoXForCausalLM")


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def model(request, build):
    made = build("GPTNeoXConfig", "GPTNeoXForCausalLM")
    return made.to(torch.bfloat16) if request.param == "bf16" else made


@pytest.fixture(scope="module")
def prompts(tokenizer, questions):
    """Thirty prompts, among them several of equal length."""
    ids = {question: tokenizer(question, add_special_tokens=False)["input_ids"] for question in questions[:30]}
    return ids | {f"{question} ": tokens[1:] + tokens[:1] for question, tokens in list(ids.items())[:9]}


def write(model, prompts, budget=512, stops=frozenset({0}), count=NEW):
    found = greedy(model, prompts, stops, count, budget, "test")
    return dict(zip(prompts, found, strict=True))


def one_by_one(model, prompt, stops):
    """Write greedily with one plain forward pass per token."""
    ids = list(prompt)
    for _ in range(NEW):
        with torch.inference_mode():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token in stops:
            return ids[len(prompt) :], True
        ids.append(token)
    return ids[len(prompt) :], False


def test_answers_are_those_of_a_plain_loop(network, prompts):
    assert write(network, prompts) == {name: one_by_one(network, ids, {0}) for name, ids in prompts.items()}


def test_an_answer_is_the_same_at_any_batch_size(model, prompts):
    most = max(map(len, prompts.values())) + NEW
    small, *larger = (write(model, prompts, budget) for budget in (1, 8 * most, 24 * most, len(prompts) * most))
    assert len({tuple(answer.tokens) for answer in small.values()}) > 10
    assert all(answers == small for answers in larger)


def test_an_answer_is_the_same_in_any_order_and_without_the_others(model, prompts):
    together = write(model, prompts)
    assert write(model, dict(reversed(prompts.items()))) == together
    name = list(prompts)[3]
    assert write(model, {name: prompts[name]}) == {name: together[name]}


def test_the_first_of_several_ends_stops_an_answer(network, prompts):
    name, ids = next(iter(prompts.items()))
    free = write(network, {name: ids}, stops={0})[name].tokens
    stopped = write(network, {name: ids}, stops={0, free[2]})[name]
    assert (stopped.tokens, stopped.ended) == (free[: free.index(free[2])], True)


def test_ends_are_those_of_the_model_and_of_its_tokenizer(build, tokenizer):
    network = build("GPTNeoXConfig", "GPTNeoXForCausalLM")
    network.generation_config.eos_token_id = [7, 9]
    assert end_ids_of(network, tokenizer) == {7, 9, tokenizer.eos_token_id}
    network.generation_config.eos_token_id = None
    assert end_ids_of(network, tokenizer) == {tokenizer.eos_token_id}


def test_a_penalty_in_the_models_own_settings_changes_no_answer(build, prompts):
    network = build("GPTNeoXConfig", "GPTNeoXForCausalLM")
    plain = write(network, prompts)
    network.generation_config.repetition_penalty = 5.0
    assert write(network, prompts) == plain


def test_logits_that_are_not_finite_stop_and_name_the_prompt(build, prompts):
    network = build("GPTNeoXConfig", "GPTNeoXForCausalLM")
    network.gpt_neox.final_layer_norm.weight.data[0] = float("nan")
    with pytest.raises(UserError, match=r"not finite after prompt .*; generate in fp32, or train again"):
        write(network, prompts)


def asked(questions):
    return [{"key": f"p{n}", "prompt": question} | CONSTRAINT for n, question in enumerate(questions)]


@pytest.fixture
def run(lm, tmp_path, questions):
    """Run the stage on ten prompts, unless others are given; return its table."""

    def answered(model=lm, base=lm, rows=None, files=("prompts.jsonl",), end=None, chat="koalpaca", **changes):
        write_jsonl(tmp_path / "prompts.jsonl", asked(questions[:10]) if rows is None else rows)
        settings = {"prompts": "data/prompts", "max_new_tokens": NEW, "batch_tokens": 512, "dtype": "fp32"}
        settings |= {"files": list(files), "quantize": None} | changes
        train = {"format": chat, "end": end, "batch": 4}
        params = Params.model_validate({"threads": 1, "generate": settings, "train": train})
        generate(params, "ours", model, base, tmp_path, tmp_path / "answers.parquet")
        return read_table(tmp_path / "answers.parquet")

    return answered


def test_a_row_says_what_was_asked_and_answered(run, lm, network, questions):
    found = run()
    tokenizer = load_tokenizer(lm)
    set_format(tokenizer, "koalpaca", None, lm)
    stops = {tokenizer.eos_token_id}
    assert list(found["id"]) == [f"p{n}" for n in range(10)]
    assert list(found["prompt"]) == questions[:10]
    assert json.loads(found["constraints"][0]) == [{"id": "punctuation:no_comma", "kwargs": {}}]
    assert found["final"].isna().all()
    for row in found.itertuples():
        text, _ = render(tokenizer, [Turn("user", row.prompt)], as_prompt=True)
        tokens, ended = one_by_one(network, tokenizer(text, add_special_tokens=False)["input_ids"], stops)
        assert (row.answer, row.tokens, row.ended) == (tokenizer.decode(tokens).strip(), len(tokens), ended)


def test_a_final_answer_is_kept(run, questions):
    rows = asked(questions[:2])
    found = run(rows=[rows[0] | {"final": "27"}, rows[1]])
    assert found["final"].fillna("none").tolist() == ["27", "none"]


def test_the_base_stops_at_the_end_that_arms_learn(run, lm, network, questions):
    tokenizer = load_tokenizer(lm)
    set_format(tokenizer, "koalpaca", None, lm)
    text, _ = render(tokenizer, [Turn("user", questions[0])], as_prompt=True)
    free, _ = one_by_one(network, tokenizer(text, add_special_tokens=False)["input_ids"], set())
    end = tokenizer.convert_ids_to_tokens(free[3])
    row = run(rows=asked(questions[:1]), end=end).iloc[0]
    assert (row["tokens"], row["ended"]) == (free.index(free[3]), True)


def test_an_adapter_answers_on_its_base(run, lm, build, tokenizer, tmp_path, new_folder):
    config = LoraConfig(r=4, target_modules=["query_key_value", "dense"], init_lora_weights=False)
    torch.manual_seed(1)
    adapted = get_peft_model(build("GPTNeoXConfig", "GPTNeoXForCausalLM"), config)
    adapter, merged = new_folder(), new_folder()
    adapted.save_pretrained(adapter)
    adapted.merge_and_unload().save_pretrained(merged)
    for folder in (adapter, merged):
        tokenizer.save_pretrained(folder)
    assert run(adapter).equals(run(merged))
    assert not run(adapter).equals(run(lm))


def test_in_4_bits_the_answers_are_those_of_the_network_that_is_evaluated(run, build, save, tokenizer):
    pytest.importorskip("bitsandbytes")
    wide = save(build("GPTNeoXConfig", "GPTNeoXForCausalLM", hidden_size=64), tokenizer)
    found = run(wide, wide, quantize="nf4")
    evaluated = Evaluate(tasks=["copa"], shots=[0], batch=8, dtype="fp32", quantize="nf4", chat=False)
    network = load_network(wide, wide, evaluated.load_config(), 1)
    set_format(tokenizer, "koalpaca", None, wide)
    texts = [render(tokenizer, [Turn("user", prompt)], as_prompt=True)[0] for prompt in found["prompt"]]
    ids = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts}
    answers = write(network, ids, stops={tokenizer.eos_token_id}).values()
    assert network.is_loaded_in_4bit
    assert list(found["answer"]) == [tokenizer.decode(answer.tokens).strip() for answer in answers]
    assert run(wide, wide, quantize="nf4", batch_tokens=4096).equals(found)
    assert list(run(wide, wide)["answer"]) != list(found["answer"])


def test_4_bits_need_bitsandbytes_and_a_model_that_is_not_in_4_bits_yet(run, lm, new_folder, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"quantize: nf4 needs bitsandbytes; `pip install .*\[4bit\]"):
        run(quantize="nf4")
    saved = new_folder() / "saved"
    shutil.copytree(lm, saved)
    config = read_json(lm / "config.json")
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is already in 4 bits; set quantize: null"):
        run(saved, saved, quantize="nf4")


def test_a_batch_that_does_not_fit_says_what_to_lower(network, prompts, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("stages.lib.scoring.generation.continuation", full)
    with pytest.raises(UserError, match=r"out of memory .*; lower the tokens of a batch \(it has at least 8 answers\)"):
        write(network, prompts)


def test_without_files_the_table_is_empty_and_no_model_is_read(run, tmp_path):
    found = run(model=tmp_path / "nowhere", base=tmp_path / "nowhere", files=())
    assert len(found) == 0
    assert list(found) == ["id", "prompt", "constraints", "final", "answer", "tokens", "ended"]


def test_a_prompt_that_is_too_long_stops_before_anything_is_written(run, questions, monkeypatch):
    monkeypatch.setattr("stages.lib.scoring.generation.continuation", None)  # would fail if it were called
    rows = [*asked(questions[:3]), {"key": "endless", "prompt": "바다는 왜 짤까? " * 90} | CONSTRAINT]
    with pytest.raises(
        UserError, match=r"prompt endless has \d+ tokens, .* more than the 256 that the model takes; shorten"
    ):
        run(rows=rows)


def test_two_runs_write_equal_bytes(run, tmp_path):
    run()
    first = (tmp_path / "answers.parquet").read_bytes()
    run(batch_tokens=4096)
    assert (tmp_path / "answers.parquet").read_bytes() == first
