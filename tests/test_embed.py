"""Unit vectors: equal to a plain forward pass of one row, and a function of the row only."""

import tracemalloc

import numpy as np
import pytest
import torch

from stages.embed import Params, embed
from stages.lib.core.artifacts import read_arrow
from stages.lib.core.errors import UserError

POOLINGS = ("mean", "cls", "pooler")


@pytest.fixture(scope="module")
def run(new_folder, encoder):
    """Embed a raw.parquet; return its ids and vectors [N, D]."""

    def stage(raw, model=encoder, **settings):
        defaults = {"max_tokens": 128, "pooling": "mean", "batch_tokens": 256, "dtype": "fp32"}
        path = new_folder() / "embeddings.parquet"
        params = Params.model_validate({"threads": 1, "embed": defaults | settings})
        embed(params, raw=raw, encoder=model, checkpoints=path.parent / "checkpoints", embeddings=path)
        table = read_arrow(path)
        return table["id"].to_pylist(), np.array(table["vector"].to_pylist(), dtype=np.float32)

    return stage


@pytest.fixture(scope="module")
def plain(encoder, tokenizer):
    """Embed texts one by one, without padding [N, D]."""
    from transformers import AutoModel

    @torch.inference_mode()
    def vectors(texts, pooling="mean", max_tokens=128, folder=encoder):
        model = AutoModel.from_pretrained(folder).eval()
        found = []
        for text in texts:
            out = model(input_ids=torch.tensor([tokenizer(text)["input_ids"][:max_tokens]]))
            hidden = out.last_hidden_state[0]
            pooled = {"mean": hidden.mean(0), "cls": hidden[0], "pooler": out.get("pooler_output", hidden)[0]}[pooling]
            found.append((pooled / pooled.norm()).numpy())
        return np.stack(found)

    return vectors


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_vector_is_that_of_a_plain_forward_pass(pooling, run, write_raw, questions, plain):
    _, vectors = run(write_raw(questions), pooling=pooling)
    assert np.abs(vectors - plain(questions, pooling)).max() < 1e-5


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_have_length_one(pooling, run, write_raw, questions):
    _, vectors = run(write_raw(questions), pooling=pooling)
    assert np.linalg.norm(vectors.astype(float), axis=1) == pytest.approx(np.ones(len(questions)), abs=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_vectors_bits_do_not_depend_on_its_neighbours(pooling, run, write_raw, questions):
    ids, vectors = run(write_raw(questions), pooling=pooling)
    order = np.random.default_rng(1).permutation(len(questions))
    moved_ids, moved = run(write_raw([questions[row] for row in order]), pooling=pooling)
    assert moved_ids == ids
    assert (moved == vectors[order]).all()
    _, few = run(write_raw(questions[5:8]), pooling=pooling)
    assert (few == vectors[5:8]).all()


def test_equal_instructions_have_equal_vectors(run, write_raw, questions):
    ids, vectors = run(write_raw([questions[2], questions[0], questions[2]]))
    assert ids == ["row0", "row1", "row2"]
    assert (vectors[0] == vectors[2]).all()
    assert (vectors[0] != vectors[1]).any()


def test_tokens_beyond_the_limit_do_not_count(run, write_raw, questions, plain):
    _, vectors = run(write_raw(questions), max_tokens=6)
    assert np.abs(vectors - plain(questions, max_tokens=6)).max() < 1e-5


def test_an_encoder_without_a_pooler_stops_when_it_is_asked(run, write_raw, questions, build, save, tokenizer, plain):
    folder = save(build("DistilBertConfig", "DistilBertModel", hidden_dim=64), tokenizer)
    raw = write_raw(questions[:3])
    with pytest.raises(UserError, match=r"embed\.pooling.*no pooler; use mean or cls"):
        run(raw, model=folder, pooling="pooler")
    _, vectors = run(raw, model=folder, pooling="cls")
    assert np.abs(vectors - plain(questions[:3], "cls", folder=folder)).max() < 1e-5


def test_more_tokens_than_positions_stop_the_stage(run, write_raw, questions, build, save, tokenizer):
    roberta = save(build("RobertaConfig", "RobertaModel", max_position_embeddings=102), tokenizer)
    for tokens in (103, 102, 101):  # RoBERTa's positions start at 2, so 102 of them hold 100 tokens
        with pytest.raises(UserError, match=rf"embed\.max_tokens: {tokens} tokens, but the model has 100 positions"):
            run(write_raw(questions), model=roberta, max_tokens=tokens)


POSITIONS = {
    "BERT, 100": ("BertConfig", "BertModel", 100, 100),
    "BERT, 128": ("BertConfig", "BertModel", 128, 128),
    "RoBERTa, 100": ("RobertaConfig", "RobertaModel", 102, 100),
}


@pytest.mark.parametrize("case", POSITIONS)
def test_every_position_of_the_encoder_can_be_used(case, run, write_raw, questions, build, save, tokenizer, plain):
    config, model, positions, tokens = POSITIONS[case]
    folder, text = save(build(config, model, max_position_embeddings=positions), tokenizer), " ".join(questions)
    assert len(tokenizer(text)["input_ids"]) > tokens
    _, vectors = run(write_raw([text]), model=folder, max_tokens=tokens)
    assert np.abs(vectors - plain([text], max_tokens=tokens, folder=folder)).max() < 1e-5
    assert np.abs(vectors - plain([text], max_tokens=tokens - 1, folder=folder)).max() > 1e-4  # the last one counts


def test_one_long_instruction_costs_no_memory_for_the_others(run, write_raw, questions):
    raw = write_raw([*questions * 25, "긴 글 " * 5000])
    tracemalloc.start()
    run(raw, max_tokens=16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
