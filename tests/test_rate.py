"""Ratings: equal to a plain forward pass, a function of the row only, and never asked for."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages import rate
from stages.lib.core.artifacts import read_arrow, read_table
from stages.lib.core.errors import UserError
from stages.lib.rating import ledger as ledger_module
from stages.lib.rating.prompts import messages_of
from stages.lib.scoring import cache
from stages.lib.scoring.answers import encode_answers, score_answers
from stages.lib.scoring.batching import canonical_batches
from stages.lib.scoring.labels import encode_prompts, expected_marks, label_tokens, mean_mark
from stages.lib.text.conversations import Turn, as_column

REQUEST = {"model": "judge", "temperature": 0, "top_p": 1, "max_tokens": 16, "seed": None}
SETTINGS = {"max_tokens": 128, "batch_tokens": 256, "dtype": "fp32", "prompt": "rating_ko", "request": REQUEST}
SETTINGS |= {"model": "scorer", "ledger": "data/ledger"}
SCORES = ["answer_tokens", "nll_answer", "nll_answer_alone", "ifd", "score", "kind"]
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<a>{% endif %}"
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
MODELS = {"GPTNeoX": {}, "Llama": {"num_key_value_heads": 1}, "Cohere": {"num_key_value_heads": 1, "logit_scale": 0.25}}


@pytest.fixture(scope="module")
def answers(questions):
    """An answer to each question, from one token to about ninety."""
    return [(text * 3)[: 1 + 3 * number] for number, text in enumerate(reversed(questions))]


@pytest.fixture(scope="module")
def raw(write_raw, questions, answers):
    return write_raw(questions, outputs=answers)


@pytest.fixture(scope="module")
def run(new_folder, lm, write_leaks, write_duplicates):
    """Rate a raw.parquet; settings over defaults."""

    def stage(raw, judge="likelihood", model=lm, checkpoints=None, leaks=None, duplicates=None, **settings):
        folder = new_folder()
        params = rate.Params.model_validate({"threads": 1, "rate": SETTINGS | settings | {"judge": judge}})
        flags = leaks or write_leaks(), duplicates or write_duplicates()
        places = checkpoints or folder / "checkpoints", folder / "ratings.parquet"
        rate.rate(params, raw, *flags, model, folder / "ledger", *places)
        return places[1]

    return stage


@pytest.fixture(scope="module")
def long_lm(build, save, tokenizer):
    """A model that has room for a judge's prompt."""
    return save(build("GPTNeoXConfig", "GPTNeoXForCausalLM", max_position_embeddings=1024), tokenizer)


@pytest.fixture(scope="module")
def reference(lm):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(lm).eval()


@torch.inference_mode()
def plain(model, before, ids):
    """Mean negative log-likelihood of `ids` after the tokens `before`, as transformers computes its loss."""
    row, labels = torch.tensor([[*before, *ids]]), torch.tensor([[-100] * len(before) + [*ids]])
    return model(input_ids=row, labels=labels).loss.item()


def check_against_one_row_at_a_time(found, pairs, model, tokenizer):
    begin = tokenizer.eos_token_id
    for (asked, answered), row in zip(pairs, found.itertuples(), strict=True):
        ids = tokenizer(answered)["input_ids"]
        given, alone = (
            plain(model, before, ids) for before in ([begin, *tokenizer(f"{asked}\n")["input_ids"]], [begin])
        )
        assert row.answer_tokens == len(ids)
        assert (row.nll_answer, row.nll_answer_alone) == pytest.approx((given, alone), abs=1e-5)
        assert row.ifd == pytest.approx(np.exp(given - alone), rel=2e-5)


def test_an_answer_is_as_likely_as_one_row_at_a_time_says(run, raw, questions, answers, reference, tokenizer):
    found = read_table(run(raw))
    check_against_one_row_at_a_time(found, zip(questions, answers, strict=True), reference, tokenizer)
    assert found["ifd"].min() < 1 < found["ifd"].max()
    assert found[["score", "kind", "score_again", "prompt_tokens", "reply_tokens"]].isna().all(axis=None)
    assert list(found["id"]) == list(read_table(raw)["id"])


@pytest.mark.parametrize("name", MODELS)
def test_any_architecture_gives_the_likelihoods_of_its_own_loss(name, build, questions, answers, tokenizer):
    model = build(f"{name}Config", f"{name}ForCausalLM", **MODELS[name])
    pairs = list(zip(questions, answers, strict=True))[::3]
    scores = np.zeros((len(pairs), 3))
    for rows, values in score_answers(model, encode_answers(tokenizer, *zip(*pairs, strict=True), 256), 512):
        scores[rows] = values
    tokens, given, alone = scores.T
    columns = {"answer_tokens": tokens, "nll_answer": given, "nll_answer_alone": alone, "ifd": np.exp(given - alone)}
    check_against_one_row_at_a_time(pd.DataFrame(columns), pairs, model, tokenizer)


def test_of_a_conversation_the_last_answer_is_rated_after_all_turns_before_it(run, write_raw, reference, tokenizer):
    turns = [Turn("system", "짧게."), Turn("user", "김치?"), Turn("assistant", "배추."), Turn("user", "또?")]
    turns.append(Turn("assistant", "무와 파."))
    raw = write_raw(["김치?", "김치?"], outputs=["무와 파."] * 2, turns=as_column([turns, None]).to_pylist())
    pairs = [("짧게.\n김치?\n배추.\n또?", "무와 파."), ("김치?", "무와 파.")]
    check_against_one_row_at_a_time(read_table(run(raw)), pairs, reference, tokenizer)


def test_tokens_beyond_the_limit_do_not_count_and_an_answer_without_room_has_no_rating(
    run, write_raw, questions, answers, reference, tokenizer, caplog
):
    asked, answered = questions[4], answers[30]
    before = [tokenizer.eos_token_id, *tokenizer(f"{asked}\n")["input_ids"]]
    ids = tokenizer(answered)["input_ids"]
    assert len(ids) > 3
    for room in (-1, 0, 1, 3):
        caplog.clear()
        with caplog.at_level("INFO", logger="stages"):
            found = read_table(run(write_raw([asked], outputs=[answered]), max_tokens=len(before) + room)).iloc[0]
        assert found["answer_tokens"] == max(0, room)
        if room <= 0:
            assert found[SCORES[1:4]].isna().all()
            assert "ifd: median nan, nine tenths between nan and nan; 1 rows have none" in caplog.text
        else:
            expected = [plain(reference, start, ids[:room]) for start in (before, before[:1])]
            assert found[["nll_answer", "nll_answer_alone"]].tolist() == pytest.approx(expected, abs=1e-5)


def test_an_empty_answer_has_no_rating(run, write_raw, questions):
    found = pa.parquet.read_table(run(write_raw(questions[:2], outputs=["", "답"]))).to_pylist()
    assert [found[0][name] for name in SCORES] == [0, None, None, None, None, None]
    assert found[1]["ifd"] > 0


def begun_by(tokenizer, adds_bos=False, **names):
    """A tokenizer with these special tokens; `adds_bos`: it begins every text with its BOS."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    if adds_bos:
        special = [(tokenizer.bos_token, tokenizer.bos_token_id)]
        backend.post_processor = TemplateProcessing(single=f"{tokenizer.bos_token} $A", special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@pytest.mark.parametrize(
    ("names", "adds_bos", "begins"),
    [(["bos", "eos"], True, "bos"), (["bos", "eos"], False, "eos"), (["eos"], False, "eos"), (["bos"], False, "bos")],
)
def test_a_text_begins_with_the_token_that_the_model_has_seen_before_texts(names, adds_bos, begins, tokenizer):
    special = {f"{name}_token": getattr(tokenizer, f"{name}_token") for name in names}
    found = encode_answers(begun_by(tokenizer, adds_bos, **special), ["무엇?"], ["그것."], 99)
    begin, answer = getattr(tokenizer, f"{begins}_token_id"), tokenizer("그것.")["input_ids"]
    assert found.alone[0].tolist() == [begin, *answer]
    assert found.given[0].tolist() == [begin, *tokenizer("무엇?\n")["input_ids"], *answer]
    assert found.starts == [len(found.given[0]) - len(answer)]


def test_a_tokenizer_with_no_token_to_begin_with_stops_the_stage(tokenizer):
    with pytest.raises(UserError, match=r"neither an eos nor a bos token.*choose another rate\.model"):
        encode_answers(begun_by(tokenizer), ["무엇?"], ["그것."], 99)


@pytest.mark.parametrize("judge", ["likelihood", "logprob"])
def test_a_rating_is_a_function_of_its_row_whatever_the_order_the_parts_and_what_was_rated_before(
    judge, run, write_raw, questions, answers, tmp_path, long_lm
):
    settings = {"judge": judge, "max_tokens": 900, "batch_tokens": 1024, "model": long_lm}
    pick = range(0, len(questions), 1 if judge == "likelihood" else 4)
    rows = [(f"row{n}", questions[n], answers[n]) for n in pick]

    def scores(part, **other):
        ids, asked, answered = zip(*part, strict=True)
        raw = write_raw(list(asked), ids=list(ids), outputs=list(answered))
        return read_table(run(raw, **settings, **other)).set_index("id")[SCORES]

    whole = scores(rows)
    assert whole[["nll_answer" if judge == "likelihood" else "score"]].notna().all(axis=None)
    order = np.random.default_rng(1).permutation(len(rows))
    assert scores([rows[n] for n in order]).loc[whole.index].equals(whole)
    parts = [scores(part, checkpoints=tmp_path / "kept") for part in (rows[::2], rows[1::2])]
    assert pd.concat(parts).loc[whole.index].equals(whole)
    assert scores(rows, checkpoints=tmp_path / "kept").equals(whole)


@pytest.mark.parametrize("judge", ["likelihood", "logprob"])
def test_a_row_that_is_added_is_the_only_one_to_be_rated(
    judge, run, write_raw, questions, answers, tmp_path, long_lm, caplog
):
    settings = {"judge": judge, "max_tokens": 900, "model": long_lm, "checkpoints": tmp_path / "kept"}
    before = read_table(run(write_raw(questions[:3], outputs=answers[:3]), **settings))
    with caplog.at_level("INFO", logger="stages"):
        after = read_table(run(write_raw(questions[:4], outputs=answers[:4]), **settings))
    assert "4 distinct texts: 3 have scores in" in caplog.text
    assert "1 to compute" in caplog.text
    assert after[:3].equals(before)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("judge", ["likelihood", "logprob"])
def test_a_run_that_is_killed_keeps_its_chunks_and_ends_with_the_same_bytes(
    judge, run, write_raw, questions, answers, tmp_path, long_lm, monkeypatch, caplog
):
    settings = {"judge": judge, "max_tokens": 900, "model": long_lm}
    raw = write_raw(questions[:12], outputs=answers[-12:])
    whole, write = run(raw, **settings).read_bytes(), cache.write_chunk

    def write_and_die(*chunk):
        write(*chunk)
        raise KilledError

    with monkeypatch.context() as killed:
        killed.setattr(cache, "CHUNK_SECONDS", -1.0)
        killed.setattr(cache, "write_chunk", write_and_die)
        with pytest.raises(KilledError):
            run(raw, checkpoints=tmp_path / "kept", **settings)
    with caplog.at_level("INFO", logger="stages"):
        assert run(raw, checkpoints=tmp_path / "kept", **settings).read_bytes() == whole
    (path,) = (tmp_path / "kept").iterdir()
    assert len(read_arrow(path)) == 12
    assert "12 distinct texts: 0 have" not in caplog.text


def test_both_texts_of_a_row_run_in_batches_of_one_shape(questions, answers, tokenizer):
    pairs = encode_answers(tokenizer, questions, answers, 128)
    for batch in canonical_batches([len(ids) for ids in pairs.given], 256):
        assert all(len(pairs.alone[row]) <= len(pairs.given[row]) <= batch.length for row in batch.rows)


def saved_judge(build, save, tokenizer, template, with_ten=False):
    """Save a Llama whose tokenizer has this chat template; `with_ten`: and one token for `10`."""
    from transformers import PreTrainedTokenizerFast

    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    if with_ten:
        backend.add_tokens(["10"])
    names = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "chat_template": template}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    sizes = {"num_key_value_heads": 1, "vocab_size": len(made), "max_position_embeddings": 1024}
    return save(build("LlamaConfig", "LlamaForCausalLM", **sizes), made), made


def text_of_prompt(template, system, user):
    if template is None:
        return f"{system}\n\n{user}\n\n"
    return f"<system>{system}\n<user>{user}\n<a>" if template == TEMPLATE else f"<user>{system}\n\n{user}\n<a>"


@torch.inference_mode()
def mark_by_hand(model, tokenizer, prompt):
    """The expected mark from `model(...).logits`: one pass for each of the eleven marks."""
    before, weights = tokenizer(prompt, add_special_tokens=False)["input_ids"], []
    for mark in range(11):
        label = tokenizer(str(mark), add_special_tokens=False)["input_ids"]
        logs = model(torch.tensor([before + label])).logits[0].double().log_softmax(-1)
        weights.append(sum(logs[len(before) - 1 + n, token] for n, token in enumerate(label)).exp().item())
    if len(label) > 1:
        weights[1] -= weights[10]
    return sum(mark * weight for mark, weight in enumerate(weights)) / sum(weights), len(label)


@pytest.mark.parametrize("with_ten", [False, True], ids=["10 is two tokens", "10 is a token"])
@pytest.mark.parametrize("template", [None, TEMPLATE, REFUSING], ids=["no template", "template", "no system"])
def test_the_expected_mark_is_that_of_a_hand_calculation_from_the_logits(
    template, with_ten, run, write_raw, questions, answers, build, save, tokenizer
):
    from transformers import AutoModelForCausalLM

    folder, own = saved_judge(build, save, tokenizer, template, with_ten)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    raw = write_raw(questions[:5], outputs=answers[:5])
    found = read_table(run(raw, "logprob", folder, max_tokens=900, batch_tokens=2048))
    prompts = [
        text_of_prompt(template, *(m["content"] for m in row)) for row in messages_of("rating_ko", read_arrow(raw))
    ]
    assert set(found["kind"]) == {"ok"}
    for prompt, score in zip(prompts, found["score"], strict=True):
        mark, tokens_of_ten = mark_by_hand(model, own, prompt)
        assert tokens_of_ten == (1 if with_ten else 2)
        assert score == pytest.approx(mark, abs=1e-4)
    assert found["score"].nunique() == len(prompts)
    assert found[["nll_answer", "ifd", "prompt_tokens"]].isna().all(axis=None)


def test_a_prompt_that_is_too_long_is_not_rated_but_counted(
    run, write_raw, questions, answers, long_lm, tokenizer, caplog
):
    raw = write_raw(questions[:9], outputs=answers[:9])
    texts = ["".join(f"{m['content']}\n\n" for m in row) for row in messages_of("rating_ko", read_arrow(raw))]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    limit = sorted(lengths)[len(lengths) // 2]
    assert limit < max(lengths)
    with caplog.at_level("INFO", logger="stages"):
        found = read_table(run(raw, "logprob", long_lm, max_tokens=limit))
    assert list(found["kind"]) == ["cut" if length > limit else "ok" for length in lengths]
    assert (found["score"].isna() == (found["kind"] == "cut")).all()
    assert f"kinds: cut {(found['kind'] == 'cut').sum()}, ok {(found['kind'] == 'ok').sum()}" in caplog.text


def test_a_prompt_and_its_mark_need_positions(run, raw):
    with pytest.raises(UserError, match=r"rate\.max_tokens and a mark: 258 tokens, but the model has 256 positions"):
        run(raw, "logprob", max_tokens=256)
    with pytest.raises(UserError, match=r"rate\.max_tokens: 257 tokens, but the model has 256 positions"):
        run(raw, max_tokens=257)


def test_a_tokenizers_own_beginning_begins_a_prompt_without_template(tokenizer):
    messages = [[{"role": "system", "content": "평가."}, {"role": "user", "content": "답?"}]]
    for adds_bos in (True, False):
        made = begun_by(tokenizer, adds_bos, bos_token=tokenizer.bos_token)
        (ids,) = encode_prompts(made, messages, 99)
        assert ids.tolist() == [tokenizer.bos_token_id] * adds_bos + tokenizer("평가.\n\n답?\n\n")["input_ids"]


LOGS = st.lists(st.floats(-50, 0), min_size=11, max_size=11)
ONE_TOKEN, TWO_TOKENS = [[n] for n in range(11)], [*([n] for n in range(10)), [1, 0]]


@given(LOGS)
def test_a_mean_mark_is_the_mean_of_the_marks_by_their_probabilities(logs):
    weights = np.exp(logs)
    found = mean_mark(torch.tensor([logs, logs], dtype=torch.float64), ONE_TOKEN)
    assert found.tolist() == pytest.approx([weights @ np.arange(11) / weights.sum()] * 2)
    assert 0 <= found.min() <= found.max() <= 10


@given(st.lists(st.floats(0.001, 1), min_size=11, max_size=11))
def test_a_judge_that_is_asked_by_parts_of_a_mark_gives_the_mean_of_whole_marks(weights):
    begun = [*weights[:10], weights[10]]
    begun[1] += weights[10]  # whoever writes 10 writes 1 first
    found = mean_mark(torch.tensor([begun], dtype=torch.float64).log(), TWO_TOKENS)
    assert found.item() == pytest.approx(np.array(weights) @ np.arange(11) / sum(weights))


def test_the_bits_of_a_mark_depend_on_no_neighbour(build, tokenizer, questions):
    model = build("GPTNeoXConfig", "GPTNeoXForCausalLM")
    labels = label_tokens(tokenizer)
    prompts = [np.array(tokenizer(text)["input_ids"]) for text in questions]

    def marks(part):
        found = np.zeros(len(part))
        for rows, values in expected_marks(model, part, labels, 300):
            found[rows] = values
        return found

    whole = marks(prompts)
    assert (marks(prompts[::-1])[::-1] == whole).all()
    assert (np.concatenate([marks(prompts[n : n + 3]) for n in range(0, len(prompts), 3)]) == whole).all()


def test_the_ledger_must_have_a_reply_for_each_row_that_may_become_a_candidate(
    run, write_raw, write_leaks, write_duplicates, monkeypatch, caplog
):
    asked = {}

    def marks_of(corpus, needed, ledger, prompt, request):
        asked.update(ids=corpus["id"].to_pylist(), needed=list(needed), prompt=prompt, request=request.model_dump())
        assert set(corpus.column_names) >= {"instruction", "output", "turns"}
        columns = {"score": [8.5, np.nan, np.nan, 3.0], "kind": ["ok", "unparsed", None, "ok"]}
        return pd.DataFrame(columns | {name: pd.Series([4, None, None, 5]) for name in
                                       ("score_again", "prompt_tokens", "reply_tokens")})  # fmt: skip

    monkeypatch.setattr(ledger_module, "marks_of", marks_of)
    raw = write_raw(["가?", "나?", "가?", "다?"])
    flags = {
        "leaks": write_leaks(("row0", "copa", "test", 1, "exact", True)),
        "duplicates": write_duplicates(("row3", "row1", True)),
    }
    with caplog.at_level("INFO", logger="stages"):
        found = pa.parquet.read_table(run(raw, "ledger", **flags))
    ids = ["row0", "row1", "row2", "row3"]
    needed = [False, True, True, False]
    assert asked == {"ids": ids, "needed": needed, "prompt": "rating_ko", "request": REQUEST}
    assert found.schema.remove_metadata() == rate.RATINGS
    rows = found.to_pydict()
    assert rows["score"] == [8.5, None, None, 3.0]
    assert rows["kind"] == ["ok", "unparsed", None, "ok"]
    assert rows["reply_tokens"] == [4, None, None, 5]
    assert rows["ifd"] == rows["text_hash"] == [None] * 4
    assert "kinds: no reply 1, ok 2, unparsed 1" in caplog.text


def test_without_a_judge_every_rating_is_null(run, raw):
    found = read_arrow(run(raw, "none"))
    assert found.schema == rate.RATINGS
    assert found["id"].to_pylist() == read_table(raw)["id"].tolist()
    assert all(found[name].null_count == len(found) for name in found.column_names[1:])


def test_only_a_judges_own_settings_are_in_the_fingerprint_of_its_scores(run, write_raw):
    raw = write_raw(["무엇?"], outputs=["그것."])

    def fingerprint(**settings):
        return json.loads(read_arrow(run(raw, **settings)).schema.metadata[b"fingerprint"])

    before = fingerprint()
    assert fingerprint(prompt="other", request=REQUEST | {"model": "other"}, ledger="elsewhere") == before
    now = fingerprint(batch_tokens=512)
    assert {name for name in before if before[name] != now[name]} == {"batch_tokens"}
