"""A conversation is rendered as by `apply_chat_template`, and only its answers and their ends are learned."""

import copy
import datetime
from types import SimpleNamespace

import pytest
from transformers import GenerationConfig
from transformers.utils import chat_template_utils

from stages.lib.core.artifacts import read_json, read_table
from stages.lib.core.errors import UserError
from stages.lib.models.loading import load_tokenizer
from stages.lib.text.chat_format import encode
from stages.lib.text.conversations import Turn
from tests.chats import OURS, SHAPES, STYLES, TEMPLATES, messages, shown, stock, style, template_of, with_control_tokens
from tests.training import prepare, train_here

SHOWN = (TEMPLATES / "shown.txt").read_text(encoding="utf-8")
"""What is learned of each shape in each format, in brackets: printed by this test and checked by eye, line by line."""
REWRITING = {"qwen3": 8, "exaone4": 1, "hyperclovax": 4}
"""Shapes whose earlier answers a template rewrites."""


@pytest.fixture(scope="module")
def tokenizers(tokenizer):
    """The tokenizer with control tokens, and the same with a given chat template."""
    made = with_control_tokens(tokenizer)

    def with_template(template):
        made.chat_template = template
        return made

    return with_template


@pytest.fixture
def on_a_day(monkeypatch):
    """Set the day that chat templates see as today."""

    def choose(*day):
        clock = SimpleNamespace(now=lambda: datetime.datetime(*day))
        monkeypatch.setattr(chat_template_utils, "datetime", clock)

    return choose


def learned_of(tokenizer):
    (*examples,) = encode(tokenizer, list(SHAPES.values()), 1000)
    return dict(zip(SHAPES, examples, strict=True))


@pytest.mark.parametrize("name", [*OURS, *STYLES])
def test_what_is_learned_of_each_shape_is_what_was_checked_by_eye(name, tokenizers):
    tokenizer = tokenizers(template_of(name))
    lines = [f"{shape}: {shown(tokenizer, example)}" for shape, example in learned_of(tokenizer).items()]
    print("\n".join([f"== {name}", *lines]))
    (block,) = [block for block in SHOWN.split("== ") if block.startswith(f"{name}\n")]
    assert lines == block.splitlines()[1:]


@pytest.mark.parametrize("template", [stock, style])
@pytest.mark.parametrize("name", STYLES)
def test_text_and_tokens_are_those_of_apply_chat_template(name, template, tokenizers, on_a_day):
    on_a_day(2024, 7, 26)
    tokenizer = tokenizers(template(name))
    taken = {shape: example for shape, example in learned_of(tokenizer).items() if not example.refused}
    assert len(taken) >= 7
    for shape, example in taken.items():
        turns = SHAPES[shape]
        if name == "gemma2" and turns[0].role == "system":  # it refuses a system text
            turns = [Turn("user", f"{turns[0].text}\n\n{turns[1].text}"), *turns[2:]]
        text = tokenizer.apply_chat_template(messages(turns), tokenize=False)
        assert tokenizer.decode(example.ids).encode() == text.encode()
        assert example.ids == tokenizer.apply_chat_template(messages(turns))["input_ids"]


@pytest.mark.parametrize("name", [*OURS, *STYLES])
def test_the_text_before_an_answer_is_its_prompt_in_use(name, tokenizers, on_a_day):
    on_a_day(2024, 7, 26)
    tokenizer = tokenizers(template_of(name))
    for shape, example in learned_of(tokenizer).items():
        turns = SHAPES[shape]
        if example.refused or (name == "gemma2" and turns[0].role == "system"):
            continue
        places = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
        for number, (start, _) in zip(places[-len(example.answers) :], example.answers, strict=True):
            used = tokenizer.apply_chat_template(messages(turns[:number]), add_generation_prompt=True)["input_ids"]
            assert example.ids[:start] == used
            assert not tokenizer.decode(used).endswith(" ")


@pytest.mark.parametrize("name", STYLES)
def test_marked_answers_are_those_found_without_marks(name, tokenizers):
    found = learned_of(tokenizers(stock(name)))
    marked = learned_of(tokenizers(style(name)))
    assert sum(example.rewritten for example in found.values()) == REWRITING.get(name, 0)
    assert not any(example.rewritten for example in marked.values())
    for shape, example in found.items():
        if not example.refused:
            assert marked[shape].ids == example.ids
            assert marked[shape].answers[-len(example.answers) :] == example.answers
        if not example.rewritten and not example.refused:
            assert len(marked[shape].answers) == sum(turn.role == "assistant" for turn in SHAPES[shape])


@pytest.mark.parametrize("name", [name for name in STYLES if not name.startswith("gemma")])  # theirs mark other ends
def test_labels_are_the_assistant_mask_of_transformers_where_there_is_one(name, tokenizers, on_a_day):
    on_a_day(2024, 7, 26)
    tokenizer = tokenizers(style(name))
    for shape, example in learned_of(tokenizer).items():
        theirs = tokenizer.apply_chat_template(
            messages(SHAPES[shape]), return_dict=True, return_assistant_tokens_mask=True
        )
        ours = [any(start <= place < stop for start, stop in example.answers) for place in range(len(example.ids))]
        assert [bool(mark) for mark in theirs["assistant_masks"]] == ours


def test_an_answer_that_begins_with_a_space_is_learned_even_if_offsets_leave_spaces_out(tokenizers):
    from tokenizers import processors

    tokenizer = copy.deepcopy(tokenizers(template_of("koalpaca")))
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)  # as in GPT-NeoX
    theirs = tokenizer.apply_chat_template(messages(SHAPES["ua"]), return_dict=True, return_assistant_tokens_mask=True)
    assert sum(theirs["assistant_masks"]) == 0
    assert shown(tokenizer, encode(tokenizer, [SHAPES["ua"]], 500)[0]).endswith("### 답변:⟦ 액체<|endoftext|>⟧")


def test_a_template_that_marks_nothing_stops(tokenizers):
    template = stock("qwen25") + "{% if false %}{% generation %}{% endgeneration %}{% endif %}"
    with pytest.raises(UserError, match=r"has \{% generation %\}, but marks no answer with it in: '<\|im_start\|>sys"):
        encode(tokenizers(template), [SHAPES["ua"]], 500)


@pytest.mark.parametrize("end", ["", "\n", "###"])
def test_an_answer_without_an_end_token_stops(end, tokenizers):
    template = stock("qwen25").replace("message.content + '<|im_end|>'", f"message.content + {end!r}")
    with pytest.raises(UserError, match=r"no token ends the answer '액체.*so the model could not learn to stop"):
        encode(tokenizers(template), [SHAPES["ua"]], 500)


def test_a_template_that_writes_bos_twice_stops(tokenizers):
    with pytest.raises(UserError, match=r"begins with <\|start\|> twice"):
        encode(tokenizers("{{- bos_token }}" + stock("llama3")), [SHAPES["ua"]], 500)


def test_a_date_in_a_template_does_not_change_from_day_to_day(tokenizers, on_a_day):
    tokenizer = tokenizers(stock("llama32"))
    found = []
    for day in ((2024, 7, 26), (2026, 10, 2)):
        on_a_day(*day)
        found.append(encode(tokenizer, [SHAPES["suaua"]], 500))
        assert f"{day[0]}" in tokenizer.apply_chat_template(messages(SHAPES["ua"]), tokenize=False)
    assert found[0] == found[1]


def test_an_answer_gets_no_space_from_a_tokenizer_that_begins_every_text_with_one(tokenizers):
    from tokenizers import normalizers

    tokenizer = copy.deepcopy(tokenizers(stock("exaone35")))
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend(" ")  # as Llama 2's do with `▁`
    (example,) = encode(tokenizer, [SHAPES["uaua"]], 500)
    assert example.ids == tokenizer.apply_chat_template(messages(SHAPES["uaua"]))["input_ids"]


def test_a_token_that_would_cross_from_the_prompt_into_the_answer_is_split_there(tokenizers):
    template = (
        "{% for message in messages %}{{ message.content }}{{ '<|im_end|>' if loop.index0 % 2 else '' }}{% endfor %}"
    )
    tokenizer = tokenizers(template)
    whole = tokenizer("알려 줘", add_special_tokens=False)["input_ids"]
    assert len(whole) < sum(len(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in ("알려 ", "줘"))
    (example,) = encode(tokenizer, [[Turn("user", "알려 "), Turn("assistant", "줘")]], 500)
    assert shown(tokenizer, example) == "알려 ⟦줘<|im_end|>⟧"
    assert example.ids[: example.answers[0][0]] == tokenizer("알려 ", add_special_tokens=False)["input_ids"]


def test_a_cut_takes_answers_from_the_end(tokenizers):
    tokenizer = tokenizers(stock("qwen25"))
    (whole,) = encode(tokenizer, [SHAPES["uaua"]], 500)
    (first, start), (last, stop) = whole.answers
    for limit in range(1, len(whole.ids) + 2):
        (example,) = encode(tokenizer, [SHAPES["uaua"]], limit)
        assert example.ids == whole.ids[:limit]
        assert example.cut == (limit < stop)
        expected = [(first, min(start, limit))] * (limit > first) + [(last, min(stop, limit))] * (limit > last)
        assert example.answers == expected


@pytest.fixture(scope="module")
def base_in(build, save, tokenizers):
    """A base whose tokenizer has the chat template of a style."""

    def make(template):
        tokenizer = copy.deepcopy(tokenizers(template))
        network = build("LlamaConfig", "LlamaForCausalLM", initializer_range=0.02, vocab_size=len(tokenizer))
        return save(network, tokenizer)

    return make


def as_rows(shapes):
    pairs = [{"instruction": SHAPES[shape][-2].text, "output": SHAPES[shape][-1].text} for shape in shapes]
    turns = [[turn._asdict() for turn in SHAPES[shape]] for shape in shapes]
    return [pair | ({"turns": said} if len(said) > 2 else {}) for pair, said in zip(pairs, turns, strict=True)]


ONE_STEP = {"format": "tokenizer", "budget": {"unit": "steps", "amount": 1}, "max_tokens": 200}


@pytest.mark.parametrize(
    ("name", "end"), [("llama3", "<|eot_id|>"), ("qwen3", "<|im_end|>"), ("gemma2", "<end_of_turn>")]
)
def test_a_base_is_trained_by_its_own_template_and_keeps_it(name, end, base_in, tmp_path):
    shapes = ["ua", "uaua", "sua", "uata"]
    base = base_in(stock(name))
    folder = train_here(prepare(tmp_path / "run", base, as_rows(shapes), as_rows(shapes)), **ONE_STEP)
    tokenizer = load_tokenizer(folder / "model")
    assert tokenizer.chat_template == stock(name)
    stops = read_json(folder / "model" / "generation_config.json")["eos_token_id"]
    assert stops == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end)]
    found = read_json(folder / "training.json")
    assert found["rows_last_answer"] == found["held_out_last_answer"] == (2 if name == "qwen3" else 0)
    assert found["rows_refused"] == found["held_out_refused"] == (1 if name == "gemma2" else 0)
    held = read_table(folder / "training.parquet")
    examples = encode(tokenizer, [SHAPES[shape] for shape in shapes], 200)
    assert held["tokens"].tolist() == [sum(stop - start for start, stop in one.answers) for one in examples]
    assert held["nll_base"].tolist() == pytest.approx([plain_nll(base, one) for one in examples], rel=1e-4)


def plain_nll(folder, example):
    """Sum of -log p of all answers, in one forward pass over the whole conversation."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([example.ids or [0]])).logits[0]
    log_p = logits.double().log_softmax(-1)
    return -sum(log_p[at - 1, example.ids[at]].item() for start, stop in example.answers for at in range(start, stop))


def test_a_base_without_a_chat_template_is_refused(base_in, tmp_path):
    with pytest.raises(
        UserError, match=r"no chat template for train\.format: tokenizer; use another format, such as chatml"
    ):
        train_here(prepare(tmp_path / "run", base_in(None), as_rows(["ua"])), **ONE_STEP)


def test_rows_that_a_template_refuses_are_left_out_and_logged(base_in, tmp_path, caplog):
    folder = prepare(tmp_path / "run", base_in(None), as_rows(["ua", "uata", "suata"]))
    train_here(folder, **(ONE_STEP | {"format": "koalpaca"}))
    assert "refuses 2 rows (2: the format koalpaca has no place for the role tool); they are left out" in caplog.text
    assert read_json(folder / "training.json")["rows_refused"] == 2
    with pytest.raises(UserError, match=r"refuses 2 rows .*, which is all of them; use another format"):
        train_here(
            prepare(tmp_path / "none", base_in(None), as_rows(["uata", "suata"])), **ONE_STEP | {"format": "korae"}
        )


def test_an_end_other_than_eos_can_be_stated(base_in, tmp_path):
    base = base_in(None)
    folder = prepare(tmp_path / "run", base, as_rows(["uaua"]))
    train_here(folder, **(ONE_STEP | {"format": "chatml", "end": "<|im_end|>"}))
    tokenizer = load_tokenizer(folder / "model")
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.apply_chat_template(messages(SHAPES["ua"]), tokenize=False).endswith("액체<|im_end|>\n")
    before = load_tokenizer(base).eos_token_id
    stops = GenerationConfig.from_pretrained(folder / "model").eos_token_id
    assert stops == [before, tokenizer.eos_token_id] != [before, before]
    with pytest.raises(UserError, match=r"train\.end: <\|끝\|> is no token of .*; it has .*<\|im_end\|>"):
        train_here(folder, **(ONE_STEP | {"format": "chatml", "end": "<|끝|>"}))
