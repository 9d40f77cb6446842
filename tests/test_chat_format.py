"""The text of training is the text of use, in every format of ours; adding a format is adding one file."""

import shutil

import pytest
from pydantic import ValidationError

from stages.lib.models.toy import Small
from stages.lib.models.toy_training import make_tokenizer
from stages.lib.text import chat_format
from stages.lib.text.chat_format import FORMATS, OF_THE_BASE, chat_template
from tests.chats import OURS, encode_pairs, prompt_of, with_control_tokens
from tests.training import prepare, settings, train_here

QUESTION, ANSWER = '김치찌개를 "끓이는" 법은?\n두 줄로 {답}해 주세요.', "물을 붓고 끓입니다.\n\n끝."
ROW = {"instruction": QUESTION, "output": ANSWER}
SPACE = {"koalpaca": " ", "koquality": " "}
"""What begins an answer because no prompt ends in it."""


def test_every_format_is_tested_here():
    assert sorted(path.stem for path in FORMATS.iterdir()) == sorted([*OURS, OF_THE_BASE])


@pytest.mark.parametrize("name", OURS)
def test_a_format_names_its_origin_first(name):
    first = (FORMATS / f"{name}.jinja").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("{#- ")
    assert "/" in first.split(",")[0]


@pytest.fixture
def chat(tokenizer):
    """The tokenizer with a format's chat template, as the stage saves it."""
    made = with_control_tokens(tokenizer)

    def give(name):
        made.chat_template = chat_template(name, begins_with_bos=False)
        return made

    return give


@pytest.mark.parametrize("name", OURS)
def test_the_chat_template_renders_the_bytes_of_its_original_in_training_and_in_use(name, chat):
    tokenizer = chat(name)
    asked = [{"role": "user", "content": QUESTION}]
    answered = [*asked, {"role": "assistant", "content": ANSWER}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert prompt == prompt_of(name, QUESTION, tokenizer.eos_token)
    assert not prompt.endswith(" ")
    whole = prompt + SPACE.get(name, "") + ANSWER + tokenizer.eos_token + ("\n" if name == "chatml" else "")
    assert tokenizer.apply_chat_template(answered, tokenize=False) == whole
    (example,) = encode_pairs(tokenizer, name, [ROW], 500)
    assert tokenizer.decode(example.ids) == whole
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert example.ids[: example.answers[0][0]] == ids
    assert example.ids.count(tokenizer.eos_token_id) == (3 if name == "korae" else 1)


@pytest.mark.parametrize("name", OURS)
def test_a_plain_row_is_the_tokens_of_its_prompt_its_answer_and_the_end(name, tokenizer, rows):
    for row, example in zip(rows, encode_pairs(tokenizer, name, rows, 1000), strict=True):
        prompt = tokenizer(prompt_of(name, row["instruction"], tokenizer.eos_token))["input_ids"]
        answer = [*tokenizer(SPACE.get(name, "") + row["output"])["input_ids"], tokenizer.eos_token_id]
        after = tokenizer("\n")["input_ids"] if name == "chatml" else []
        assert example == (prompt + answer + after, [(len(prompt), len(prompt + answer))], False, False, "")


def test_the_space_before_an_answer_is_in_its_first_token():
    numbers = dict.fromkeys(Small.model_fields, 1) | {"vocabulary": 300, "learning_rate": 0.1, "whole": False}
    tokenizer = make_tokenizer(["감자는 감자는"] * 9, Small.model_validate(numbers))
    tokenizer.backend_tokenizer.post_processor = None
    apart = tokenizer("### 답변: ")["input_ids"] + tokenizer("감자는")["input_ids"]
    assert [tokenizer.decode([token]) for token in apart[-2:]] == [" ", "감자는"]
    row = {"instruction": "뭐지?", "output": "감자는 뿌리"}
    for name in SPACE:
        (example,) = encode_pairs(tokenizer, name, [row], 500)
        start = example.answers[0][0]
        assert [tokenizer.decode([token]) for token in example.ids[start - 1 : start + 1]] == [":", " 감자는"]


def test_a_role_that_a_format_lacks_is_refused(chat):
    called = [{"role": "user", "content": "몇 도?"}, {"role": "tool", "content": "21"}]
    for name in ("koalpaca", "koquality", "korae", "kullm"):
        with pytest.raises(Exception, match=f"the format {name} has no place for the role tool"):
            chat(name).apply_chat_template(called, tokenize=False)


def test_an_unknown_format_is_refused_and_the_known_ones_are_named():
    known = "alpaca, chatml, koalpaca, koquality, korae, kullm, tokenizer"
    with pytest.raises(ValidationError, match=f"unknown format; known formats: {known}"):
        settings(format="vicuna")


NEW = """{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '\\n대답: ' }}
        {%- generation %}{{- message.content + eos_token }}{% endgeneration %}
    {%- else %}
        {{- '물음: ' + message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '\\n대답: ' }}{%- endif %}"""


def test_a_new_file_in_formats_is_a_new_format(tmp_path, monkeypatch, base, rows):
    formats = shutil.copytree(FORMATS, tmp_path / "formats")
    monkeypatch.setattr(chat_format, "FORMATS", formats)
    with pytest.raises(ValidationError, match="unknown format"):
        settings(format="mine")
    (formats / "mine.jinja").write_text(NEW, encoding="utf-8")
    assert settings(format="mine").train.format == "mine"
    budget = {"unit": "steps", "amount": 1}
    folder = train_here(prepare(tmp_path / "run", base, rows[:4]), format="mine", budget=budget)
    assert (folder / "model" / "chat_template.jinja").read_text(encoding="utf-8") == NEW
