"""The text of training is the text of use, in every format; adding a format is adding one file."""

import json
import shutil

import pytest
from pydantic import ValidationError

from stages.lib.core.artifacts import read_json, write_json
from stages.lib.text import chat_format
from stages.lib.text.chat_format import FORMATS, chat_template, encode, render
from tests.training import prepare, settings, train_here

QUESTION, ANSWER = '김치찌개를 "끓이는" 법은?\n두 줄로 {답}해 주세요.', "물을 붓고 끓입니다.\n\n끝."
PROMPTS = {
    "koalpaca": f"### 질문: {QUESTION}\n\n### 답변: ",
    "koquality": f"### 질문: {QUESTION}### 답변: ",
    "korae": "### System:\n당신은 유용한 인공지능 비서입니다. 사용자가 몇 가지 지시가 포함된 작업을 제공합니다. "
    f"요청을 적절히 완료하는 응답을 작성하세요.<eos>\n\n### User:\n{QUESTION}<eos>\n\n### Assistant:\n",
}
NAMES = sorted(path.stem for path in FORMATS.glob("*.json"))


def test_every_format_is_tested_here():
    assert sorted(PROMPTS) == NAMES


@pytest.mark.parametrize("name", PROMPTS)
def test_a_format_is_that_of_its_original(name):
    assert render(name, QUESTION, "<eos>") == PROMPTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_format_names_its_origin_and_nothing_else(name):
    content = read_json(FORMATS / f"{name}.json")
    assert sorted(content) == ["after", "before", "origin", "system"]
    assert "/" in content["origin"]


@pytest.fixture
def with_template(tokenizer):
    """Give the tokenizer a format's chat template, as the stage saves it."""
    before = tokenizer.chat_template

    def give(name):
        tokenizer.chat_template = chat_template(name, begins_with_bos=False)
        return tokenizer

    yield give
    tokenizer.chat_template = before


@pytest.mark.parametrize("name", NAMES)
def test_the_chat_template_renders_the_bytes_of_training(name, with_template):
    tokenizer = with_template(name)
    asked = [{"role": "user", "content": QUESTION}]
    answered = [*asked, {"role": "assistant", "content": ANSWER}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert prompt == render(name, QUESTION, tokenizer.eos_token)
    assert tokenizer.apply_chat_template(answered, tokenize=False) == prompt + ANSWER + tokenizer.eos_token
    (example,) = encode(tokenizer, name, [QUESTION], [ANSWER], 500)
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert example.ids[: example.start] == ids
    assert tokenizer.decode(example.ids) == prompt + ANSWER + tokenizer.eos_token
    assert example.ids.count(tokenizer.eos_token_id) == (3 if name == "korae" else 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_chat_template_marks_answers_as_what_is_learned(name, with_template):
    chat = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    found = with_template(name).apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    learned = [token for token, mine in zip(found["input_ids"], found["assistant_masks"], strict=True) if mine]
    text = with_template(name).decode(learned).removeprefix(" ")  # the space before may share a token with the answer
    assert text == ANSWER + with_template(name).eos_token


def test_a_role_that_the_format_lacks_is_refused(with_template):
    with pytest.raises(Exception, match="user and assistant alone"):
        with_template("koalpaca").apply_chat_template([{"role": "system", "content": "짧게"}], tokenize=False)


def test_an_unknown_format_is_refused_and_the_known_ones_are_named():
    with pytest.raises(ValidationError, match="unknown format; known formats: koalpaca, koquality, korae"):
        settings(format="alpaca")


NEW = {"origin": "none", "system": "{end}", "before": "물음: ", "after": "\n대답: "}


def test_a_new_file_in_formats_is_a_new_format(tmp_path, monkeypatch, base, rows):
    formats = tmp_path / "formats"
    shutil.copytree(FORMATS, formats)
    monkeypatch.setattr(chat_format, "FORMATS", formats)
    with pytest.raises(ValidationError, match="unknown format"):
        settings(format="mine")
    write_json(formats / "mine.json", NEW)
    assert settings(format="mine").train.format == "mine"
    budget = {"unit": "steps", "amount": 1}
    folder = train_here(prepare(tmp_path / "run", base, rows[:4]), format="mine", budget=budget)
    template = (folder / "model" / "chat_template.jinja").read_text(encoding="utf-8")
    assert template == chat_template("mine", begins_with_bos=False)
    assert json.dumps(NEW["before"], ensure_ascii=False) in template
    assert render("mine", "왜?", "<eos>") == "<eos>물음: 왜?\n대답: "
