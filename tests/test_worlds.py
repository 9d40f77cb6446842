"""Planted worlds whose truth is known, from raw rows to the summary, by the stages themselves.

Rows are the pairs of data/pretrain. In 3 of 10 of the rows that arms choose from (source `noise`), the words of the
instruction are shuffled and the answer is another row's: one of the longest answers, which no row of `clean` has.
Held-out rows are all of `clean`. The small models, scorer and base, are trained on the documents of data/pretrain and
the clean rows of raw, so the base knows what an arm's few rows do not cover.

- Curation must win: `middle` leaves out most of the noise, and `random` takes its share of it.
- Curation cannot win: 24 arms `random` differ only in their seeds, so groups of three do not differ as methods.

Purity is not everything. If held-out rows also had the answers of the noise and the base did not know the clean rows,
`random` won, because `middle` covers fewer facts. With 600 held-out rows, so fewer clean rows to choose from and a base
that knows fewer, neither won. Here the wrong answers are few and long, so they do much harm.
"""

import random
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from stages import (
    candidates,
    cluster,
    compare,
    embed,
    fetch_model,
    merge,
    model_size,
    ppl,
    profile,
    report,
    sample,
    train,
)
from stages.evaluate import ITEMS
from stages.lib.core.artifacts import read_json, read_jsonl, read_table, write_json, write_jsonl, write_table
from stages.lib.statistics.comparison import compare_losses, compare_methods
from tests.conftest import COLUMNS, DROP
from tests.project import ROOT
from tests.selecting import write_ratings
from tests.training import SETTINGS

pytestmark = pytest.mark.slow
LONGEST = 0.02
NOISE = 0.22
"""Share of the pairs. It is 0.29 of what is left after the held-out rows are taken from the others."""
FRACTION = 0.4
SEEDS = (1, 2, 3)
POOL = tuple(range(1, 25))
TIMES = 20
SMALL = {
    "vocabulary": 2048,
    "layers": 2,
    "width": 128,
    "heads": 4,
    "positions": 512,
    "context": 128,
    "batch": 8,
    "steps": 300,
    "learning_rate": 3e-3,
    "warmup": 20,
    "seed": 1,
}
ROLES = {"scorer": {}, "encoder": {"layers": 1, "context": 64, "batch": 32, "steps": 60}, "base": {"seed": 2}}
TRAINING = {"budget": {"unit": "steps", "amount": 40}, "batch": 16, "micro_batch": 16, "learning_rate": 1e-3}


def name(method, seed):
    return method if seed == 1 else f"{method}_{seed}"


def arm(method, seed):
    settings = {"method": method, "fraction": FRACTION, "seed": seed}
    return settings | ({} if seed == 1 else {"replicate": method})


ARMS = {name("middle", seed): arm("middle", seed) for seed in SEEDS}
ARMS |= {name("random", seed): arm("random", seed) for seed in POOL}
MODEL = {"from": "small", "inputs": "", "name": None, "revision": None}
PARAMS = {
    "threads": 1,
    "portable": False,
    "fetch_model": {role: MODEL | {"small": SMALL | changes} for role, changes in ROLES.items()},
    "merge": {
        "sources": [{"name": source} | COLUMNS for source in ("clean", "noise")],
        "drop": DROP | {"max_characters": None},
        "held_out": {"sources": ["clean"], "share": 0.35, "max_rows": 400, "seed": 1},
    },
    "ppl": {"max_tokens": 128, "add_bos": False, "batch_tokens": 1024, "dtype": "fp32"},
    "embed": {"max_tokens": 128, "pooling": "mean", "batch_tokens": 1024, "dtype": "fp32"},
    "cluster": {
        "length_groups": 2,
        "clusters": 2,
        "small_groups": "stop",
        "algorithm": "lloyd",
        "init": "hashed",
        "n_init": 1,
        "seeds": [1],
    },
    "arms": ARMS,
    "control": "random",
    "train": SETTINGS | TRAINING,
    "compare": {"resamples": 2000, "randomisations": 2000, "seed": 1},
}


def settings(stage, **changes):
    values = PARAMS | changes
    return stage.Params.model_validate({key: values[key] for key in stage.Params.model_fields})


def plant():
    """Return the rows by source; the answers of `noise` are the longest of all, and `clean` has none of them."""
    pairs, rng = read_jsonl(ROOT / "data/pretrain/pairs.jsonl"), random.Random(1)
    answers = sorted({pair["output"] for pair in pairs}, key=len)
    wrong = answers[-round(LONGEST * len(answers)) :]
    rng.shuffle(pairs)
    spoiled = round(NOISE * len(pairs))
    clean = [pair for pair in pairs[spoiled:] if pair["output"] not in wrong]
    return {"clean": clean, "noise": [spoil(pair, wrong, rng) for pair in pairs[:spoiled]]}


def spoil(row, wrong, rng):
    words = row["instruction"].split()
    answer = rng.choice([one for one in wrong if one != row["output"]])
    return {"instruction": " ".join(rng.sample(words, len(words))), "output": answer}


@pytest.fixture(scope="module")
def world(new_folder, write_leaks, write_duplicates):
    """A folder with all that `sample` reads, and the models."""
    folder = new_folder()
    for source, rows in plant().items():
        write_jsonl(folder / f"sources/{source}/{source}.jsonl", rows)
    raw, outs = folder / "raw.parquet", {"held_out": folder / "held_out.jsonl", "dropped": folder / "dropped.parquet"}
    merge.merge(settings(merge), sources=folder / "sources", raw=raw, **outs)
    rows = read_table(raw)
    write_jsonl(folder / "text/clean.jsonl", rows[rows["source"] == "clean"].to_dict("records"))
    (folder / "text/documents.txt").symlink_to(ROOT / "data/pretrain/documents.txt")
    for role in ROLES:
        model, size = folder / role, folder / f"{role}.json"
        fetch_model.fetch_model(settings(fetch_model), role=role, inputs=folder / "text", model=model)
        model_size.model_size(settings(model_size), role=role, model=model, model_json=size)
    (folder / "leaks.parquet").symlink_to(write_leaks())
    (folder / "duplicates.parquet").symlink_to(write_duplicates())
    (folder / "ratings.parquet").symlink_to(write_ratings(folder / "unrated", list(rows["id"])))
    score_rows(folder, raw)
    write_items(folder / "eval/base/items.parquet")
    return folder


def score_rows(folder, raw):
    """Write the table of candidates, and all that it is made from."""
    names = ("ppl", "embeddings", "clusters", "leaks", "duplicates", "ratings", "candidates")
    tables = {name: folder / f"{name}.parquet" for name in names}
    ppl.ppl(settings(ppl), raw=raw, scorer=folder / "scorer", checkpoints=folder / ".ppl", ppl=tables["ppl"])
    embeddings = tables.pop("embeddings")
    checkpoints = folder / ".embed"
    embed.embed(settings(embed), raw=raw, encoder=folder / "encoder", checkpoints=checkpoints, embeddings=embeddings)
    cluster.cluster(settings(cluster), raw=raw, embeddings=embeddings, clusters=tables["clusters"])
    (folder / "reviews.jsonl").touch()
    texts = {"held_out": folder / "held_out.jsonl", "reviews": folder / "reviews.jsonl"}
    candidates.candidates(settings(candidates), raw=raw, **texts, **tables)


def write_items(path):
    """Write a benchmark that every model answers alike, because these tests compare held-out losses."""
    item = {
        "task": "copa",
        "shots": 0,
        "split": "test",
        "gold": 0,
        "prediction": 0,
        "correct": True,
        "correct_norm": None,
    }
    rows = [item | {"item": n, "log_likelihoods": [-1.0, -2.0], "truncated": False} for n in range(10)]
    write_table(path, pd.DataFrame(rows), ITEMS)


def run_arm(world, one):
    """Draw, train and compare one arm, with the control of its own seed."""
    samples, training = world / "samples", world / "train"
    tables = {name: world / f"{name}.parquet" for name in ("raw", "candidates", "embeddings")}
    outs = {"samples": samples / f"{one}.jsonl", "sample_parquet": samples / f"{one}.parquet"}
    sample.sample(settings(sample), arm=one, **tables, **outs)
    train.train(
        settings(train),
        arm=one,
        samples=samples / f"{one}.jsonl",
        held_out=world / "held_out.jsonl",
        base=world / "base",
        checkpoints=world / ".train",
        model=world / "models" / one,
        training=training / f"{one}.json",
        training_parquet=training / f"{one}.parquet",
    )
    write_items(world / f"eval/{one}/items.parquet")
    control = name("random", ARMS[one]["seed"] if "middle" in one else 1)
    compare.compare(
        settings(compare, control=control),
        arm=one,
        samples=samples,
        training=training,
        evaluations=world / "eval",
        leaks=world / "leaks.parquet",
        base_json=world / "base.json",
        metrics=world / f"metrics/arms/{one}.json",
        items=world / f"metrics/items/{one}.json",
    )


@pytest.fixture(scope="module")
def compared(world):
    """The answers and held-out losses of every arm, after all arms were compared."""
    for one in sorted(ARMS, key=lambda one: (ARMS[one]["seed"], "middle" in one)):  # the control of a seed first
        run_arm(world, one)
    return {one: report.read_run(read_json(world / f"metrics/items/{one}.json")) for one in ARMS}


def noise(world, one):
    """Return the share of the arm's rows that are noise."""
    rows = Counter(row["source"] for row in read_jsonl(world / f"samples/{one}.jsonl"))
    return rows["noise"] / rows.total()


def summarise(world):
    """Return the report on `middle` and `random` with three runs each."""
    leaks, base = world / "leaks.parquet", {name: world / f"metrics/{name}/base.json" for name in ("arms", "items")}
    evaluations = world / "eval"
    outs = {"metrics": base["arms"], "items": base["items"]}
    compare.compare(settings(compare), arm="base", evaluations=evaluations, leaks=leaks, **outs)
    profile.profile(
        settings(profile),
        raw=world / "raw.parquet",
        held_out=world / "held_out.jsonl",
        dropped=world / "dropped.parquet",
        candidates=world / "candidates.parquet",
        leaks=leaks,
        scorer_json=world / "scorer.json",
        encoder_json=world / "encoder.json",
        profile=world / "profile.json",
    )
    write_json(world / "stability.json", {})
    write_json(world / "audit.json", {"reviews": {"lines": 0}})
    report.report(
        settings(report, arms={one: arm for one, arm in ARMS.items() if arm["seed"] in SEEDS}),
        arms=world / "metrics/arms",
        items=world / "metrics/items",
        profile=world / "profile.json",
        stability=world / "stability.json",
        audit=world / "audit.json",
        summary=world / "summary.json",
        plots=world / "plots",
    )
    return read_json(world / "summary.json")


def written(one):
    return f"{one['est']:+.4f} [{one['lo']:+.4f}, {one['hi']:+.4f}]"


def test_if_noise_is_planted_middle_beats_random_in_held_out_loss_with_every_seed(world, compared):
    arms = summarise(world)["arms"]
    for seed in SEEDS:
        ours, theirs = name("middle", seed), name("random", seed)
        loss, other = (arms[one]["held_out_loss"]["all"] for one in (ours, theirs))
        found = arms[ours]["vs_control"]["held_out_loss"]["all"]
        print(
            f"\nseed {seed}: noise {noise(world, ours):.2f}, {noise(world, theirs):.2f}; loss {loss:.3f}, {other:.3f}"
        )
        print(f"difference over items {written(found)}")
        assert found["hi"] < 0


def test_the_report_finds_the_same_for_the_method_over_runs_and_items(world, compared):
    found = summarise(world)["methods"]["middle"]
    print(
        f"\nmiddle minus random, {found['runs']} and {found['control_runs']} runs: "
        f"{written(found['vs_control']['held_out_loss']['all'])}"
    )
    assert found["vs_control"]["held_out_loss"]["all"]["hi"] < 0


def excludes_0(one):
    return not one["lo"] <= 0 <= one["hi"]


def single_runs(compared, ours, theirs):
    """Return the paired bootstrap over items of one run each, as `compare` computes it."""
    runs = [compared[one] for one in (ours, theirs)]
    tables = [pd.DataFrame({"tokens": run.tokens, "nll": run.nll}).rename_axis("id").reset_index() for run in runs]
    rows = tables[0].assign(source="clean")
    return compare_losses(settings(compare).compare, rows, tables[1]["nll"])["all"]


def test_if_nothing_differs_the_interval_over_runs_and_items_seldom_excludes_0(compared):
    rng, both, alone = np.random.default_rng(1), [], []
    for _ in range(TIMES):
        ours, theirs = np.split(rng.permutation(POOL)[:6], 2)
        groups = [[compared[name("random", seed)] for seed in group] for group in (ours, theirs)]
        both.append(compare_methods(*groups)["held_out_loss"]["all"])
        alone.append(single_runs(compared, name("random", ours[0]), name("random", theirs[0])))
    count, single = (sum(map(excludes_0, found)) for found in (both, alone))
    print(
        f"\n{TIMES} comparisons of `random` with itself: 0 is outside the interval over 3 and 3 runs and items in "
        f"{count}, over the items of one run each in {single}"
    )
    assert count <= 3
