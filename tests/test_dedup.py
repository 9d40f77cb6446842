"""Near-duplicates: every pair is found and no other, and what is dropped depends only on earlier rows."""

import math
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import dedup as deduplicating
from stages import fetch, merge
from stages.dedup import DUPLICATES, Params
from stages.lib.core.artifacts import read_arrow, read_table, write_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import read_params
from stages.lib.text import near_duplicates
from stages.lib.text.conversations import whole_texts
from stages.lib.text.near_duplicates import comparable, join_crowd, load_grams, near_in_letters
from stages.lib.text.overlap import normalise
from tests.project import ROOT

DATA = Path(os.environ.get("KO_DATA", ROOT.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real rows: {DATA} is not a folder; set KO_DATA")
TEXTS = st.lists(st.text("가나", min_size=1, max_size=14), max_size=30)
"""Of two letters, so that many are similar and some are equal."""
LEXICAL = {"ngram": 5, "listed_from": 0.7, "dropped_from": 0.8}
SEMANTIC = {"listed_from": 0.8, "dropped_from": 0.9, "exact_rows": 1000}


def find(texts, n=5, least=0.7):
    return near_in_letters(lambda rows: [texts[row] for row in rows], len(texts), n, least)


def as_dict(near):
    """{(later, earlier): similarity}"""
    pairs = zip(near.later.tolist(), near.earlier.tolist(), strict=True)
    return dict(zip(pairs, near.similarity.tolist(), strict=True))


def plain_grams(text, n):
    return {text[i : i + n] for i in range(len(text) - n + 1)} if len(text) >= n else {text}


def plain_join(texts, n=5, least=0.7):
    """Every pair of texts that differ: an inverted index of the rarest n-grams, nothing approximate."""
    first = {}
    for row, text in enumerate(texts):
        first.setdefault(text, row)
    sets = {row: plain_grams(text, n) for text, row in first.items()}
    spread, index, found = defaultdict(int), defaultdict(list), {}
    for grams in sets.values():
        for gram in grams:
            spread[gram] += 1
    for row, grams in sets.items():
        rarest = sorted(grams, key=lambda gram: (spread[gram], gram))[: math.floor((1 - least) * len(grams) + 1e-9) + 1]
        for other in {other for gram in rarest for other in index[gram]}:
            shared = len(grams & sets[other])
            similarity = shared / (len(grams) + len(sets[other]) - shared)
            if similarity >= least:
                found[max(row, other), min(row, other)] = similarity
        for gram in rarest:
            index[gram].append(row)
    return found


@given(TEXTS, st.integers(1, 6), st.sampled_from([0.8, 0.9, 1.0]))
def test_the_pairs_found_are_those_of_a_plain_join_and_their_similarity_is_exact(texts, n, least):
    assert as_dict(find(texts, n, least)) == plain_join(texts, n, least)


@given(TEXTS, st.integers(1, 6), st.sampled_from([0.5, 0.6, 0.75, 1.0]))
def test_the_join_of_crowded_rows_misses_no_pair(texts, n, least):
    texts = list(dict.fromkeys(texts))
    grams = load_grams(lambda rows: [texts[row] for row in rows], np.arange(len(texts)), n)
    assert set(map(tuple, join_crowd(grams, least).tolist())) >= set(plain_join(texts, n, least))


@given(TEXTS, st.integers(1, 5))
def test_no_pair_is_lost_when_every_bucket_is_crowded(texts, crowd):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "CROWD", crowd)
        assert as_dict(find(texts, 2, 0.75)) == plain_join(texts, 2, 0.75)


@given(TEXTS)
def test_what_is_found_does_not_depend_on_the_blocks(texts):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("BLOCK", "TOGETHER", "POSTINGS"):
            patch.setattr(near_duplicates, name, 3)
        in_blocks = find(texts, 2)
    assert as_dict(in_blocks) == as_dict(find(texts, 2))
    assert (in_blocks.first == [texts.index(text) for text in texts]).all()


@given(TEXTS)
def test_a_row_that_equals_an_earlier_one_is_listed_once(texts):
    near = find(texts, 2)
    assert near.first.tolist() == [texts.index(text) for text in texts]
    assert set(near.later) | set(near.earlier) <= set(near.first)


def test_spaces_punctuation_and_case_make_no_difference_but_rows_of_signs_are_compared_as_they_are():
    assert comparable("김치, 찌개! ABC") == comparable("김치찌개abc")
    assert comparable("?! ㅋㅋ") != comparable("... ㅋㅋㅋ")


def test_ten_thousand_equal_rows_give_ten_thousand_pairs():
    texts = ["이 문장은 만 번 되풀이됩니다"] * 10_000 + ["이 문장은 만 번 되풀이됩니다요"]
    near = find(texts)
    assert (near.first[:-1] == 0).all()
    assert as_dict(near).keys() == {(10_000, 0)}


def templated(rows, instruction, answer, seed=1):
    """Texts that share their first letters."""
    rng = np.random.default_rng(seed)
    fixed, *own = ("".join(map(chr, rng.integers(0xAC00, 0xD7A4, size))) for size in [instruction] + [answer] * rows)
    return [fixed + text for text in own]


def test_rows_with_one_long_instruction_are_not_all_compared(monkeypatch):
    # similarity 0.61 to each other: nearly every pair of the 3,000 rows, 4.5 million, shares a bucket
    texts = templated(3000, instruction=200, answer=60)
    texts += [texts[5][:-2] + "끝", texts[9] + "끝"]
    compared = []
    verify = near_duplicates.verify
    monkeypatch.setattr(
        near_duplicates, "verify", lambda grams, pairs: compared.append(len(pairs)) or verify(grams, pairs)
    )
    found = as_dict(find(texts))
    assert found.keys() == {(3000, 5), (3001, 9)}
    assert compared[0] < 1000


def test_too_many_pairs_to_list_stop_with_the_way_out(monkeypatch):
    monkeypatch.setattr(near_duplicates, "MOST_PAIRS", 1000)
    with pytest.raises(UserError, match=r"more than 1,000 pairs .* from 0\.7; raise listed_from"):
        find(templated(100, instruction=200, answer=10))


@pytest.fixture(scope="module")
def real(new_folder):
    """raw.parquet of the seven real files; rows that repeat in other spaces or punctuation stay."""
    folder, recipe = new_folder(), ROOT / "recipes/local.yaml"
    outs = {name: folder / name for name in ("raw", "held_out", "dropped")}
    fetch.fetch(read_params(fetch.Params, recipe), inputs=DATA / "instructions", sources=folder / "sources")
    params = read_params(merge.Params, recipe).merge
    drop = params.drop.model_copy(update={"duplicate": "exact"})
    held_out = params.held_out.model_copy(update={"sources": [], "share": 0.0})
    params = merge.Params(merge=params.model_copy(update={"drop": drop, "held_out": held_out}))
    merge.merge(params, sources=folder / "sources", **outs)
    return folder / "raw"


@pytest.fixture
def run(new_folder, write_vectors):
    """Run the stage on a raw.parquet; without vectors, they are all alike."""

    def stage(raw, vectors=None, lexical=LEXICAL, semantic=None):
        ids = read_table(raw, "id")["id"]
        vectors = np.eye(1, 2).repeat(len(ids), axis=0) if vectors is None else vectors
        params = Params.model_validate({"threads": 1, "dedup": {"lexical": lexical, "semantic": semantic}})
        path = new_folder() / "duplicates.parquet"
        deduplicating.dedup(params, raw=raw, embeddings=write_vectors(ids, vectors), duplicates=path)
        assert read_arrow(path).schema.remove_metadata() == DUPLICATES
        return path

    return stage


@pytest.mark.slow
@needs_data
def test_every_similar_pair_of_the_real_rows_is_listed_and_no_other_and_an_appended_row_changes_none(
    real, run, new_folder
):
    table = read_arrow(real)
    ids, texts = (
        table["id"].to_pylist(),
        [normalise(f"{asked} {out}") for asked, out in zip(*whole_texts(table), strict=True)],
    )
    assert len(texts) > 33_000
    assert all(texts)
    listed = read_table(run(real))
    found = {(row.id, row.of): row.similarity for row in listed.itertuples()}
    expected = {(ids[later], ids[earlier]): value for (later, earlier), value in plain_join(texts).items()}
    first = {text: row for row, text in reversed(list(enumerate(texts)))}
    equal = {(ids[row], ids[first[text]]): 1.0 for row, text in enumerate(texts) if first[text] != row}
    assert len(expected) > 200
    assert len(equal) > 10
    assert found == expected | equal

    appended, whole = new_folder() / "raw", table.to_pandas()
    again = whole.loc[[whole.index[whole["id"] == listed["of"].iloc[-1]][0]]]
    again = again.assign(id="appended", output=again["output"] + " 끝.")
    write_table(appended, pd.concat([whole, again], ignore_index=True), merge.RAW)
    more = read_table(run(appended))
    assert set(more["id"]) - set(listed["id"]) == {"appended"}
    pd.testing.assert_frame_equal(more[more["id"] != "appended"], listed)
