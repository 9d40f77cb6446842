"""Which rows an arm selects: exact sizes, even coverage, draws that stay, any score."""

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
from stages.lib.selection import methods
from stages.lib.selection.candidates import allow_repeated, rank_in_cell, reasons
from stages.lib.selection.methods import BINS, METHODS, Method, arm_size, quotas
from stages.sample import Params
from tests.koquality import picks
from tests.selecting import make_candidates, select_rows, write_clusters, write_ppl

FRACTIONS = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)
ALL_BUT_ALL = ("spread", "highest", "middle", "steady", "random", "longest")
SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=20)


def select(rows, method, fraction, seed):
    return methods.select(rows, method, "exact", fraction, seed)


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
    return rows


@pytest.mark.parametrize(
    ("size", "fraction", "rows"),
    [(100, 0.29, 29), (1000, 0.001, 1), (999, 0.001, 0), (50, 1.0, 50), (100_000, 1e-5, 1)],
)
def test_a_fraction_is_read_as_it_is_written(size, fraction, rows):
    assert arm_size(size, fraction) == rows


@given(SIZES, FRACTIONS)
def test_quotas_add_up_to_the_size_of_the_arm(sizes, fraction):
    found = quotas(np.array(sizes), fraction)
    assert found.sum() == floor(decimal(fraction) * sum(sizes)) == arm_size(sum(sizes), fraction)


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
    expected = [floor(share) + (n in order[:left]) for n, share in enumerate(shares)]
    assert quotas(np.array(sizes), fraction).tolist() == expected


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
    rows = rows.assign(id=rows.index.astype(str), length_group=0, characters=1)
    no = pd.Series(False, index=rows.index)
    reason = reasons(rows["text"].astype(str), rows["score"], no, no)
    rows = rows[reason.isna()]
    count = len({text for _, text, score in table if score})
    found = select(rows.assign(rank=rank_in_cell(rows, "score")), method, fraction, 1) if count else np.zeros(0)
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


def test_the_table_of_methods_says_which_draw_rows_and_which_use_cells():
    rows = make_rows(300)
    rescored = rows.assign(score=np.random.default_rng(1).random(300))
    rescored["rank"] = rank_in_cell(rescored, "score")
    for name, method in METHODS.items():
        selected = select(rows, name, 0.2, seed=1)
        assert (selected != select(rows, name, 0.2, seed=2)).any() == method.draws_rows, name
        assert (selected != select(rescored, name, 0.2, seed=1)).any() == method.uses_cells, name


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
    reason = reasons(rows["instruction"], rows["score"], no, no)
    assert (reason.notna() == rows["instruction"].duplicated()).all()
    assert allow_repeated(reason).isna().all()  # the original selects repeated instructions too
    found = methods.select(rows, method, "koquality", fraction, 1)
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
        Params.model_validate({"arms": {"ours": settings}, "control": "ours"})


SCORES = ("tokens", "nll", "ppl", "characters", "distance")


def write_candidates(folder, count=90, ids=None, **columns):
    """Write candidates.parquet with rows in three cells, of which two in nine are no candidates."""
    ids = ids or [f"row{n}" for n in range(count)]
    places, rng = np.arange(len(ids)), np.random.default_rng(1)
    table = {
        "id": ids,
        "source": ["life"] * len(ids),
        "length_group": places % 3 // 2,
        "cluster": places % 3 % 2,
        "distance": rng.random(len(ids)),
        "tokens": rng.integers(1, 9, len(ids)),  # many ties
        "nll": rng.normal(4, 1, len(ids)),
        "ppl": rng.normal(60, 20, len(ids)),
        "characters": rng.integers(1, 30, len(ids)),
        "reason": ["leaked" if n % 9 == 4 else "repeated instruction" if n % 9 == 7 else None for n in places],
    }
    write_table(folder / "candidates.parquet", table | columns, CANDIDATES)
    return folder / "candidates.parquet"


def plain_selection(table, method, by, fraction):
    """The definition of a method that uses quotas, written plainly: the positions in raw of the selected rows."""
    cells = {}
    for position, row in table.iterrows():
        if pd.isna(row["reason"]):
            cells.setdefault((row["length_group"], row["cluster"]), []).append((row[by], position))
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
    arms = [arm(method, 0.29, by=by) for method in ALL_BUT_ALL for by in SCORES]
    assert {len(select_rows(folder, raw, path, settings).samples) for settings in arms} == {floor(0.29 * 70)}


def test_the_score_moves_rows_of_steady_but_not_of_random_and_longest(new_folder, write_raw):
    folder, raw = new_folder(), write_raw([f"{n}번 질문" for n in range(90)])
    path = write_candidates(folder)

    def rows(method, by):
        return select_rows(folder, raw, path, arm(method, 0.2, by=by)).samples

    assert rows("steady", "nll") != rows("steady", "characters")
    assert rows("random", "nll") == rows("random", "characters")
    assert rows("longest", "nll") == rows("longest", "characters")


@pytest.mark.parametrize("by", ["rating", "cluster", "length_group", "source", "id", "reason"])
def test_a_column_that_is_not_a_score_stops_the_stage_with_the_scores_there_are(by, new_folder, write_raw):
    folder = new_folder()
    with pytest.raises(UserError) as error:
        select_rows(folder, write_raw(["가?", "나?"]), write_candidates(folder, 2), arm("spread", 0.5, by=by))
    assert str(error.value) == (
        f"params.yaml: arms.ours.by: no score '{by}'; the scores are distance, tokens, nll, ppl, characters"
    )


def test_a_candidate_without_the_score_stops_the_stage_because_arms_must_keep_one_size(new_folder, write_raw):
    folder, raw = new_folder(), write_raw([f"{n}번 질문" for n in range(90)])
    nll = [None if n in (0, 4, 8) else 1.0 for n in range(90)]  # row 4 is not a candidate
    path = write_candidates(folder, nll=nll)
    with pytest.raises(UserError, match=r"^params\.yaml: arms\.ours\.by: 2 of 70 candidates have no nll$"):
        select_rows(folder, raw, path, arm("spread", 0.2, by="nll"))
    assert not (folder / "ours.jsonl").exists()
    assert len(select_rows(folder, raw, path, arm("spread", 0.2, by="ppl")).samples) == 14


def test_a_new_method_is_one_entry_of_the_table(new_folder, write_raw, monkeypatch):
    folder, raw = new_folder(), write_raw([f"{n}번 질문" for n in range(90)])
    path = write_candidates(folder)
    with pytest.raises(ValueError, match="unknown method; known methods: spread, highest"):
        select_rows(folder, raw, path, arm("shortest", 0.2))

    def shortest(rows, _fraction, _seed):
        return rows["characters"].to_numpy(dtype=float)

    monkeypatch.setitem(METHODS, "shortest", Method(shortest, uses_cells=False, draws_rows=False))
    found = select_rows(folder, raw, path, arm("shortest", 0.2))
    table = read_table(path)
    table = table[table["reason"].isna()]
    expected = table.sort_values("characters", kind="stable")["id"][:14]
    assert [row["id"] for row in found.samples] == list(expected.sort_index())


def test_a_replicate_selects_by_the_score_of_its_arm():
    first = {"method": "spread", "by": "tokens", "fraction": 0.1, "seed": 1}
    again = first | {"seed": 2, "replicate": "ours"}
    others = {"cluster": {"seeds": [1]}, "control": "ours"}
    assert Params.model_validate({"arms": {"ours": first, "again": again}} | others)
    with pytest.raises(ValueError, match=r"arms\.again: a replicate of ours needs its by too"):
        Params.model_validate({"arms": {"ours": first, "again": again | {"by": "ppl"}}} | others)
