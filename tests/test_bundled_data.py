"""The bundled rows and benchmark items, as `tools.make_default` composes them: varied, and without giveaways."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from stages.lib.core.artifacts import read_jsonl
from tests.project import ROOT
from tools.make_default import BundledRow, compose, said_about, topics, with_particles

TASKS = ("boolq", "copa", "hellaswag", "sentineg", "wic")


@pytest.fixture(scope="module")
def clean() -> list[BundledRow]:
    return [row for row in compose()[0] if row.kind == "clean"]


def items(task: str) -> list[dict[str, Any]]:
    return read_jsonl(ROOT / f"data/benchmark_inputs/{task}/test.jsonl")


@pytest.mark.parametrize(
    ("name", "filled"),
    [
        ("CPU", "CPU가 CPU를 CPU로 CPU는"),
        ("URL", "URL이 URL을 URL로 URL은"),
        ("HTTP", "HTTP가 HTTP를 HTTP로 HTTP는"),
        ("VPN", "VPN이 VPN을 VPN으로 VPN은"),
        ("png", "png가 png를 png로 png는"),
        ("코드 2", "코드 2가 코드 2를 코드 2로 코드 2는"),
        ("코드 3", "코드 3이 코드 3을 코드 3으로 코드 3은"),
        ("코드 7", "코드 7이 코드 7을 코드 7로 코드 7은"),
        ("서울", "서울이 서울을 서울로 서울은"),
        ("제주도", "제주도가 제주도를 제주도로 제주도는"),
    ],
)
def test_particles_fit_how_the_end_of_a_name_is_read_aloud(name: str, filled: str) -> None:
    assert with_particles("{이름}{이} {이름}{을} {이름}{으로} {이름}{은}", name) == filled


@pytest.mark.parametrize(("ends", "final"), [("0136780LMNR", "이"), ("2459ABCDEFGHIJKOPQSTUVWXYZ", "가")])
def test_a_particle_fits_every_digit_and_letter(ends: str, final: str) -> None:
    assert {with_particles("{이름}{이}", end)[-1] for end in ends} == {final}


def test_a_name_that_no_particle_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="no particle fits '\\)'"):
        with_particles("{이름}{이}", "파이썬(언어)")


def test_at_least_700_outputs_are_distinct(clean: list[BundledRow]) -> None:
    assert len({row.output for row in clean}) >= 700


def register(text: str) -> str:
    """Return the register of the last Korean sentence."""
    last = re.findall(r"[^.?!\n]*[가-힣](?=[.?!])", text) or [text]
    return "합니다체" if last[-1].endswith("니다") else "해요체" if re.search("[요죠]$", last[-1]) else "반말"


def test_outputs_are_in_three_registers_and_some_have_lists_numerals_and_code(clean: list[BundledRow]) -> None:
    sentences_only = [row.output for row in clean if not re.search(r"^(- |\d\. )|```", row.output, re.MULTILINE)]
    registers = Counter(map(register, sentences_only))
    assert min(registers[name] for name in ("합니다체", "해요체", "반말")) >= 70, registers
    patterns = {"a list": r"^- .+\n- ", "steps": r"^1\. .+\n2\. ", "code": "```", "numerals": r"\d"}
    found = {name: sum(bool(re.search(p, row.output, re.MULTILINE)) for row in clean) for name, p in patterns.items()}
    assert found["a list"] >= 20
    assert found["steps"] >= 5
    assert found["code"] >= 5
    assert found["numerals"] >= 100


def test_no_word_is_used_that_no_engineer_would_use() -> None:
    folders = ("inputs", "pretrain", "benchmark_inputs")
    paths = [path for name in folders for path in (ROOT / "data" / name).rglob("*.*") if path.suffix != ".parquet"]
    texts = [path.read_bytes().decode("cp949" if path.suffix == ".csv" else "utf-8", "ignore") for path in paths]
    texts += [row.instruction + row.output for row in compose()[0]]
    assert not [word for word in ("글쇠", "전자우편") if any(word in text for text in texts)]
    assert not any(re.search("단추를? ?(누|클릭)", text) for text in texts)  # a button on a shirt is one


def test_what_is_said_about_a_subject_begins_with_its_name() -> None:
    for topic in topics():
        for name in topic["items"]:
            assert name in said_about(topic, name)[0], name


@pytest.mark.parametrize("task", TASKS)
def test_every_label_is_equally_frequent(task: str) -> None:
    labels = Counter(item["label"] for item in items(task))
    assert len(set(labels.values())) == 1
    assert labels.total() == 60


def test_a_conversation_has_several_rounds_and_ends_with_an_answer() -> None:
    conversations = [row["messages"] for row in read_jsonl(ROOT / "data/inputs/counsel.jsonl")]
    assert len(conversations) >= 10
    assert any(turns[0]["role"] == "system" for turns in conversations)
    for turns in conversations:
        rounds = [turn["role"] for turn in turns if turn["role"] != "system"]
        assert rounds == ["user", "assistant"] * (len(rounds) // 2)
        assert len(rounds) >= 4


def bigrams(text: str) -> set[str]:
    letters = re.sub(r"\s", "", text)
    return {letters[n : n + 2] for n in range(len(letters) - 1)}


def overlap(ending: str, context: str) -> float:
    return len(bigrams(ending) & bigrams(context)) / len(bigrams(ending))


@pytest.mark.parametrize(
    ("rule", "most"),
    [
        (lambda ending, context: -overlap(ending, context), 20),  # 34 of the 60 items before the endings were rewritten
        (overlap, 25),
        (lambda ending, _: len(ending), 22),
        (lambda ending, _: -len(ending), 22),
    ],
    ids=["least echo of the context", "most echo of the context", "longest", "shortest"],
)
def test_no_rule_about_overlap_or_length_finds_the_right_endings(rule: Callable[..., float], most: int) -> None:
    found = 0
    for item in items("hellaswag"):
        scores = [rule(item[f"ending_{n}"], item["context"]) for n in range(1, 5)]
        found += scores.index(max(scores)) == item["label"]
    print(f"{found} of 60, 15 by chance")
    assert found <= most
