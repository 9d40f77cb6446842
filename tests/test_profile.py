"""What is written about the corpus, against a plain recomputation."""

import math
import statistics
from bisect import bisect_right
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.candidates import CANDIDATES
from stages.lib.core.artifacts import read_table, write_jsonl, write_table
from stages.lib.core.errors import UserError
from stages.lib.selection.partitions import with_partitions
from stages.merge import DROPPED, RAW
from tests.corpus import CELLS, IDS, PPLS, SIZES, SOURCES, run_profile, write_candidates, write_corpus

NAMES = st.sampled_from(["life", "faq", "chat"])
REASONS = st.sampled_from(["empty", "duplicate", "too_long"])
PPL = st.none() | st.floats(1, 1e6)
ROWS = st.lists(
    st.tuples(NAMES, PPL, st.integers(1, 30), st.integers(0, 2), st.integers(0, 2), st.floats(0, 2)),
    min_size=1,
    max_size=40,
)
"""Source, perplexity, predicted tokens, length group, cluster and distance of a row of raw."""
OTHERS = st.tuples(st.lists(NAMES, max_size=6), st.lists(st.tuples(NAMES, REASONS), max_size=8))
"""Sources of the held-out rows; source and reason of the dropped ones."""


@pytest.fixture
def corpus(tmp_path, write_leaks):
    return write_corpus(tmp_path, write_leaks())


@pytest.fixture
def profile(tmp_path, corpus):
    return lambda **changed: run_profile(corpus | changed, tmp_path / "profile.json")


def test_rows_add_up_for_every_source(profile):
    rows = profile()["rows"]
    assert rows["all"] == {"read": 17, "raw": 10, "held_out": 3, "dropped": {"duplicate": 1, "empty": 3}}
    assert rows["life"] == {"read": 11, "raw": 6, "held_out": 3, "dropped": {"duplicate": 1, "empty": 1}}
    assert rows["chat"] == {"read": 1, "raw": 0, "held_out": 0, "dropped": {"empty": 1}}
    for key in ("read", "raw", "held_out"):
        assert rows["all"][key] == sum(rows[source][key] for source in ("life", "faq", "chat"))


LEAKS = [
    ("r1", "copa", "test", 0, "exact", True),
    ("r1", "copa", "test", 3, "near", True),
    ("r2", "copa", "test", 3, "exact", True),
    ("r2", "hellaswag", "train", 1, "contained", True),
    ("r4", "copa", "test", 9, "exact", False),
]


def test_leaks_are_counted_by_task_split_and_kind(profile, write_leaks):
    assert profile(leaks=write_leaks(*LEAKS))["leaks"] == {
        "rows": 3,
        "rows_dropped": 2,
        "copa": {"test": {"rows": 3, "items": 3, "exact": 3, "near": 1}},
        "hellaswag": {"train": {"rows": 1, "items": 1, "contained": 1}},
    }
    assert profile()["leaks"] == {"rows": 0, "rows_dropped": 0}


def test_perplexities_are_quantiles_of_the_rows_that_have_one(profile):
    found = profile()["ppl"]
    assert found["all"]["p50"] == 32
    assert (found["all"]["without"], found["all"]["tokens"]) == (1, 45)
    assert (found["faq"]["p50"], found["life"]["without"]) == (pytest.approx(2**7.585, rel=1e-3), 1)


def test_cells_are_described_by_their_sizes(profile):
    sizes = {"cells": 4, "smallest": 2, "median": 2.5, "largest": 3}
    assert profile()["cells"] == sizes | {"length_groups": 2, "mean_distance": 0.5}


def test_the_cells_of_other_partitions_are_described_beside_those_of_the_first(profile, corpus, tmp_path):
    table, alone = read_table(corpus["candidates"]), profile()["cells"]
    other = {"cluster_1": [0] * 9 + [1], "distance_1": [1.5] * 10}
    write_table(tmp_path / "two", table.assign(**other), with_partitions(CANDIDATES, 2))
    found = profile(candidates=tmp_path / "two")["cells"]
    expected = {"cells": 3, "length_groups": 2, "smallest": 1, "median": 4, "largest": 5, "mean_distance": 1.5}
    assert found.pop("partition_1") == expected
    assert found == alone


def selection_cost(tokens):
    """Return the cost of rows of so many tokens, 2 N T + 4 L D S each, in models of two layers of width 4."""
    squares = sum(count**2 for count in tokens)
    ppl, embed = (2 * SIZES[role] * sum(tokens) + 4 * 2 * 4 * squares for role in ("scorer", "encoder"))
    total = {"rows": len(tokens), "tokens": sum(tokens)}
    return total | {"ppl_flops": ppl, "embed_flops": embed, "flops": ppl + embed}


def test_an_instruction_is_scored_and_embedded_once_however_many_rows_have_it(profile, tmp_path):
    assert profile()["selection_cost"] == selection_cost([1] + [6] * 9)
    repeated = {
        "id": IDS,
        "source": SOURCES,
        "instruction": [*IDS[:9], IDS[8]],
        "output": IDS,
        "turns": [None] * 10,
        "final": [None] * 10,
    }
    write_table(tmp_path / "repeated", repeated, RAW)
    assert profile(raw=tmp_path / "repeated")["selection_cost"] == selection_cost([1] + [6] * 8)


def test_nothing_held_out_and_nothing_dropped_is_no_trouble(profile, tmp_path):
    write_jsonl(tmp_path / "nothing", [])
    write_table(tmp_path / "none", {name: [] for name in DROPPED.names}, DROPPED)
    rows = profile(held_out=tmp_path / "nothing", dropped=tmp_path / "none")["rows"]
    assert rows["all"] == {"read": 10, "raw": 10, "held_out": 0, "dropped": {}}


def test_rows_without_any_perplexity_are_no_trouble(profile, tmp_path):
    rows = {"id": IDS, "source": SOURCES, "tokens": [0] * 10, "ppl": [None] * 10} | CELLS
    found = profile(candidates=write_candidates(tmp_path / "no_ppl", **rows))
    assert found["ppl"]["all"] == {"without": 10, "tokens": 0}
    assert found["ppl_histogram"] == []


def test_candidates_of_another_merge_stop_the_profile(profile, tmp_path):
    rows = {"id": [*IDS[:9], "rX"], "source": SOURCES, "tokens": [5] * 10, "ppl": PPLS} | CELLS
    with pytest.raises(UserError, match="candidates has rX in row 9, not r9 as in raw"):
        profile(candidates=write_candidates(tmp_path / "other", **rows))
    assert not (tmp_path / "profile.json").exists()


def test_the_same_corpus_gives_the_same_bytes(profile, tmp_path):
    profile()
    first = (tmp_path / "profile.json").read_bytes()
    profile()
    assert (tmp_path / "profile.json").read_bytes() == first


@settings(max_examples=25)
@given(table=ROWS, others=OTHERS)
def test_a_profile_is_what_a_plain_count_gives(table, others, new_folder, write_leaks):
    folder, (held, dropped) = new_folder(), others
    sources, ppls, tokens, groups, clusters, distances = map(list, zip(*table, strict=True))
    tokens = [0 if ppl is None else count for ppl, count in zip(ppls, tokens, strict=True)]
    cells = {"length_group": groups, "cluster": clusters, "distance": distances}
    paths = write_corpus(folder, write_leaks())
    ids = [f"r{n}" for n in range(len(table))]
    write_table(
        paths["raw"],
        {
            "id": ids,
            "source": sources,
            "instruction": ids,
            "output": ids,
            "turns": [None] * len(ids),
            "final": [None] * len(ids),
        },
        RAW,
    )
    write_candidates(paths["candidates"], id=ids, source=sources, tokens=tokens, ppl=ppls, **cells)
    write_jsonl(paths["held_out"], [{"source": source} for source in held])
    columns = dict(zip(("source", "reason"), zip(*dropped, strict=True), strict=True)) if dropped else {}
    write_table(paths["dropped"], pd.DataFrame(columns).reindex(columns=DROPPED.names), DROPPED)
    found = run_profile(paths, folder / "profile.json")

    assert found["rows"] == count_rows(sources, held, dropped)
    for name in ["all", *set(sources)]:
        of_source = [n for n, source in enumerate(sources) if name in ("all", source)]
        expected = describe_ppl([ppls[n] for n in of_source]) | {"tokens": sum(tokens[n] for n in of_source)}
        assert found["ppl"][name] == pytest.approx(expected, rel=1e-9)
    sizes = Counter(zip(groups, clusters, strict=True)).values()
    expected = {"cells": len(sizes), "smallest": min(sizes), "median": statistics.median(sizes), "largest": max(sizes)}
    expected["length_groups"] = len(set(groups))
    expected["mean_distance"] = statistics.fmean(distances)
    assert found["cells"] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    check_histogram(found["ppl_histogram"], sources, ppls)
    assert found["selection_cost"] == selection_cost([count + 1 for count in tokens])


def count_rows(sources, held, dropped):
    found = {}
    for name in ["all", *{*sources, *held, *(source for source, _ in dropped)}]:
        reasons = Counter(reason for source, reason in dropped if name in ("all", source))
        kept, out = (sum(name in ("all", source) for source in group) for group in (sources, held))
        found[name] = {"read": kept + out + reasons.total(), "raw": kept, "held_out": out, "dropped": reasons}
    return found


def describe_ppl(ppls):
    values = sorted(ppl for ppl in ppls if ppl is not None)
    named = {f"p{share:02d}": quantile(values, share / 100) for share in (1, 10, 25, 50, 75, 90, 99) if values}
    return named | {"without": len(ppls) - len(values)}


def quantile(values, share):
    """Interpolate linearly between the two nearest of the sorted values."""
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def check_histogram(bins, sources, ppls):
    """Check that forty bins are equal steps of the logarithm, and that a share is a count of the source's own rows."""
    by_source = {}
    for source, ppl in zip(sources, ppls, strict=True):
        if ppl is not None:
            by_source.setdefault(source, []).append(ppl)
    assert {one["source"] for one in bins} == set(by_source)
    values = [ppl for group in by_source.values() for ppl in group]
    for source, group in by_source.items():
        mine = [one for one in bins if one["source"] == source]
        edges = [one["ppl"] for one in mine]
        low, step = math.log(min(values)), math.log(max(values) / min(values)) / 40
        assert [math.log(edge) for edge in edges] == pytest.approx([low + n * step for n in range(40)], abs=1e-7)
        assert sum(one["share"] for one in mine) == pytest.approx(1)
        if max(values) > min(values) * 1.001:  # otherwise rounding makes edges equal
            counts = Counter(bisect_right(edges, ppl * (1 + 1e-9)) - 1 for ppl in group)
            assert [one["share"] for one in mine] == pytest.approx([counts[n] / len(group) for n in range(40)])
