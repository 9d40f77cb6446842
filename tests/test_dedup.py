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
from stages.dedup import DUPLICATES, Params, mark_dropped
from stages.lib.core.artifacts import read_arrow, read_table, write_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import read_params
from stages.lib.selection import neighbours
from stages.lib.selection.neighbours import near_in_meaning
from stages.lib.text import near_duplicates
from stages.lib.text.conversations import whole_texts
from stages.lib.text.near_duplicates import Near, comparable, join_crowd, load_grams, near_in_letters
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
    with pytest.raises(UserError, match=r"more than 1,000 pairs may .* at least 0\.7; raise listed_from"):
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


def unit(vectors):
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


VECTORS = st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=1, max_size=25).map(lambda rows: unit(np.array(rows)))
"""Some are equal, some are zero."""


def plain_cosines(vectors, least):
    first = {}
    for row, vector in enumerate(vectors):
        first.setdefault(vector.tobytes(), row)
    rows = [row for row in first.values() if vectors[row].any()]
    products = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    return {(a, b): products[a, b] for a in rows for b in rows if b < a and products[a, b] >= least}


@given(VECTORS, st.integers(1, 5))
def test_up_to_a_row_count_every_pair_that_is_close_in_meaning_is_found(vectors, block):
    vectors = vectors + np.float32(0)  # -0 and 0 have other bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK", block)
        near = near_in_meaning(vectors, 0.75, exact_rows=100)
    expected = plain_cosines(vectors, 0.75)
    assert as_dict(near) == pytest.approx(expected, abs=1e-12)
    assert all(near.first[row] == row for row in np.flatnonzero(~vectors.any(axis=1)))
    assert all((vectors[near.first] == vectors).all(axis=1))


def test_above_it_nearly_every_pair_is_found_and_its_similarity_is_the_same():
    rng = np.random.default_rng(1)
    topics = rng.normal(size=(300, 32))
    vectors = unit(topics[rng.integers(0, 300, 6000)] + 0.5 * rng.normal(size=(6000, 32)))
    exact, blocked = (as_dict(near_in_meaning(vectors, 0.8, rows)) for rows in (6000, 5999))
    assert blocked.items() <= exact.items()
    assert len(exact) > 10_000
    assert len(blocked) > 0.99 * len(exact)


def test_the_order_of_the_rows_does_not_change_which_are_compared():
    rng = np.random.default_rng(2)
    vectors, order = unit(rng.normal(size=(800, 8))), rng.permutation(800)
    moved = as_dict(near_in_meaning(vectors[order], 0.8, exact_rows=10))
    back = {tuple(sorted((order[a], order[b]), reverse=True)): value for (a, b), value in moved.items()}
    assert back == pytest.approx(as_dict(near_in_meaning(vectors, 0.8, exact_rows=10)), abs=1e-12)


@pytest.mark.slow
@needs_data
def test_of_the_real_rows_at_least_95_percent_of_an_exact_join_are_found(real):
    from tests.test_real_rows import unit_vectors

    vectors = unit_vectors(read_table(real, "instruction")["instruction"]).astype(np.float32)
    assert len(vectors) > 33_000
    exact, blocked = (set(as_dict(near_in_meaning(vectors, 0.8, rows))) for rows in (10**6, 1))
    share = len(blocked) / len(exact)
    print(f"{len(exact):,} pairs, {share:.4f} of them found")
    assert blocked <= exact
    assert share >= 0.95


@st.composite
def worlds(draw):
    """Rows as two kinds see them: equal rows, and similar pairs among those that are first."""
    rows, kinds = draw(st.integers(1, 12)), {}
    for kind in ("lexical", "semantic"):
        names = draw(st.lists(st.integers(0, rows // 2 + 1), min_size=rows, max_size=rows))
        first = np.array([names.index(name) for name in names])
        nodes = sorted(set(first.tolist()))
        every = [(a, b) for a in nodes for b in nodes if b < a]
        pairs = sorted(draw(st.sets(st.sampled_from(every)))) if every else []
        values = draw(st.lists(st.sampled_from([0.7, 0.8, 0.9]), min_size=len(pairs), max_size=len(pairs)))
        later, earlier = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        least = draw(st.sampled_from([None, 0.8]))
        kinds[kind] = Near(first, later, earlier, np.array(values, dtype=float)), least
    return rows, kinds


def plain_greedy(rows, kinds):
    """The rows that are kept, by the definition: compare each row with every kept one."""

    def similar(a, b):
        for near, least in kinds.values():
            if least is None:
                continue
            ends = tuple(sorted((near.first[a], near.first[b]), reverse=True))
            if ends[0] == ends[1] or as_dict(near).get(ends, 0) >= least:
                return True
        return False

    kept = []
    for row in range(rows):
        if not any(similar(row, other) for other in kept):
            kept.append(row)
    return kept


@given(worlds())
def test_a_row_is_dropped_if_it_is_similar_to_an_earlier_row_that_is_kept_and_only_then(world):
    rows, kinds = world
    pairs = mark_dropped(kinds)
    assert sorted(set(range(rows)) - set(pairs.loc[pairs["drop"], "later"])) == plain_greedy(rows, kinds)
    assert all(kinds[kind][1] is not None for kind in pairs.loc[pairs["drop"], "kind"])


@given(TEXTS, st.text("가나", min_size=1, max_size=14))
def test_an_appended_row_changes_nothing_before_it(texts, added):
    before, after = (mark_dropped({"lexical": (find(rows, 2), 0.8)}) for rows in (texts, [*texts, added]))
    pd.testing.assert_frame_equal(after[after["later"] < len(texts)], before, check_dtype=False)


CHAIN = [
    "가나다라마바사아자차카타파하",
    "가나다라마바사아자차카타파호",
    "가나다라마바사아자차카타후호",
    "전혀 다른 문장입니다",
]


def test_of_a_chain_every_other_row_stays(run, write_raw):
    sentences = [f"{text} 그리고 언제나 똑같이 이어지는 긴 이야기" for text in CHAIN]
    listed = read_table(run(write_raw(sentences), lexical={"ngram": 2, "listed_from": 0.7, "dropped_from": 0.78}))
    assert listed[["id", "of", "kind", "drop"]].to_numpy().tolist() == [
        ["row1", "row0", "lexical", True],
        ["row2", "row0", "lexical", False],
        ["row2", "row1", "lexical", False],
    ]


def test_rows_can_be_near_in_meaning_only(run, write_raw):
    raw = write_raw(["김치찌개 끓이는 법 알려 줘", "김치찌개는 어떻게 만드나요?", "한라산은 어디에 있어?"])
    vectors = unit(np.array([[1, 0.1], [1, 0], [0, 1]]))
    listed = read_table(run(raw, vectors, semantic=SEMANTIC))
    assert listed[["id", "of", "kind", "drop"]].to_numpy().tolist() == [["row1", "row0", "semantic", True]]
    assert listed["similarity"][0] == pytest.approx(1 / math.hypot(1, 0.1))
    null = read_table(run(raw, vectors, semantic=SEMANTIC | {"dropped_from": None}))
    assert list(null["drop"]) == [False]


def test_every_turn_of_a_conversation_counts(run, new_folder):
    rows = [[("user", "안녕"), ("assistant", "네"), ("user", last), ("assistant", "네, 그럼요")] for last in CHAIN]
    turns = [[{"role": role, "text": text * 3} for role, text in row] for row in rows]
    ids, alike = [f"row{n}" for n in range(4)], {"instruction": ["안녕"] * 4, "output": ["네, 그럼요"] * 4}
    raw = new_folder() / "raw"
    write_table(raw, {"id": ids, "source": ["a"] * 4, "turns": turns, "final": [None] * 4} | alike, merge.RAW)
    listed = read_table(run(raw, lexical={"ngram": 2, "listed_from": 0.7, "dropped_from": 0.8}))
    assert set(listed["id"]) == {"row1", "row2"}


def test_without_a_kind_the_table_is_empty_and_equal_runs_give_equal_bytes(run, write_raw):
    raw = write_raw([*CHAIN, *CHAIN])
    assert read_table(run(raw, lexical=None)).empty
    assert run(raw).read_bytes() == run(raw).read_bytes()


@pytest.mark.parametrize("kind", ["lexical", "semantic"])
def test_a_dropped_pair_must_be_listed(kind):
    settings = {"lexical": LEXICAL, "semantic": SEMANTIC}
    settings[kind] = settings[kind] | {"dropped_from": 0.6}
    with pytest.raises(ValueError, match=rf"{kind}: dropped_from \(0\.6\) is below listed_from"):
        Params.model_validate({"threads": 1, "dedup": settings})
