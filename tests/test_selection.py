"""Which rows an arm takes: exact sizes, even coverage, and draws that stay."""

from fractions import Fraction
from math import floor

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.cluster import CLUSTERS
from stages.lib.core.artifacts import read_jsonl, read_table, write_table
from stages.lib.core.errors import UserError
from stages.lib.selection import methods as selection
from stages.lib.selection.methods import BINS, pool, quotas, total
from stages.ppl import PPL
from stages.sample import Params, sample
from tests.koquality import picks

FRACTIONS = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)
SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=20)


def select(rows, method, fraction, seed):
    return selection.select(rows, method, "exact", fraction, seed)


def places(method, quota, size):
    """Which ranks of one cell a method takes; the fraction asks for exactly `quota`."""
    rows = candidates(size, groups=1)
    return np.flatnonzero(
        select(rows, method, float(np.nextafter(quota / size, 1)) if quota < size else 1.0, 1)
    ).tolist()


def decimal(fraction):
    """The number as it is written in params.yaml."""
    return Fraction(str(fraction))


def candidates(count, start=0, groups=3):
    """Candidates in raw order, dealt to cells in turn, with ranks in every cell."""
    rows = pd.DataFrame({"id": [f"row{n}" for n in range(start, start + count)]})
    rows["length_group"], rows["cluster"] = rows.index % groups, 0
    rows["rank"] = rows.groupby("length_group").cumcount()
    rows["score"], rows["characters"] = rows["rank"] + 1.0, rows.index % 7
    rows["instruction"] = [f"{n}번 질문" for n in rows.index]
    return rows


@pytest.mark.parametrize(
    ("size", "fraction", "rows"),
    [(100, 0.29, 29), (1000, 0.001, 1), (999, 0.001, 0), (50, 1.0, 50), (100_000, 1e-5, 1)],
)
def test_a_fraction_is_read_as_it_is_written(size, fraction, rows):
    assert total(size, fraction) == rows


@given(SIZES, FRACTIONS)
def test_quotas_add_up_to_the_whole(sizes, fraction):
    found = quotas(np.array(sizes), fraction)
    assert found.sum() == floor(decimal(fraction) * sum(sizes)) == total(sum(sizes), fraction)


@given(SIZES, FRACTIONS)
def test_every_quota_is_within_one_of_its_share(sizes, fraction):
    for quota, size in zip(quotas(np.array(sizes), fraction).tolist(), sizes, strict=True):
        assert abs(quota - decimal(fraction) * size) < 1
        assert 0 <= quota <= size


@given(SIZES, FRACTIONS)
def test_the_largest_remainders_get_the_rows_that_are_left(sizes, fraction):
    shares = [decimal(fraction) * size for size in sizes]
    order = sorted(range(len(sizes)), key=lambda n: (-(shares[n] - floor(shares[n])), n))
    left = floor(sum(shares)) - sum(map(floor, shares))
    wanted = [floor(share) + (n in order[:left]) for n, share in enumerate(shares)]
    assert quotas(np.array(sizes), fraction).tolist() == wanted


@given(st.integers(1, 400), st.data())
def test_spread_positions_are_distinct_and_even(size, data):
    quota = data.draw(st.integers(1, size))
    found = places("spread", quota, size)
    assert found == [(2 * j + 1) * size // (2 * quota) for j in range(quota)]
    assert len(set(found)) == quota
    assert 0 <= min(found) <= max(found) < size
    assert sorted(size - 1 - place for place in found) == pytest.approx(found, abs=1)  # as many low as high


@given(st.integers(1, 400), st.data())
def test_highest_takes_the_last(size, data):
    quota = data.draw(st.integers(1, size))
    assert places("highest", quota, size) == list(range(size))[-quota:]


@given(st.integers(1, 400), st.data())
def test_middle_leaves_as_many_below_as_above(size, data):
    quota = data.draw(st.integers(1, size))
    assert places("middle", quota, size) == [(size - quota) // 2 + j for j in range(quota)]


@given(st.integers(1, 60), st.sampled_from(["spread", "highest", "middle", "steady", "random", "longest"]), FRACTIONS)
def test_an_arm_has_exactly_its_fraction(count, method, fraction):
    assert select(candidates(count), method, fraction, 1).sum() == floor(decimal(fraction) * count)


@given(
    st.lists(st.tuples(st.sampled_from([0, 3, 7]), st.integers(0, 20), st.sampled_from([None, 1.0, 2.0])), min_size=1),
    st.sampled_from(["spread", "highest", "middle", "steady", "random", "longest"]),
    FRACTIONS,
)
def test_ties_tiny_cells_and_repeated_instructions_change_no_arms_size(table, method, fraction):
    corpus = pd.DataFrame({"instruction": [f"{text}번" for _, text, _ in table], "output": "답"})
    cells = pd.DataFrame({"id": [str(n) for n in corpus.index], "length_group": 0, "cluster": [c for c, _, _ in table]})
    rows = pool(corpus, pd.Series([score for _, _, score in table], dtype=float), cells)
    count = len({text for _, text, score in table if score})
    found = select(rows[rows["reason"].isna()], method, fraction, 1) if count else np.zeros(0)
    assert found.sum() == floor(decimal(fraction) * count)


@given(st.integers(1, 80), st.integers(0, 80), st.integers(0, 100), FRACTIONS)
def test_one_row_more_moves_at_most_one_random_row(count, place, seed, fraction):
    rows = candidates(count)
    more = candidates(count + 1).assign(id=[*rows["id"][:place], "new", *rows["id"][place:]])
    before = set(rows["id"][select(rows, "random", fraction, seed)])
    after = set(more["id"][select(more, "random", fraction, seed)])
    assert len(before - after) <= 1
    assert len(after - before) <= 1


@given(st.permutations(range(30)))
def test_a_random_row_is_drawn_by_its_hash_and_not_its_place(order):
    rows = candidates(30)
    moved = rows.iloc[order].reset_index(drop=True)
    assert set(rows["id"][select(rows, "random", 0.3, 1)]) == set(moved["id"][select(moved, "random", 0.3, 1)])


def test_random_draws_every_row_equally_often():
    rows = candidates(40)
    counts = sum(select(rows, "random", 0.25, seed).astype(int) for seed in range(800))
    assert counts == pytest.approx(np.full(40, 200), abs=60)


@pytest.fixture
def run(new_folder, write_raw, write_leaks):
    """Sample {arm: settings} from rows of (instruction, perplexity, cluster) in one length group; files of one arm."""

    def stage(rows, arms, arm="ours", control=None, leaks=()):
        folder, count = new_folder(), len(rows)
        raw = write_raw([instruction for instruction, _, _ in rows])
        ids = list(read_table(raw)["id"])
        ppls = [ppl for _, ppl, _ in rows]
        write_table(folder / "ppl", {"id": ids, "text": ids, "tokens": [9] * count, "nll": ppls, "ppl": ppls}, PPL)
        cells = {"id": ids, "length_group": [0] * count, "cluster": [c for _, _, c in rows], "distance": [0.0] * count}
        write_table(folder / "clusters", cells, CLUSTERS)
        params = Params.model_validate({"arms": arms, "control": control or arm})
        out, why = folder / "ours.jsonl", folder / "ours.parquet"
        sample(params, arm, raw, folder / "ppl", folder / "clusters", write_leaks(*leaks), out, why)
        return read_table(raw), read_jsonl(out), read_table(why)

    return stage


def arm(method, fraction=None, seed=1):
    settings = {"method": method, "seed": seed}
    return {"ours": settings if fraction is None else settings | {"fraction": fraction}}


TABLE = [(f"{n}번 질문", float(100 - n % 7), n % 3) for n in range(60)]
ALL_BUT_ALL = ("spread", "highest", "middle", "steady", "random", "longest")
METHODS = [*((method, 0.2) for method in ALL_BUT_ALL), ("all", None)]


@pytest.mark.parametrize(("method", "fraction"), METHODS)
def test_the_rows_of_an_arm_are_those_of_raw_in_its_order(method, fraction, run):
    raw, chosen, why = run(TABLE, arm(method, fraction))
    assert chosen == raw[why["selected"].to_numpy()].to_dict("records")
    assert len(chosen) == (60 if fraction is None else 12)
    assert list(why["id"]) == list(raw["id"])
    assert set(why.loc[why["selected"], "reason"]) == {"selected"}
    assert set(why.loc[~why["selected"], "reason"]) <= {"outside the quota"}


def test_every_cell_gives_its_quota_by_perplexity(run):
    _, _, why = run(TABLE, arm("highest", 0.2))
    for _, rows in why.groupby("cluster"):
        order = sorted(rows.index, key=lambda row: (rows["score"][row], row))
        assert rows.loc[order, "rank"].tolist() == list(range(20))
        assert sorted(rows.index[rows["selected"]]) == sorted(order[-4:])


def test_spread_takes_low_and_high_alike(run):
    rows = [(f"{n}번 질문", float(1 + n * 17 % 100), 0) for n in range(100)]
    _, _, why = run(rows, arm("spread", 0.05))
    assert sorted(why.loc[why["selected"], "rank"]) == [10, 30, 50, 70, 90]


@pytest.mark.parametrize(("method", "fraction"), METHODS)
def test_a_repeated_instruction_and_a_row_without_perplexity_are_no_candidates(method, fraction, run):
    rows = [*TABLE, ("0번 질문", 100.0, 1), ("값이 없는 질문", None, 0), ("값이 없는 질문", 5.0, 0)]
    _, chosen, why = run(rows, arm(method, fraction))
    assert list(why["reason"][60:62]) == ["repeated instruction", "no perplexity"]
    assert why["rank"][60:62].isna().all()
    assert not why["selected"][60:62].any()
    assert why["reason"][62] in ("selected", "outside the quota")
    assert len(chosen) == (61 if fraction is None else 12)


@pytest.mark.parametrize(("method", "fraction"), METHODS)
def test_a_row_that_is_to_be_dropped_is_no_candidate_in_any_arm(method, fraction, run):
    leaks = [("row3", "copa", "test", 7, "exact", True), ("row5", "copa", "test", 8, "near", False)]
    rows = [*TABLE, ("3번 질문", 97.0, 0)]
    _, chosen, why = run(rows, arm(method, fraction), leaks=leaks)
    assert (why["reason"][3], pd.isna(why["rank"][3]), why["selected"][3]) == ("leaked", True, False)
    assert why["reason"][5] in ("selected", "outside the quota")
    assert why["reason"][60] in ("selected", "outside the quota")  # now the first of its instruction
    assert len(chosen) == (60 if fraction is None else 12)


def test_all_takes_every_candidate(run):
    _, chosen, why = run([*TABLE, ("값이 없는 질문", None, 0)], arm("all"))
    assert (len(chosen), int(why["selected"].sum())) == (60, 60)


@pytest.mark.parametrize(("method", "fraction"), [("spread", 0.01), ("random", 0.001)])
def test_an_arm_without_a_row_stops_by_name(method, fraction, run):
    with pytest.raises(
        UserError, match=rf"arms\.ours: no row: fraction {fraction} of 60 candidates .*raise the fraction"
    ):
        run(TABLE, arm(method, fraction))


def test_scores_of_another_merge_stop_the_stage(new_folder, write_raw, write_leaks):
    folder, raw = new_folder(), write_raw(["가", "나"])
    write_table(
        folder / "ppl",
        {"id": ["row0", "rowX"], "text": ["0", "X"], "tokens": [1, 1], "nll": [1.0, 1.0], "ppl": [3.0, 3.0]},
        PPL,
    )
    cells = {"id": ["row0", "row1"], "length_group": [0, 0], "cluster": [0, 0], "distance": [0.0, 0.0]}
    write_table(folder / "clusters", cells, CLUSTERS)
    params = Params.model_validate({"arms": arm("all"), "control": "ours"})
    with pytest.raises(UserError, match="ppl has rowX in row 1, not row1 as raw"):
        sample(params, "ours", raw, folder / "ppl", folder / "clusters", write_leaks(), folder / "a", folder / "b")


def test_arms_of_one_fraction_have_one_size(run):
    sizes = {method: len(run(TABLE, arm(method, 0.29))[1]) for method in ALL_BUT_ALL}
    assert set(sizes.values()) == {17}


def test_longest_takes_the_most_characters_of_output():
    rows = candidates(70)
    taken = select(rows, "longest", 0.2, 1)
    assert rows["characters"][taken].min() >= rows["characters"][~taken].max()


@given(st.integers(0, 100), st.integers(60, 1200))
def test_steady_rounds_the_rows_of_a_cell_once(seed, count):
    rows = candidates(count, groups=4)
    taken = pd.Series(select(rows, "steady", 0.1, seed)).groupby(rows["length_group"]).sum()
    assert (abs(taken - 0.1 * rows.groupby("length_group").size()) < 1.5).all()


@given(st.permutations(range(4)), st.integers(0, 100))
def test_steady_does_not_know_the_number_of_a_cell(numbers, seed):
    rows = candidates(200, groups=4)
    renamed = rows.assign(length_group=rows["length_group"].map(dict(enumerate(numbers))))
    assert (select(rows, "steady", 0.1, seed) == select(renamed, "steady", 0.1, seed)).all()


def test_steady_takes_its_share_of_every_stratum():
    rows = candidates(900)
    taken = select(rows, "steady", 0.1, 1)
    strata = [rows["length_group"], rows["rank"] * BINS // 300]
    assert set(pd.Series(taken).groupby(strata).sum()) <= {9, 10, 11}


@given(st.integers(0, 400), st.integers(0, 20))
def test_a_row_more_replaces_few_rows_of_steady(place, seed):
    rows = candidates(400, groups=1)
    more = candidates(401, groups=1).assign(id=[*rows["id"][:place], "new", *rows["id"][place:]])
    before = set(rows["id"][select(rows, "steady", 0.1, seed)])
    after = set(more["id"][select(more, "steady", 0.1, seed)])
    assert len(before - after) <= 4  # one row crosses each border of a stratum, and one makes room


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 25), st.sampled_from([1.0, 2.004, 2.0, 9.5])), min_size=1),
    st.sampled_from([0.01, 0.05, 0.1, 0.5]),
    st.sampled_from(["spread", "highest"]),
)
def test_allocation_koquality_picks_what_the_original_picks(table, fraction, method):
    scores = {text: score for _, text, score in table}  # one instruction has one perplexity and one cell
    homes = {text: cell for cell, text, _ in table}
    texts = [text for _, text, _ in table]
    corpus = pd.DataFrame({"instruction": [f"{'질문' * (text % 5)}{text}" for text in texts], "output": "답"})
    cells = pd.DataFrame({"id": [str(n) for n in range(len(texts))], "length_group": 0})
    cells["cluster"] = [homes[text] for text in texts]
    rows = pool(corpus, pd.Series([scores[text] for text in texts]), cells, repeated=True)
    taken = selection.select(rows, method, "koquality", fraction, 1)
    assert np.flatnonzero(taken).tolist() == picks(rows, fraction, method)


def test_koquality_is_an_allocation_of_its_own_methods_only():
    settings = {"method": "random", "fraction": 0.1, "seed": 1, "allocation": "koquality"}
    with pytest.raises(ValueError, match="allocation: koquality is one of"):
        Params.model_validate({"arms": {"ours": settings}, "control": "ours"})
