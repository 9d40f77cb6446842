"""Greedy answers depend on their prompt only, and a final answer is right if it equals the row's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.core.artifacts import write_jsonl
from stages.lib.core.errors import UserError
from stages.lib.scoring.generation import greedy
from stages.lib.evaluation.answers import final_answer
from tools import final_answers
from tools.final_answers import compared


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def model(request, build):
    network = build("GPTNeoXConfig", "GPTNeoXForCausalLM")
    return network.to(torch.bfloat16) if request.param == "bf16" else network


@pytest.fixture(scope="module")
def prompts(tokenizer, questions):
    return [tokenizer(question, add_special_tokens=False)["input_ids"] for question in questions[:10]]


def one_by_one(model, prompt, count, stops):
    """Write greedily with one plain forward pass per token."""
    ids = list(prompt)
    for _ in range(count):
        with torch.inference_mode():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token in stops:
            break
        ids.append(token)
    return ids[len(prompt) :]


def test_answers_are_those_of_a_plain_loop(build, prompts):
    network = build("GPTNeoXConfig", "GPTNeoXForCausalLM")
    stops = {network.generation_config.eos_token_id}
    found = greedy(network, prompts[:6], 8, 256, "test")
    assert found == [one_by_one(network, prompt, 8, stops) for prompt in prompts[:6]]


def test_an_answer_does_not_depend_on_the_other_prompts(model, prompts):
    together = greedy(model, prompts, 8, 512, "test")
    assert together[::-1] == greedy(model, prompts[::-1], 8, 512, "test")
    assert together[3:4] == greedy(model, prompts[3:4], 8, 512, "test")


def test_an_answer_stops_before_each_end_of_the_generation_config(build, prompts):
    network = build("GPTNeoXConfig", "GPTNeoXForCausalLM")
    (free,) = greedy(network, prompts[:1], 8, 256, "test")
    end = free[2]
    network.generation_config.eos_token_id = [network.generation_config.eos_token_id, end]
    (stopped,) = greedy(network, prompts[:1], 8, 256, "test")
    assert stopped == free[: free.index(end)]


def test_a_prompt_that_leaves_no_room_is_an_error(model):
    with pytest.raises(UserError, match="prompt 1 has 250 tokens, which with 8 of the answer is more than the 256"):
        greedy(model, [[5] * 250], 8, 512, "test")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("9*3\n정답: 27", "27"),
        ("정답: 27", "27"),
        ("정답 : 1,200.50", "1200.5"),
        ("정답: 27.", "27"),
        ("정답: -3", "-3"),
        ("정답：6.930\n정답: 7", "6.93"),
        ("정답: 12개입니다.", "12"),
        ("**정답: ３**", "3"),
        ("정답: 3월", "3"),
        ("정답: 3, 4", "3, 4"),
        ("정답: 1시간 30분", "1시간30분"),
        ("정답: 서울", "서울"),
        ("정답: ", ""),
        ("답은 27", None),
        ("", None),
    ],
)
def test_the_final_answer_is_what_follows_its_header(text, answer):
    assert final_answer(text) == answer


@given(st.text())
def test_no_text_stops_the_reading_of_final_answers(text):
    final_answer(f"정답: {text}")


def test_an_arm_with_runs_is_compared_with_the_control_over_runs_and_items():
    rng = np.random.default_rng(1)
    runs = {"cot": rng.random((3, 400)) < 0.6, "answer_only": rng.random((3, 400)) < 0.2, "single": np.ones((1, 400))}
    runs = {name: values.astype(float) for name, values in runs.items()}
    cot, control, single = compared("answer_only", runs)
    estimate, lo, hi = (float(part.strip("[],")) for part in cot.split("minus answer_only: ")[1].split())
    assert lo < 0.4 < hi
    assert estimate == pytest.approx(runs["cot"].mean() - runs["answer_only"].mean(), abs=1e-4)
    assert "minus" not in control + single


def test_rows_without_a_final_answer_are_an_error_that_says_where_to_name_it(tmp_path, monkeypatch):
    monkeypatch.setattr(final_answers, "HELD_OUT", tmp_path / "held_out.jsonl")
    write_jsonl(tmp_path / "held_out.jsonl", [{"instruction": "왜?", "output": "그냥."}])
    with pytest.raises(UserError, match="name its field as `final`"):
        final_answers.questions()
