"""Perplexities: equal to a plain forward pass, and a function of the row only."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from stages.lib.core.artifacts import read_table
from stages.lib.core.errors import UserError
from stages.lib.scoring.log_likelihood import nll_sums
from stages.ppl import Params, ppl

MODELS = {  # the last four cap or scale their logits after the head
    "GPTNeoX": {},
    "Llama": {"num_key_value_heads": 1},
    "GPT2": {},
    "Gemma2": {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 16, "final_logit_softcapping": 2.0},
    "Cohere": {"num_key_value_heads": 1, "logit_scale": 0.25},
    "Granite": {"num_key_value_heads": 1, "logits_scaling": 4.0},
    "HyperCLOVAX": {"num_key_value_heads": 1, "logits_scaling": 0.5},
}
HEADS = {"GPT2": "GPT2LMHeadModel"}
BUDGETS = (96, 256, 1024)
LENGTHS = (2, 3, 5, 7, 8, 9, 13, 16, 17, 20, 31, 33, 47, 64, 65, 90, 130, 200, 2, 8, 9, 17, 33, 33, 64)


@pytest.fixture(scope="module", params=MODELS)
def model(request, build):
    name = request.param
    return build(f"{name}Config", HEADS.get(name, f"{name}ForCausalLM"), **MODELS[name])


@pytest.fixture(scope="module")
def sequences(tokenizer):
    rng = np.random.default_rng(1)
    return [rng.integers(3, len(tokenizer), size=length).tolist() for length in LENGTHS]


def score(model, sequences, budget):
    return nll_sums(model, sequences, [1] * len(sequences), budget, "test")


@torch.inference_mode()
def plain(model, ids):
    """Mean negative log-likelihood, as transformers computes its loss."""
    row = torch.tensor([ids])
    return model(input_ids=row, labels=row).loss.item()


def test_a_row_scores_as_it_does_alone_in_transformers(model, sequences):
    expected = [plain(model, ids) for ids in sequences]
    for budget in BUDGETS:
        assert score(model, sequences, budget) / (np.array(LENGTHS) - 1) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_rows_bits_do_not_depend_on_its_neighbours(budget, model, sequences):
    together = score(model, sequences, budget)
    order = np.random.default_rng(2).permutation(len(sequences))
    assert (score(model, [sequences[row] for row in order], budget) == together[order]).all()
    parts = [score(model, sequences[start : start + 4], budget) for start in range(0, len(sequences), 4)]
    assert (np.concatenate(parts) == together).all()
    companions = [[3] * length for length in range(2, 120, 3)]
    assert (score(model, companions + sequences, budget)[len(companions) :] == together).all()


def test_half_precision_keeps_its_bits_whatever_the_neighbours(build, sequences):
    model = build("GPTNeoXConfig", "GPTNeoXForCausalLM").bfloat16()
    together = score(model, sequences, 256)
    for order in (range(len(sequences))[::-1], range(0, len(sequences), 3)):
        assert (score(model, [sequences[row] for row in order], 256) == together[list(order)]).all()


def test_only_tokens_from_the_start_on_count(build, sequences):
    model = build("GPTNeoXConfig", "GPTNeoXForCausalLM")
    starts = [len(ids) // 2 or 1 for ids in sequences]
    found = nll_sums(model, sequences, starts, 256, "test")
    with torch.inference_mode():
        for ids, start, nll in zip(sequences, starts, found, strict=True):
            labels = torch.tensor([[-100] * start + ids[start:]])
            loss = model(input_ids=torch.tensor([ids]), labels=labels).loss.item()
            assert nll / (len(ids) - start) == pytest.approx(loss, abs=1e-5)


def test_a_row_without_a_predicted_token_scores_nothing(build):
    model = build("GPTNeoXConfig", "GPTNeoXForCausalLM")
    assert list(nll_sums(model, [[], [5], [5, 6]], [1, 1, 2], 256, "test")) == [0, 0, 0]
    assert len(nll_sums(model, [], [], 256, "test")) == 0


def test_more_than_a_chunk_of_predicted_tokens_is_scored(build):
    model = build("GPTNeoXConfig", "GPTNeoXForCausalLM")
    ids = np.random.default_rng(3).integers(3, 300, size=(16, 250)).tolist()
    found = score(model, ids, 4096) / 249
    assert found == pytest.approx([plain(model, row) for row in ids], abs=1e-5)


@pytest.fixture(scope="module")
def run(new_folder, lm):
    """Score a raw.parquet; settings over defaults."""

    def stage(raw, scorer=lm, **settings):
        defaults = {"max_tokens": 128, "add_bos": False, "batch_tokens": 256, "dtype": "fp32"}
        path = new_folder() / "ppl.parquet"
        params = Params.model_validate({"threads": 1, "ppl": defaults | settings})
        ppl(params, raw=raw, scorer=scorer, checkpoints=path.parent / "checkpoints", ppl=path)
        return path

    return stage


@pytest.fixture(scope="module")
def reference(lm):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(lm).eval()


def test_a_perplexity_is_of_the_instruction_alone(run, write_raw, questions, tokenizer, reference):
    found = read_table(run(write_raw(questions)))
    for text, row in zip(questions, found.itertuples(), strict=True):
        ids = tokenizer(text)["input_ids"]
        nll = plain(reference, ids)
        assert row.tokens == len(ids) - 1
        assert (row.nll, np.log(row.ppl)) == pytest.approx((nll, nll), abs=1e-5)


def test_row_i_is_row_i_of_raw_and_equal_texts_score_equally(run, write_raw, questions):
    texts = [questions[3], questions[1], questions[3]]
    found = read_table(run(write_raw(texts)))
    assert list(found["id"]) == ["row0", "row1", "row2"]
    assert found["ppl"][0] == found["ppl"][2] != found["ppl"][1]


def test_one_token_predicts_nothing_and_gives_null(run, write_raw, questions):
    table = pq.read_table(run(write_raw(["A", questions[0], ""]))).to_pydict()
    assert table["tokens"][::2] == [0, 0]
    assert table["nll"][::2] == table["ppl"][::2] == [None, None]
    assert table["ppl"][1] is not None


def test_with_a_beginning_the_first_token_is_predicted_too(run, write_raw, questions, tokenizer, reference):
    texts = ["A", *questions[:5]]
    found = read_table(run(write_raw(texts), add_bos=True))
    ids = [[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]] for text in texts]
    assert list(found["tokens"]) == [len(row) - 1 for row in ids]
    assert list(found["nll"]) == pytest.approx([plain(reference, row) for row in ids], abs=1e-5)


def test_tokens_beyond_the_limit_do_not_count(run, write_raw, questions, tokenizer, reference):
    found = read_table(run(write_raw(questions), max_tokens=9))
    cut = [tokenizer(text)["input_ids"][:9] for text in questions]
    assert list(found["tokens"]) == [len(ids) - 1 for ids in cut]
    assert list(found["nll"]) == pytest.approx([plain(reference, ids) for ids in cut], abs=1e-5)


def test_more_tokens_than_positions_stop_the_stage(run, write_raw, questions):
    raw = write_raw(questions)
    for settings in ({"max_tokens": 257}, {"max_tokens": 256, "add_bos": True}):
        with pytest.raises(UserError, match=r"ppl\.max_tokens: 257 tokens, but the model has 256 positions"):
            run(raw, **settings)


@pytest.mark.parametrize("positions", [100, 256])
def test_every_position_of_the_model_can_be_used(positions, run, write_raw, questions, build, save, tokenizer):
    folder = save(build("GPT2Config", "GPT2LMHeadModel", max_position_embeddings=positions), tokenizer)
    found = read_table(run(write_raw([" ".join(questions)]), scorer=folder, max_tokens=positions))
    assert list(found["tokens"]) == [positions - 1]


def test_a_tokenizer_without_a_beginning_stops_add_bos(run, write_raw, questions, build, save, tokenizer):
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    folder = save(build("GPTNeoXConfig", "GPTNeoXForCausalLM"), bare)
    with pytest.raises(UserError, match=r"ppl\.add_bos: the tokenizer of .* has no bos token"):
        run(write_raw(questions), scorer=folder, add_bos=True)


def test_the_stage_writes_the_same_bytes_twice(run, write_raw, questions):
    raw = write_raw(questions)
    assert run(raw).read_bytes() == run(raw).read_bytes()


def test_rows_that_are_added_change_no_bit_of_the_others(run, write_raw, questions):
    before = read_table(run(write_raw(questions[:20])))
    after = read_table(run(write_raw(questions)))
    assert after[:20].equals(before)


def test_half_precision_is_close_to_full(run, write_raw, questions):
    raw = write_raw(questions[:10])
    full, half = (read_table(run(raw, dtype=dtype))["nll"] for dtype in ("fp32", "bf16"))
    assert list(half) == pytest.approx(list(full), rel=0.05)
    assert not half.equals(full)
