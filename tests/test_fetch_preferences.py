"""Pairs of answers are read as sources are, and none that must not be trained on is used or lost."""

import json

import pytest

from stages.fetch_preferences import Params, fetch_preferences
from stages.lib.core.artifacts import read_jsonl, read_table, write_jsonl
from stages.lib.core.errors import UserError
from stages.lib.core.params import read_yaml
from tests.project import ROOT
from tools.plain_style import to_plain_style

ENTRY = {"from": "file", "inputs": "x", "name": "pairs*", "revision": None, "config": None, "split": None}
ENTRY |= {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
ENTRY |= {"held_out": {"share": 0.0, "max_rows": 100, "seed": 1}}
ITEM = json.loads((ROOT / "data/benchmark_inputs/copa/test.jsonl").read_text(encoding="utf-8").split("\n")[0])[
    "premise"
]
RULE = read_yaml(ROOT / "params.yaml")["decontaminate"]


def pair(prompt="물은?", chosen="액체입니다.", rejected="액체다."):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


@pytest.fixture
def fetch(tmp_path, benchmark):
    """Fetch pairs from a file of this content; return the table."""

    def run(content, file="pairs.jsonl", instructions=(), rule=None, **changes):
        (tmp_path / "inputs").mkdir(exist_ok=True)
        (tmp_path / "inputs" / file).write_text(content, encoding="utf-8")
        write_jsonl(tmp_path / "held_out.jsonl", [{"instruction": text} for text in instructions])
        settings = {"fetch_preferences": {"polite": ENTRY | changes}, "decontaminate": RULE | (rule or {})}
        out = tmp_path / "polite.parquet"
        places = {"inputs": tmp_path / "inputs", "held_out": tmp_path / "held_out.jsonl", "preferences": out}
        fetch_preferences(Params.model_validate(settings), pairs="polite", benchmark=benchmark, **places)
        return read_table(out)

    return run


def lines(*pairs):
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in pairs)


def test_every_record_is_a_row_and_what_must_not_be_trained_on_has_a_reason(fetch):
    found = fetch(
        lines(
            pair(),
            pair(chosen=""),
            pair(chosen="같다.", rejected="같다."),
            pair(),
            pair(prompt="바다는 왜 짤까"),
            pair(prompt="이어서 써 줘.", rejected=f"{ITEM} 그래서 그랬다."),
        )
        + "[1]\n",
        instructions=["바다는 왜 짤까?"],
    )
    reasons = ["usable", "empty", "equal_answers", "repeated", "held_out_instruction", "benchmark_item", "unreadable"]
    assert found["reason"].fillna("usable").tolist() == reasons
    assert found["id"].is_unique
    assert not found["held_out"].any()


def test_without_drop_in_decontaminate_a_benchmark_item_is_no_reason(fetch):
    found = fetch(lines(pair(prompt=ITEM)), rule={"drop": False})
    assert found["reason"].isna().all()


def test_fields_are_those_of_merge_sources(fetch):
    record = {"data": [{"q": "물은?", "answers": [{"text": "액체입니다."}, {"text": "액체다."}]}]}
    found = fetch(
        json.dumps(record, ensure_ascii=False),
        file="pairs.json",
        records="data[]",
        prompt="q",
        chosen="answers[0].text",
        rejected="answers[-1].text",
    )
    assert found[["prompt", "chosen", "rejected"]].values.tolist() == [["물은?", "액체입니다.", "액체다."]]
    assert found["id"].tolist() == fetch(lines(pair()), name="pairs.jsonl")["id"].tolist()


def test_a_missing_field_is_named_with_its_entry(fetch):
    with pytest.raises(UserError, match="no column worse; it has chosen, prompt, rejected; see polite in fetch_prefer"):
        fetch(lines(pair()), rejected="worse")


def test_a_missing_file_is_named_with_what_there_is(fetch):
    with pytest.raises(UserError, match=r"no file matches `files: other` of polite in fetch_preferences; it has pairs"):
        fetch(lines(pair()), name="other")


def test_a_held_out_prompt_takes_all_its_pairs_and_no_other_prompt_changes_that(fetch):
    many = [pair(f"{number % 40}번은?", f"{number}입니다.", f"{number}이다.") for number in range(120)]
    draw = {"held_out": {"share": 0.25, "max_rows": 1000, "seed": 1}}
    found, fewer = (
        fetch(lines(*many), **draw),
        fetch(lines(*(one for one in many if one["prompt"] != "7번은?")), **draw),
    )
    drawn = set(found["prompt"][found["held_out"]])
    assert 4 <= len(drawn) <= 16
    assert found["held_out"].sum() == 3 * len(drawn)
    assert set(fewer["prompt"][fewer["held_out"]]) == drawn - {"7번은?"}
    most = fetch(lines(*many), held_out={"share": 0.25, "max_rows": 10, "seed": 1})
    assert most["held_out"].sum() == 9


def test_prompts_that_differ_in_signs_or_particles_are_held_out_together(fetch):
    many = [
        pair(prompt, f"{number}입니다.", f"{number}이다.")
        for number in range(20)
        for prompt in (f"{number}번 바다는 왜 짤까요", f"{number}번 바다가 왜 짤까요?")
    ]
    found = fetch(lines(*many), held_out={"share": 0.5, "max_rows": 1000, "seed": 1})
    held = found["held_out"].to_numpy()
    assert 0 < held.sum() < 40
    assert (held[::2] == held[1::2]).all()


def test_no_pair_to_train_on_is_an_error(fetch):
    with pytest.raises(UserError, match=r"no pair to train on is left of 1: 0 held out, unusable equal_answers 1"):
        fetch(lines(pair(chosen="같다.", rejected="같다.")))


@pytest.mark.parametrize(
    ("formal", "plain"),
    [
        ("밥을 먹습니다.", "밥을 먹는다."),
        ("물을 끓입니다.", "물을 끓인다."),
        ("물은 액체입니다.", "물은 액체이다."),
        ("이것은 아닙니다.", "이것은 아니다."),
        ("날이 좋습니다.", "날이 좋다."),
        ("떡을 썹니다. 그리고 넣었습니다.", "떡을 썬다. 그리고 넣었다."),
        ("솜씨가 뛰어납니다.", "솜씨가 뛰어나다."),
        ("매우 안전합니다.", "매우 안전하다."),
        ("가지 않습니다.", None),
        ("밥을 먹어요.", None),
        ("먹습니다. 어때요?", None),
    ],
)
def test_a_sentence_is_rewritten_into_the_plain_style_only_if_its_ending_is_certain(formal, plain):
    assert to_plain_style(formal) == plain


def test_the_bundled_pairs_differ_in_their_endings_only():
    pairs = read_jsonl(ROOT / "data/preference_inputs/politeness.jsonl")
    assert len(pairs) == len({one["chosen"] for one in pairs}) == 200
    for one in pairs:
        assert to_plain_style(one["chosen"]) == one["rejected"] != one["chosen"]
        assert "니다" not in one["rejected"]
        assert len(one["chosen"].split()) == len(one["rejected"].split())
