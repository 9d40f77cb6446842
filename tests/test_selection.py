"""Which rows an arm selects: exact sizes, even coverage, draws that stay, any score."""

from decimal import Decimal
from fractions import Fraction
from math import floor

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stages.candidates import CANDIDATES
from stages.lib.core.artifacts import read_table, write_table
from stages.lib.core.errors import UserError
from stages.lib.selection import diversity, methods
from stages.lib.selection.candidates import allow_repeated, reasons
from stages.lib.selection.diversity import best_apart, farthest_first
from stages.lib.selection.methods import BINS, METHODS, Method, Wanted
from stages.lib.selection.quotas import arm_size, exact_fraction, lowest_of_each, quotas, rank_in_group
from stages.sample import Arm, Params
from tests.koquality import picks
from tests.selecting import make_candidates, select_rows, write_clusters, write_ppl

FRACTIONS = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)
ALL_BUT_ALL = ("spread", "highest", "middle", "steady", "random", "longest")
SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=20)


def select(rows, method, fraction, seed, **wanted):
    return methods.select(rows, method, Wanted(exact_fraction(fraction), seed, **wanted))


def ranks_taken(method, quota, size):
    """The ranks that a method selects in a single cell; the fraction asks for exactly `quota` rows."""
    fraction = float(np.nextafter(quota / size, 1)) if quota < size else 1.0
    return np.flatnonzero(select(make_rows(size, groups=1), method, fraction, 1)).tolist()


def decimal(fraction):
    """The number as it is written in params.yaml."""
    return Fraction(str(fraction))


def make_rows(count, start=0, groups=3):
    """Candidates in the order of raw, spread over the cells in turn, with their ranks."""
    rows = pd.DataFrame({"id": [f"row{n}" for n in range(start, start + count)]})
    rows["length_group"], rows["cluster"] = rows.index % groups, 0
    rows["rank"] = rows.groupby("length_group").cumcount()
    rows["score"], rows["characters"] = rows["rank"] + 1.0, rows.index % 7
    rows["instruction"] = [f"{n}번 질문" for n in rows.index]
    rows["source"] = np.where(rows.index % 5, "life", "faq")
    return rows


@pytest.mark.parametrize(
    ("size", "fraction", "rows"),
    [(100, 0.29, 29), (1000, 0.001, 1), (999, 0.001, 0), (50, 1.0, 50), (100_000, 1e-5, 1)],
)
def test_a_fraction_is_read_as_it_is_written(size, fraction, rows):
    assert arm_size(size, exact_fraction(fraction)) == rows


@given(SIZES, FRACTIONS)
def test_quotas_add_up_to_the_size_of_the_arm(sizes, fraction):
    found = quotas(np.array(sizes), exact_fraction(fraction))
    assert found.sum() == floor(decimal(fraction) * sum(sizes)) == arm_size(sum(sizes), exact_fraction(fraction))


@given(SIZES, FRACTIONS)
def test_every_quota_is_within_one_of_its_share(sizes, fraction):
    for quota, size in zip(quotas(np.array(sizes), exact_fraction(fraction)).tolist(), sizes, strict=True):
        assert abs(quota - decimal(fraction) * size) < 1
        assert 0 <= quota <= size


@given(SIZES, FRACTIONS)
def test_the_largest_remainders_get_the_rows_that_are_left(sizes, fraction):
    shares = [decimal(fraction) * size for size in sizes]
    order = sorted(range(len(sizes)), key=lambda n: (-(shares[n] - floor(shares[n])), n))
    left = floor(sum(shares)) - sum(map(floor, shares))
    expected = [floor(share) + (n in order[:left]) for n, share in enumerate(shares)]
    assert quotas(np.array(sizes), exact_fraction(fraction)).tolist() == expected


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=20), st.floats(1e-6, 1))
def test_quotas_are_those_of_decimal_arithmetic(sizes, fraction):
    exact = [Decimal(str(fraction)) * size for size in sizes]
    floors = [int(value) for value in exact]
    missing = int(Decimal(str(fraction)) * sum(sizes)) - sum(floors)
    for i in sorted(range(len(exact)), key=lambda i: (floors[i] - exact[i], i))[:missing]:
        floors[i] += 1
    assert quotas(np.array(sizes), exact_fraction(fraction)).tolist() == floors


@given(SIZES, st.data())
def test_quotas_of_a_count_add_up_to_it(sizes, data):
    count = data.draw(st.integers(0, sum(sizes)))
    found = quotas(np.array(sizes), Fraction(count, sum(sizes)))
    assert found.sum() == count
    assert (found <= sizes).all()


@given(st.integers(1, 400), st.data())
def test_the_ranks_of_spread_are_distinct_and_even(size, data):
    quota = data.draw(st.integers(1, size))
    found = ranks_taken("spread", quota, size)
    assert found == [(2 * j + 1) * size // (2 * quota) for j in range(quota)]
    assert len(set(found)) == quota
    assert 0 <= min(found) <= max(found) < size
    assert sorted(size - 1 - rank for rank in found) == pytest.approx(found, abs=1)  # as many low as high


@given(st.integers(1, 400), st.data())
def test_highest_takes_the_last(size, data):
    quota = data.draw(st.integers(1, size))
    assert ranks_taken("highest", quota, size) == list(range(size))[-quota:]


@given(st.integers(1, 400), st.data())
def test_middle_leaves_as_many_below_as_above(size, data):
    quota = data.draw(st.integers(1, size))
    assert ranks_taken("middle", quota, size) == [(size - quota) // 2 + j for j in range(quota)]


@given(st.integers(1, 60), st.sampled_from(ALL_BUT_ALL), FRACTIONS)
def test_an_arm_has_exactly_its_fraction(count, method, fraction):
    assert select(make_rows(count), method, fraction, 1).sum() == floor(decimal(fraction) * count)


@given(
    st.lists(st.tuples(st.sampled_from([0, 3, 7]), st.integers(0, 20), st.sampled_from([None, 1.0, 2.0])), min_size=1),
    st.sampled_from(ALL_BUT_ALL),
    FRACTIONS,
)
def test_ties_tiny_cells_and_repeated_instructions_do_not_change_the_size_of_an_arm(table, method, fraction):
    rows = pd.DataFrame(table, columns=["cluster", "text", "score"]).astype({"score": float})
    rows = rows.assign(id=rows.index.astype(str), source="life", length_group=0, characters=1)
    no = pd.Series(False, index=rows.index)
    reason = reasons(rows["text"].astype(str), rows["score"], no, no, no, no)
    rows = rows[reason.isna()]
    count = len({text for _, text, score in table if score})
    found = select(rows.assign(rank=rank_in_group(rows, "score")), method, fraction, 1) if count else np.zeros(0)
    assert found.sum() == floor(decimal(fraction) * count)


@given(st.integers(1, 80), st.integers(0, 80), st.integers(0, 100), FRACTIONS)
def test_an_added_row_replaces_at_most_one_random_row(count, place, seed, fraction):
    rows = make_rows(count)
    more = make_rows(count + 1).assign(id=[*rows["id"][:place], "new", *rows["id"][place:]])
    before = set(rows["id"][select(rows, "random", fraction, seed)])
    after = set(more["id"][select(more, "random", fraction, seed)])
    assert len(before - after) <= 1
    assert len(after - before) <= 1


@given(st.permutations(range(30)))
def test_a_random_row_is_drawn_by_its_hash_and_not_its_position(order):
    rows = make_rows(30)
    moved = rows.iloc[order].reset_index(drop=True)
    assert set(rows["id"][select(rows, "random", 0.3, 1)]) == set(moved["id"][select(moved, "random", 0.3, 1)])


def test_random_draws_every_row_equally_often():
    rows = make_rows(40)
    counts = sum(select(rows, "random", 0.25, seed).astype(int) for seed in range(800))
    assert counts == pytest.approx(np.full(40, 200), abs=60)


@pytest.mark.parametrize("method", ["random", "steady"])
def test_another_seed_draws_other_rows(method):
    rows = make_rows(900)
    one, other = (select(rows, method, 0.2, seed) for seed in (1, 2))
    assert 0.1 <= (one & other).sum() / one.sum() <= 0.3  # two independent draws share 0.2 of their rows


def unit_vectors(count, width=8, seed=1):
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_table_of_methods_says_what_changes_the_rows():
    rows, settings = make_rows(300), {"distance": 0.2, "vectors": unit_vectors(300)}
    rescored = rows.assign(score=np.random.default_rng(1).random(300))
    rescored["rank"] = rank_in_group(rescored, "score")
    recut = rows.assign(length_group=np.random.default_rng(2).integers(0, 4, 300))
    recut["rank"] = rank_in_group(recut, "score")
    for name, method in METHODS.items():
        selected = select(rows, name, 0.2, 1, **settings)
        others = select(rows, name, 0.2, 1, **settings | {"vectors": unit_vectors(300, seed=2)})
        assert (selected != select(rows, name, 0.2, 2, **settings)).any() == method.draws_rows, name
        assert (selected != select(recut, name, 0.2, 1, **settings)).any() == method.uses_cells, name
        assert (selected != others).any() == method.reads_vectors, name
        if name != "threshold":  # its bounds, not its key, make it select by the score
            assert (selected != select(rescored, name, 0.2, 1, **settings)).any() == (method.by == "ppl"), name


@pytest.fixture
def run(new_folder, write_raw, write_leaks):
    """Sample {arm: settings} from rows of (instruction, perplexity, cluster) in one length group."""

    def stages(rows, arms, arm="ours", leaks=()):
        folder = new_folder()
        texts, nll, clusters = (list(values) for values in zip(*rows, strict=True))
        raw = write_raw(texts)
        ids = list(read_table(raw)["id"])
        ppl, cells = write_ppl(folder / "ppl", ids, nll), write_clusters(folder / "clusters", ids, clusters)
        table = make_candidates(folder, raw=raw, ppl=ppl, clusters=cells, leaks=write_leaks(*leaks))
        return select_rows(folder, raw, table, arms, arm)

    return stages


def arm(method, fraction=None, seed=1, **settings):
    settings |= {"method": method, "seed": seed}
    return {"ours": settings if fraction is None else settings | {"fraction": fraction}}


TABLE = [(f"{n}번 질문", float(100 - n % 7), n % 3) for n in range(60)]
ARMS = [*((method, 0.2) for method in ALL_BUT_ALL), ("all", None)]


@pytest.mark.parametrize(("method", "fraction"), ARMS)
def test_the_rows_of_an_arm_are_those_of_raw_in_its_order(method, fraction, run):
    raw, chosen, why = run(TABLE, arm(method, fraction))
    assert chosen == raw[why["selected"].to_numpy()].drop(columns=["turns", "final"]).to_dict("records")
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


def test_spread_takes_low_and_high_perplexities_alike(run):
    rows = [(f"{n}번 질문", float(1 + n * 17 % 100), 0) for n in range(100)]
    _, _, why = run(rows, arm("spread", 0.05))
    assert sorted(why.loc[why["selected"], "rank"]) == [10, 30, 50, 70, 90]


@pytest.mark.parametrize(("method", "fraction"), ARMS)
def test_a_repeated_instruction_and_a_row_without_perplexity_are_not_candidates(method, fraction, run):
    rows = [*TABLE, ("0번 질문", 100.0, 1), ("값이 없는 질문", None, 0), ("값이 없는 질문", 5.0, 0)]
    _, chosen, why = run(rows, arm(method, fraction))
    assert list(why["reason"][60:62]) == ["repeated instruction", "no perplexity"]
    assert why["rank"][60:62].isna().all()
    assert not why["selected"][60:62].any()
    assert why["reason"][62] in ("selected", "outside the quota")
    assert len(chosen) == (61 if fraction is None else 12)


@pytest.mark.parametrize(("method", "fraction"), ARMS)
def test_a_row_that_leaked_is_in_no_arm(method, fraction, run):
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
def test_an_arm_without_rows_stops_the_stage(method, fraction, run):
    with pytest.raises(
        UserError, match=rf"arms\.ours: fraction {fraction} of 60 candidates is less than one row; raise the fraction"
    ):
        run(TABLE, arm(method, fraction))


def test_candidates_of_another_merge_stop_the_stage(new_folder, write_raw):
    ids, folder = ["row0", "rowX"], new_folder()
    with pytest.raises(UserError, match="candidates has rowX in row 1, not row1 as in raw"):
        select_rows(folder, write_raw(["가", "나"]), write_candidates(folder, ids=ids), arm("all"))


def test_no_candidate_at_all_stops_the_stage(run):
    with pytest.raises(UserError, match=r"no row is a candidate; its column `reason` says why"):
        run([("값이 없는 질문", None, 0)], arm("all"))


def test_arms_of_one_fraction_have_one_size(run):
    sizes = {method: len(run(TABLE, arm(method, 0.29))[1]) for method in ALL_BUT_ALL}
    assert set(sizes.values()) == {17}


def test_longest_takes_the_most_characters_of_output():
    rows = make_rows(70)
    taken = select(rows, "longest", 0.2, 1)
    assert rows["characters"][taken].min() >= rows["characters"][~taken].max()


@given(st.integers(0, 100), st.integers(60, 1200))
@example(100, 100)  # takes 4 of 25
def test_steady_rounds_the_rows_of_a_cell_once(seed, count):
    rows = make_rows(count, groups=4)
    taken = pd.Series(select(rows, "steady", 0.1, seed)).groupby(rows["length_group"]).sum()
    assert (abs(taken - 0.1 * rows.groupby("length_group").size()) <= 1.5).all()


@given(st.permutations(range(4)), st.integers(0, 100))
def test_the_number_of_a_cell_does_not_matter_to_steady(numbers, seed):
    rows = make_rows(200, groups=4)
    renamed = rows.assign(length_group=rows["length_group"].map(dict(enumerate(numbers))))
    assert (select(rows, "steady", 0.1, seed) == select(renamed, "steady", 0.1, seed)).all()


def test_steady_takes_its_share_of_every_stratum():
    rows = make_rows(900)
    taken = select(rows, "steady", 0.1, 1)
    strata = [rows["length_group"], rows["rank"] * BINS // 300]
    assert set(pd.Series(taken).groupby(strata).sum()) <= {9, 10, 11}


@given(st.integers(0, 400), st.integers(0, 20))
def test_an_added_row_replaces_few_rows_of_steady(place, seed):
    rows = make_rows(400, groups=1)
    more = make_rows(401, groups=1).assign(id=[*rows["id"][:place], "new", *rows["id"][place:]])
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
    texts = pd.Series([text for _, text, _ in table])
    rows = pd.DataFrame({"instruction": [f"{'질문' * (text % 5)}{text}" for text in texts], "length_group": 0})
    rows = rows.assign(cluster=texts.map(homes), score=texts.map(scores))
    no = pd.Series(False, index=rows.index)
    reason = reasons(rows["instruction"], rows["score"], no, no, no, no)
    assert (reason.notna() == rows["instruction"].duplicated()).all()
    assert allow_repeated(reason).isna().all()  # the original selects repeated instructions too
    found = select(rows, method, fraction, 1, allocation="koquality")
    assert np.flatnonzero(found).tolist() == picks(rows, fraction, method)


def test_an_arm_of_koquality_selects_from_repeated_rows_too(run):
    rows = [*TABLE, *[(text, ppl, cluster) for text, ppl, cluster in TABLE if cluster == 1], ("둘", None, 0)]
    leaks = [("row3", "copa", "test", 7, "exact", True)]
    found = run(rows, arm("spread", 0.1, allocation="koquality"), leaks=leaks)
    kept = found.why["rank"].notna()
    assert list(found.why["reason"][~kept]) == ["leaked", "no perplexity"]
    assert found.why["rank"][60:80].notna().all()
    table = found.raw.merge(found.why, on="id")[kept]
    assert list(np.flatnonzero(found.why["selected"])) == list(table.index[picks(table, 0.1, "spread")])
    assert found.why["selected"][60:80].any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"method": "random"}, "needs method `spread` or `highest`"), ({"by": "tokens"}, "selects by ppl only")],
)
def test_allocation_koquality_allows_only_what_the_original_does(changes, words):
    settings = {"method": "spread", "fraction": 0.1, "seed": 1, "allocation": "koquality"} | changes
    with pytest.raises(ValueError, match=f"allocation: koquality {words}"):
        Arm.model_validate(settings)


SCORES = ("tokens", "nll", "ppl", "characters", "distance")


def write_candidates(folder, count=90, ids=None, **columns):
    """Write candidates.parquet with rows in three cells, of which two in nine are no candidates."""
    ids = ids or [f"row{n}" for n in range(count)]
    places, rng = np.arange(len(ids)), np.random.default_rng(1)
    table = {
        "id": ids,
        "source": np.where(places % 7 < 2, "faq", "life"),
        "length_group": places % 3 // 2,
        "cluster": places % 3 % 2,
        "distance": rng.random(len(ids)),
        "tokens": rng.integers(1, 9, len(ids)),  # many ties
        "nll": rng.normal(4, 1, len(ids)),
        "ppl": rng.normal(60, 20, len(ids)),
        **dict.fromkeys(["nll_answer", "nll_answer_alone", "ifd", "score"], [None] * len(ids)),
        "characters": rng.integers(1, 30, len(ids)),
        "reason": ["leaked" if n % 9 == 4 else "repeated instruction" if n % 9 == 7 else None for n in places],
    }
    write_table(folder / "candidates.parquet", table | columns, CANDIDATES)
    return folder / "candidates.parquet"


def plain_selection(table, method, by, fraction, groups=("length_group", "cluster")):
    """The definition of a method that uses quotas, written plainly: the positions in raw of the selected rows."""
    cells = {}
    for position, row in table.iterrows():
        if pd.isna(row["reason"]):
            cells.setdefault(tuple(row[name] for name in groups), []).append((row[by], position))
    shares = [decimal(fraction) * len(cell) for cell in cells.values()]
    left = floor(sum(shares)) - sum(map(floor, shares))
    cells = dict(sorted(cells.items()))
    shares = [decimal(fraction) * len(cell) for cell in cells.values()]
    largest = sorted(range(len(shares)), key=lambda n: (floor(shares[n]) - shares[n], n))[:left]
    selected = []
    for number, cell in enumerate(cells.values()):
        n, q = len(cell), floor(shares[number]) + (number in largest)
        ranks = {
            "spread": [(2 * j + 1) * n // (2 * q) for j in range(q)],
            "highest": range(n - q, n),
            "middle": [(n - q) // 2 + j for j in range(q)],
        }[method]
        selected += [sorted(cell)[rank][1] for rank in ranks]
    return sorted(selected)


@pytest.mark.parametrize("by", SCORES)
@pytest.mark.parametrize("method", ["spread", "highest", "middle"])
def test_an_arm_selects_by_the_score_that_it_names(method, by, new_folder, write_raw):
    folder, raw = new_folder(), write_raw([f"{n}번 질문" for n in range(90)])
    path = write_candidates(folder)
    table = read_table(path)
    for fraction in (0.07, 0.2, 0.5):
        why = select_rows(folder, raw, path, arm(method, fraction, by=by)).why
        assert np.flatnonzero(why["selected"]).tolist() == plain_selection(table, method, by, fraction)
        assert why["score"].tolist() == table[by].astype(float).tolist()
        for _, cell in why[table["reason"].isna()].groupby(["length_group", "cluster"]):
            assert cell.sort_values("score", kind="stable")["rank"].tolist() == list(range(len(cell)))
        assert why.loc[table["reason"].notna(), "rank"].isna().all()


def test_by_ppl_is_what_an_arm_does_that_names_no_score(new_folder, write_raw):
    folder, raw = new_folder(), write_raw([f"{n}번 질문" for n in range(90)])
    path = write_candidates(folder)
    named, default, other = (
        select_rows(folder, raw, path, arm("highest", 0.2, **by)).samples
        for by in ({"by": "ppl"}, {}, {"by": "characters"})
    )
    assert named == default != other


def test_the_score_does_not_change_the_size_of_an_arm(new_folder, write_raw):
    folder, raw = new_folder(), write_raw([f"{n}번 질문" for n in range(90)])
    path = write_candidates(folder)
    arms = [arm(method, 0.29, by=by) for method in ALL_BUT_ALL[:4] for by in SCORES]
    assert {len(select_rows(folder, raw, path, settings).samples) for settings in arms} == {floor(0.29 * 70)}


def test_the_score_moves_rows_of_steady(new_folder, write_raw):
    folder, raw = new_folder(), write_raw([f"{n}번 질문" for n in range(90)])
    path = write_candidates(folder)
    one, other = (select_rows(folder, raw, path, arm("steady", 0.2, by=by)).samples for by in ("nll", "characters"))
    assert one != other


@pytest.mark.parametrize("by", ["rating", "cluster", "length_group", "source", "id", "reason"])
def test_a_column_that_is_not_a_score_stops_the_stage_with_the_scores_there_are(by, new_folder, write_raw):
    folder = new_folder()
    with pytest.raises(UserError) as error:
        select_rows(folder, write_raw(["가?", "나?"]), write_candidates(folder, 2), arm("spread", 0.5, by=by))
    assert str(error.value) == (
        f"params.yaml: arms.ours.by: no score '{by}'; the scores are distance, tokens, nll, ppl, nll_answer, "
        "nll_answer_alone, ifd, score, characters"
    )


def test_a_new_method_is_one_entry_of_the_table(new_folder, write_raw, monkeypatch):
    folder, raw = new_folder(), write_raw([f"{n}번 질문" for n in range(90)])
    path = write_candidates(folder)
    with pytest.raises(ValueError, match="unknown method; known methods: spread, highest"):
        select_rows(folder, raw, path, arm("shortest", 0.2))

    def shortest(rows, _wanted):
        return rows["characters"].to_numpy(dtype=float)

    monkeypatch.setitem(METHODS, "shortest", Method(shortest, uses_cells=False, draws_rows=False))
    found = select_rows(folder, raw, path, arm("shortest", 0.2))
    table = read_table(path)
    table = table[table["reason"].isna()]
    expected = table.sort_values("characters", kind="stable")["id"][:14]
    assert [row["id"] for row in found.samples] == list(expected.sort_index())


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"by": "ppl"}, "by"),
        ({"max": None, "fraction": 0.2}, "max and fraction"),
        ({"allocation": "whole"}, "allocation"),
        ({"fraction": None, "size": {"method": "threshold", "max": 3.0}}, "fraction and size"),
    ],
)
def test_a_replicate_has_all_settings_of_its_arm_but_seed_and_partition(changes, keys):
    first = {"method": "spread", "by": "ifd", "max": 1.0, "fraction": 0.1, "seed": 1}
    again = first | {"seed": 2, "replicate": "ours"}
    others = {"threads": 1, "cluster": {"seeds": [1]}, "control": "ours"}
    assert Params.model_validate({"arms": {"ours": first, "again": again}} | others)
    with pytest.raises(ValueError, match=rf"arms\.again: a replicate of ours needs its {keys} too"):
        Params.model_validate({"arms": {"ours": first, "again": again | changes}} | others)


WRONG = {
    "by of random": ({"method": "random", "by": "nll"}, "`random` always ranks by nothing; leave `by` out"),
    "by of all": ({"method": "all", "fraction": None, "by": "nll"}, "`all` always ranks by nothing"),
    "by of coverage": ({"method": "coverage", "by": "nll"}, "`coverage` always ranks by nothing"),
    "by of longest": ({"method": "longest", "by": "nll"}, "`longest` always ranks by characters"),
    "bound of random": ({"method": "random", "min": 1.0}, "`random` ranks by nothing, so it has no `min`"),
    "no size": ({"fraction": None}, "every other method needs one of them"),
    "two sizes": ({"size": {"method": "threshold", "min": 1.0}}, "every other method needs one of them"),
    "size of all": ({"method": "all"}, "`all` and `threshold` have no fraction and no size"),
    "threshold without a bound": ({"method": "threshold", "fraction": None}, "`threshold` needs `min`, `max` or both"),
    "size without a bound": ({"fraction": None, "size": {"method": "threshold"}}, "needs `min`, `max` or both"),
    "no distance": ({"method": "deita"}, "`deita` needs a distance; no other method has one"),
    "a distance": ({"distance": 0.1}, "`deita` needs a distance; no other method has one"),
    "whole of random": ({"method": "random", "allocation": "whole"}, "whole needs method `spread`, .* or `steady`"),
    "source of deita": ({"method": "deita", "distance": 0.1, "allocation": "source"}, "source needs .* or `longest`"),
    "bound of koquality": (
        {"allocation": "koquality", "max": 9.0},
        "koquality selects by ppl only, and needs a fraction",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_setting_without_effect_and_a_missing_one_are_refused(wrong):
    changes, words = WRONG[wrong]
    with pytest.raises(ValueError, match=words):
        Arm.model_validate({"method": "spread", "fraction": 0.1, "seed": 1} | changes)


@pytest.fixture
def sampled(new_folder, write_raw, write_vectors):
    """Sample an arm from 90 rows with these columns of candidates.parquet and vectors; return its table."""

    def run(settings, vectors=None, **columns):
        folder, raw = new_folder(), write_raw([f"{n}번 질문" for n in range(90)])
        path = write_candidates(folder, **columns)
        embeddings = folder / "none" if vectors is None else write_vectors([f"row{n}" for n in range(90)], vectors)
        found = select_rows(folder, raw, path, {"ours": settings}, embeddings=embeddings)
        return read_table(path).drop(columns="reason").join(found.why[["rank", "selected", "reason"]])

    return run


RATED = [None if n % 10 == 3 else (n * 7 % 20) / 8 for n in range(90)]  # 0 to 2.375, many equal to a bound
BOUNDS = [{"min": 0.25}, {"max": 1.0}, {"min": 0.5, "max": 1.5}]


@pytest.mark.parametrize("bounds", BOUNDS)
def test_threshold_selects_every_candidate_within_its_bounds(bounds, sampled):
    why = sampled({"method": "threshold", "by": "ifd", "seed": 1} | bounds, ifd=RATED)
    candidate = ~why["reason"].isin(["leaked", "repeated instruction"])
    inside = candidate & why["ifd"].between(bounds.get("min", -1), bounds.get("max", 9))
    assert 0 < inside.sum() < candidate.sum()
    assert why["selected"].tolist() == inside.tolist()


def test_a_row_that_an_arm_cannot_select_says_why_and_is_counted(sampled, caplog):
    with caplog.at_level("INFO", logger="stages"):
        why = sampled(arm("highest", 0.2, by="ifd", min=0.25, max=1)["ours"], ifd=RATED)
    for row in why[why["reason"].isin(["no ifd", "ifd below 0.25", "ifd above 1"])].itertuples():
        found = "no ifd" if pd.isna(row.ifd) else "ifd above 1" if row.ifd > 1 else "ifd below 0.25"
        assert (row.reason, row.selected, pd.isna(row.rank)) == (found, False, True)
    counts = why["reason"].value_counts()
    assert set(counts.index) == {
        *("leaked", "repeated instruction", "no ifd", "ifd below 0.25", "ifd above 1", "selected", "outside the quota"),
    }
    listed = ", ".join(f"{counts[reason]} with {reason}" for reason in ("ifd above 1", "ifd below 0.25", "no ifd"))
    assert f"ours: 14 of 70 candidates (excluded: {listed})" in caplog.text


@pytest.mark.parametrize("method", ["spread", "highest", "middle", "steady"])
@pytest.mark.parametrize("allocation", ["exact", "source", "whole"])
def test_rows_without_the_score_or_outside_the_bounds_do_not_change_the_size(method, allocation, sampled):
    settings = arm(method, 0.2, by="ifd", max=1, allocation=allocation)["ours"]
    assert sampled(settings, ifd=RATED)["selected"].sum() == 14


@pytest.mark.parametrize("method", ["random", "longest", "spread", "steady", "coverage"])
def test_an_arm_can_have_the_size_of_a_threshold_to_the_row(method, sampled):
    for bounds in BOUNDS:
        size = {"method": "threshold", "by": "ifd"} | bounds
        wanted = sampled(size | {"seed": 1}, ifd=RATED)["selected"].sum()
        found = sampled({"method": method, "size": size, "seed": 1}, unit_vectors(90), ifd=RATED)
        assert found["selected"].sum() == wanted


@pytest.mark.parametrize("method", ["spread", "highest", "middle"])
@pytest.mark.parametrize(("allocation", "groups"), [("source", ["source"]), ("whole", [])])
def test_allocations_give_quotas_to_sources_or_to_the_whole_corpus(method, allocation, groups, sampled):
    for fraction in (0.07, 0.2, 0.5):
        why = sampled(arm(method, fraction, by="nll", allocation=allocation)["ours"])
        table = why.assign(reason=why["reason"].where(why["rank"].isna()))
        assert np.flatnonzero(why["selected"]).tolist() == plain_selection(table, method, "nll", fraction, groups)


@given(st.integers(1, 200), st.sampled_from(["steady", "random", "longest", "spread"]), FRACTIONS)
def test_allocation_source_keeps_the_mixture(count, method, fraction):
    rows = make_rows(count)
    rows["rank"] = rank_in_group(rows, "score", "source")
    taken = pd.Series(select(rows, method, fraction, 1, allocation="source")).groupby(rows["source"]).sum()
    sizes = rows.groupby("source").size()
    assert taken.tolist() == quotas(sizes.to_numpy(), exact_fraction(fraction)).tolist()


def test_within_a_source_the_rows_are_the_first_by_the_method_s_key():
    rows = make_rows(100)
    taken = select(rows, "longest", 0.1, 1, allocation="source")
    for _, source in rows.groupby("source"):
        longest = source.sort_values("characters", ascending=False, kind="stable").index[: len(source) // 10]
        assert sorted(longest) == list(source.index[taken[source.index]])


def test_the_highest_ifd_below_1_of_the_whole_corpus_is_cherry_s_rule(sampled):
    why = sampled(arm("highest", 0.1, by="ifd", max=1, allocation="whole")["ours"], ifd=RATED)
    below = why[~why["reason"].isin(["leaked", "repeated instruction"]) & (why["ifd"] <= 1)]
    best = below.sort_values("ifd", kind="stable").index[-7:]
    assert np.flatnonzero(why["selected"]).tolist() == sorted(best)


@pytest.mark.parametrize(
    ("by", "judge"), [("ifd", "likelihood"), ("nll_answer", "likelihood"), ("score", "ledger or logprob")]
)
def test_a_score_that_no_candidate_has_stops_the_stage_with_the_judge_that_gives_it(by, judge, sampled):
    words = rf"arms\.ours\.by: none of 70 candidates has a value in the column {by}; set rate\.judge to {judge}"
    with pytest.raises(UserError, match=words):
        sampled(arm("highest", 0.1, by=by)["ours"])
    with pytest.raises(UserError, match=words.replace("by:", "size.by:".replace(".", r"\."))):
        sampled({"method": "random", "size": {"method": "threshold", "by": by, "min": 0.0}, "seed": 1})


def test_too_few_selectable_rows_stop_the_stage_with_their_number(sampled):
    with pytest.raises(UserError) as error:
        sampled(arm("spread", 0.5, by="ifd", max=0.25)["ours"], ifd=RATED)
    assert str(error.value) == (
        "params.yaml: arms.ours: the arm needs 35 of 70 candidates, but may select only 9 (excluded: 54 with ifd above "
        "0.25, 7 with no ifd); change `min` and `max`, or select fewer rows"
    )
    with pytest.raises(UserError, match=r"arms\.ours: the arm needs 1 of 70 candidates, but may select only 0 "):
        sampled({"method": "threshold", "by": "ifd", "min": 5.0, "seed": 1}, ifd=RATED)
    size = {"method": "threshold", "by": "ifd", "min": 5.0}
    with pytest.raises(UserError, match=r"arms\.ours\.size: no candidate has its ifd within these bounds"):
        sampled({"method": "random", "size": size, "seed": 1}, ifd=RATED)


def brute_force_coverage(vectors, count):
    """Greedy k-center from the matrix of all distances."""
    distances = 1 - vectors.astype(float) @ vectors.astype(float).T
    mean = vectors.astype(float).mean(axis=0)
    taken = [int(np.argmax(vectors.astype(float) @ mean))]
    while len(taken) < count:
        to_nearest = distances[:, taken].min(axis=1)
        to_nearest[taken] = -1
        taken.append(int(np.argmax(to_nearest)))
    return taken


@pytest.mark.parametrize("width", [3, 16, 256])
def test_coverage_of_500_rows_is_a_brute_force_greedy(width):
    vectors = unit_vectors(500, width)
    assert farthest_first(vectors, 60).tolist() == brute_force_coverage(vectors, 60)


@given(st.lists(st.sampled_from([(1, 0), (0, 1), (-1, 0), (0, -1)]), min_size=1, max_size=12), st.data())
def test_coverage_takes_each_row_once_and_the_first_of_equally_far_rows(points, data):
    vectors, count = np.array(points, dtype=np.float32), data.draw(st.integers(1, len(points)))
    found = farthest_first(vectors, count).tolist()
    assert found == brute_force_coverage(vectors, count)
    assert len(set(found)) == count


def plain_deita(vectors, best_first, count, distance):
    taken = []
    for row in best_first:
        if all(1 - float(vectors[row] @ vectors[other]) >= distance for other in taken) and len(taken) < count:
            taken.append(int(row))
    return taken


@pytest.mark.parametrize("distance", [0.02, 0.1, 0.5, 1.2])
@pytest.mark.parametrize("block", [1, 7, 512])
def test_deita_takes_the_best_rows_that_are_far_enough_from_better_ones(distance, block, monkeypatch):
    monkeypatch.setattr(diversity, "BLOCK", block)
    vectors, order = unit_vectors(300, 3), np.random.default_rng(2).permutation(300)
    for count in (1, 40, 300):
        assert best_apart(vectors, order, count, distance).tolist() == plain_deita(vectors, order, count, distance)


def test_the_arms_coverage_and_deita_select_candidates_only_by_their_own_vectors(sampled):
    vectors = unit_vectors(90, 3)
    why = sampled(arm("coverage", 0.2)["ours"], vectors)
    rows = np.flatnonzero(why["rank"].notna())
    assert np.flatnonzero(why["selected"]).tolist() == sorted(rows[brute_force_coverage(vectors[rows], 14)])
    why = sampled(arm("deita", 0.2, by="ifd", max=1, distance=0.1)["ours"], vectors, ifd=RATED)
    rows = np.flatnonzero(why["rank"].notna())
    best = np.argsort(-why["ifd"][rows].to_numpy(), kind="stable")
    assert (why["ifd"][rows] <= 1).all()
    assert np.flatnonzero(why["selected"]).tolist() == sorted(rows[plain_deita(vectors[rows], best, 14, 0.1)])
    assert plain_deita(vectors[rows], best, 14, 0.1) != best[:14].tolist()


def test_a_distance_that_leaves_too_few_rows_stops_the_stage_with_their_number(sampled):
    vectors = unit_vectors(90, 3)
    with pytest.raises(
        UserError, match=r"arms\.ours: the arm needs 35 rows, but only \d are at least 1\.5 apart; lower"
    ):
        sampled(arm("deita", 0.5, distance=1.5)["ours"], vectors)


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, np.inf]), st.integers(0, 2)), min_size=1), st.data())
def test_the_lowest_keys_of_each_group_are_selected_and_never_an_infinite_one(rows, data):
    keys, group = (np.array(values) for values in zip(*rows, strict=True))
    quota = np.array([data.draw(st.integers(0, int((group == number).sum()))) for number in range(3)])
    found = lowest_of_each(keys, group, quota)
    for number in range(3):
        order = sorted((key, place) for place, key in enumerate(keys) if group[place] == number)[: quota[number]]
        expected = [place for key, place in order if key < np.inf]
        assert [place for place in np.flatnonzero(found) if group[place] == number] == sorted(expected)
