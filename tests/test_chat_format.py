"""The text of training is the text of use, in every format."""

import pytest

from stages.lib.text.chat_format import FORMATS, chat_template, encode, render

QUESTION, ANSWER = '김치찌개를 "끓이는" 법은?\n두 줄로 {답}해 주세요.', "물을 붓고 끓입니다.\n\n끝."
WANTED = {
    "koalpaca": f"### 질문: {QUESTION}\n\n### 답변: ",
    "koquality": f"### 질문: {QUESTION}### 답변: ",
    "korae": "### System:\n당신은 유용한 인공지능 비서입니다. 사용자가 몇 가지 지시가 포함된 작업을 제공합니다. "
    f"요청을 적절히 완료하는 응답을 작성하세요.<eos>\n\n### User:\n{QUESTION}<eos>\n\n### Assistant:\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_that_of_its_original(name):
    assert render(name, QUESTION, "<eos>") == WANTED[name]


@pytest.fixture
def speaks(tokenizer):
    """The tokenizer with a format's chat template, as the stage saves it."""
    before = tokenizer.chat_template

    def give(name):
        tokenizer.chat_template = chat_template(name)
        return tokenizer

    yield give
    tokenizer.chat_template = before


@pytest.mark.parametrize("name", FORMATS)
def test_the_chat_template_renders_the_bytes_of_training(name, speaks):
    tokenizer = speaks(name)
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


@pytest.mark.parametrize("name", FORMATS)
def test_the_chat_template_marks_answers_as_what_is_learned(name, speaks):
    chat = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    found = speaks(name).apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    learned = [token for token, mine in zip(found["input_ids"], found["assistant_masks"], strict=True) if mine]
    said = speaks(name).decode(learned).removeprefix(" ")  # the space before may share a token with the answer
    assert said == ANSWER + speaks(name).eos_token


def test_a_role_that_the_format_lacks_is_refused(speaks):
    with pytest.raises(Exception, match="user and assistant alone"):
        speaks("koalpaca").apply_chat_template([{"role": "system", "content": "짧게"}], tokenize=False)
