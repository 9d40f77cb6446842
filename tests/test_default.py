"""The small default: its selection and the training of its control are reproduced once; the rest is as committed."""

import csv
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import normalized_mutual_info_score, roc_auc_score
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages import rate
from stages.lib.core.artifacts import read_arrow, read_jsonl
from stages.lib.core.params import read_params
from stages.ppl import Params, score
from tests.project import ROOT, UP_TO_DATE, copy_project, run
from tools.make_default import BundledRow, compose, shuffle_words, write_all
from tools.why import why

GROUPS = {"computing": "assistant", "science": "assistant", "summary": "assistant"}  # from the prefixes of the ids
TOPICS = 8


@pytest.fixture(scope="session")
def default(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which `dvc repro` has run, up to the training of the control."""
    folder = copy_project(tmp_path_factory.mktemp("default"))
    run(folder, "dvc", "repro", "--force", "sample", "profile", "train@random")
    return folder


@pytest.fixture(scope="session")
def composed() -> list[BundledRow]:
    return compose()[0]


@pytest.fixture(scope="session")
def raw(default: Path) -> pd.DataFrame:
    """The rows of raw.parquet with their scores."""
    rows, scores = (pd.read_parquet(default / f"data/{name}.parquet") for name in ("raw", "candidates"))
    assert list(rows["id"]) == list(scores["id"])
    return rows.assign(ppl=scores["ppl"], nll=scores["nll"], tokens=scores["tokens"])


def of_kind(raw: pd.DataFrame, composed: list[BundledRow], kind: str) -> pd.DataFrame:
    return raw[raw["instruction"].isin({row.text for row in composed if row.kind == kind})]


def test_the_committed_data_are_what_make_default_writes(tmp_path: Path) -> None:
    write_all(tmp_path)
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(written) == 26
    for path in written:
        assert (tmp_path / path).read_bytes() == (ROOT / path).read_bytes(), path


def test_the_committed_lock_is_current(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    assert UP_TO_DATE in run(project, "dvc", "repro", "--allow-missing", "--dry")


def test_no_instruction_of_pretrain_is_in_the_inputs(composed: list[BundledRow]) -> None:
    pretrain = {row["instruction"].strip() for row in read_jsonl(ROOT / "data/pretrain/pairs.jsonl")}
    assert not pretrain & {row.text.strip() for row in composed}


def test_the_composed_rows_are_in_six_schemas_and_many_lengths_and_a_third_are_scraped(
    composed: list[BundledRow],
) -> None:
    clean = [row for row in composed if row.kind == "clean"]
    scraped = [row for row in composed if row.source == "scraped"]
    assert 900 <= len(composed) - len(scraped) <= 1100
    assert 0.3 <= len(scraped) / len(composed) <= 0.35
    assert {row.kind for row in scraped} == {"scraped"}
    assert len({row.source for row in composed}) == 6
    assert len({row.topic for row in clean}) == TOPICS
    lengths = np.array([len(row.text) for row in clean])
    assert np.quantile(lengths, 0.05) < 20 < 60 < np.quantile(lengths, 0.97)


def test_the_summary_is_complete(default: Path) -> None:
    summary = json.loads((default / "metrics/summary.json").read_text())
    of_the_corpus = {"rows", "ppl", "cells", "leaks", "stability", "audit", "cost"}
    of_the_models = {"base", "majority_baseline", "answer_floors", "arms", "methods", "preferred", "preferences"}
    assert set(summary) == of_the_corpus | of_the_models
    assert set(summary["arms"]) == {"middle", "middle_2", "ifd", "random", "random_2"}
    for name, arm in summary["arms"].items():
        for by_shots in arm["scores"].values():
            assert set(by_shots) == {"boolq", "copa", "hellaswag", "sentineg", "wic", "mean"}
        assert ("vs_control" in arm) == (name != "random")


def test_all_arms_have_one_size_and_one_budget(default: Path) -> None:
    arms = json.loads((default / "metrics/summary.json").read_text())["arms"].values()
    assert len({arm["sample"]["rows"] for arm in arms}) == 1
    assert len({arm["train"]["steps"] for arm in arms}) == 1


def test_the_default_finds_the_planted_noise(default: Path) -> None:
    methods = json.loads((default / "metrics/summary.json").read_text())["methods"]
    assert methods["middle"]["vs_control"]["held_out_loss"]["all"]["hi"] < 0


def test_middle_avoids_the_scraped_rows_and_random_takes_its_share(default: Path, raw: pd.DataFrame) -> None:
    share = (raw["source"] == "scraped").mean()
    found = {arm: shares_of(default, arm)["scraped"] for arm in ("middle", "middle_2", "random", "random_2")}
    print(f"of raw {share:.2f}", found)
    assert all(found[arm] < share / 2 for arm in ("middle", "middle_2"))
    assert all(abs(found[arm] - share) < 0.1 for arm in ("random", "random_2"))


def shares_of(default: Path, arm: str) -> dict[str, float]:
    sources = [row["source"] for row in read_jsonl(default / f"data/samples/{arm}.jsonl")]
    return {source: count / len(sources) for source, count in Counter(sources).items()}


def test_dag_metrics_and_plots_can_be_shown(default: Path) -> None:
    assert "sample@middle" in run(default, "dvc", "dag")
    assert "held_out_loss" in run(default, "dvc", "metrics", "show")
    run(default, "dvc", "plots", "show")
    page = (default / "dvc_plots/index.html").read_text()
    titles = ("Differences to the control", "Perplexity of the instr", "Cells before", "Training loss", "Macro-F1")
    places = [page.index(title) for title in titles]
    assert places[0] == min(places)


def test_every_row_read_is_in_raw_or_held_out_or_dropped(default: Path, composed: list[BundledRow]) -> None:
    data = default / "data"
    read = Counter(
        {
            "life": len((data / "inputs/life.jsonl").read_bytes().splitlines()),
            "assistant": len((data / "inputs/assistant.jsonl").read_bytes().splitlines()),
            "chat": pq.read_table(data / "inputs/chat.parquet").num_rows,
            "faq": len(list(csv.reader((data / "inputs/faq.csv").read_text(encoding="cp949").splitlines()))) - 1,
            "scraped": len((data / "inputs/scraped.jsonl").read_bytes().splitlines()),
            "counsel": len((data / "inputs/counsel.jsonl").read_bytes().splitlines()),
            "knowledge": len(json.loads((data / "inputs/knowledge.json").read_text(encoding="utf-8-sig"))),
        }
    )
    written = [*pd.read_parquet(data / "raw.parquet")["source"], *pd.read_parquet(data / "dropped.parquet")["source"]]
    written += [row["source"] for row in read_jsonl(data / "held_out.jsonl")]
    assert Counter(GROUPS.get(source, source) for source in written) == read
    assert sum(read.values()) == len(composed) + read["counsel"]


def test_every_planted_row_is_dropped_for_its_reason_and_no_clean_row_is(default: Path) -> None:
    dropped = pd.read_parquet(default / "data/dropped.parquet")
    found = {
        (GROUPS.get(source, source), line): reason
        for source, line, reason in zip(dropped["source"], dropped["line"], dropped["reason"], strict=True)
    }
    with (ROOT / "tests/planted.csv").open(encoding="utf-8") as file:
        planted = {(row["source"], int(row["line"])): row["kind"] for row in csv.DictReader(file)}
    assert found == {place: kind for place, kind in planted.items() if kind not in ("shuffled", "scraped")}


def test_held_out_rows_are_in_no_arm_and_share_no_instruction(default: Path, raw: pd.DataFrame) -> None:
    held = read_jsonl(default / "data/held_out.jsonl")
    assert held
    assert not {row["instruction"] for row in held} & set(raw["instruction"])


def test_shuffled_rows_have_perplexities_above_the_ninetieth_percentile_of_clean_rows(
    raw: pd.DataFrame, composed: list[BundledRow]
) -> None:
    clean, shuffled = of_kind(raw, composed, "clean"), of_kind(raw, composed, "shuffled")
    above = (shuffled["ppl"] > clean["ppl"].quantile(0.9)).mean()
    print(f"{above:.3f} of {len(shuffled)} shuffled rows")
    assert len(shuffled) >= 30
    assert above >= 0.9


def mean_nll(texts: list[str], scorer: Path, params: Params) -> np.ndarray:
    found = np.full(len(texts), np.nan)
    for rows, scores in score(texts, scorer, params):
        found[rows] = scores[:, 1]
    return found


def test_a_fluent_sentence_has_a_lower_perplexity_than_its_shuffled_words(
    default: Path, raw: pd.DataFrame, composed: list[BundledRow]
) -> None:
    fluent = [text for text in of_kind(raw, composed, "clean")["instruction"] if len(text.split()) >= 5]
    rng = random.Random(7)
    shuffled = [shuffle_words(rng, text) for text in fluent]
    scorer, params = default / "models/hub/scorer", read_params(Params, default / "params.yaml")
    nll = mean_nll(fluent + shuffled, scorer, params)
    below = nll[: len(fluent)] < nll[len(fluent) :]
    print(f"{below.mean():.3f} of {len(fluent)} sentences")
    assert len(fluent) >= 300
    assert below.mean() >= 0.95


def ratings_of(default: Path, judge: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Rate rows with `instruction` and `output` as the stage rates the rows of raw."""
    params = read_params(rate.Params, default / "params.yaml")
    params = params.model_copy(update={"rate": params.rate.model_copy(update={"judge": judge})})
    table = pa.Table.from_pandas(rows[["instruction", "output"]].assign(turns=None), preserve_index=False)
    rater, scorer = rate.JUDGES[judge], default / "models/hub/scorer"
    texts = rater.texts(table, params.rate)
    parts = [(index, values) for index, values in rater.score(texts, scorer, params)]
    order = np.argsort([row for index, _ in parts for row in index])
    scores = torch.cat([values for _, values in parts])[torch.from_numpy(order)].numpy()
    return pa.table(rater.columns(scores, scorer)).to_pandas()


def of_another_topic(rng: random.Random, rows: pd.DataFrame, topics: pd.Series) -> list[str]:
    return [rng.choice(list(rows["output"][topics != topic])) for topic in topics]


@pytest.mark.slow
def test_likelihood_finds_wrong_answers_by_ifd_and_shuffled_ones_by_nll_and_a_small_models_marks_find_neither(
    default: Path, raw: pd.DataFrame, composed: list[BundledRow]
) -> None:
    clean, rng = of_kind(raw, composed, "clean"), random.Random(11)
    clean = clean[clean["output"].str.split().str.len() > 2]
    topics = clean["instruction"].map({row.text: row.topic for row in composed if row.kind == "clean"})
    spoiled = {
        "wrong": clean.assign(output=of_another_topic(rng, clean, topics)),
        "shuffled": clean.assign(output=[shuffle_words(rng, text) for text in clean["output"]]),
    }
    few = clean.sample(60, random_state=1).index
    auc = {}
    for judge, kept in (("likelihood", clean.index), ("logprob", few)):
        good = ratings_of(default, judge, clean.loc[kept])
        for kind, rows in spoiled.items():
            both = pd.concat([good, ratings_of(default, judge, rows.loc[kept])])
            is_good = np.repeat([1, 0], len(kept))
            for name in {"nll_answer", "ifd", "score"} & set(both):
                sign = 1 if name == "score" else -1
                auc[kind, name] = roc_auc_score(is_good, sign * both[name])
    print(f"{len(clean)} rows, {len(few)} for logprob", {key: f"{value:.3f}" for key, value in sorted(auc.items())})
    assert len(clean) >= 600
    assert auc["wrong", "ifd"] >= 0.7
    assert auc["shuffled", "nll_answer"] >= 0.7


def test_the_rating_of_every_fifth_row_is_that_of_the_models_own_loss_row_by_row(default: Path) -> None:
    folder = default / "models/hub/scorer"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    corpus, ratings = (read_arrow(default / f"data/{name}.parquet") for name in ("raw", "ratings"))
    params = read_params(rate.Params, default / "params.yaml").rate
    pairs = [json.loads(text) for text in rate.pairs_of(corpus, params)][::5]
    found = ratings.select(["answer_tokens", "nll_answer", "nll_answer_alone"]).to_pandas()[::5]
    with torch.inference_mode():
        for (asked, answered), row in zip(pairs, found.itertuples(), strict=True):
            begin, answer = [tokenizer.eos_token_id], tokenizer(answered)["input_ids"]
            given = [*begin, *tokenizer(f"{asked}\n")["input_ids"]]
            answer = answer[: params.max_tokens - len(given)]
            assert row.answer_tokens == len(answer)
            for before, nll in ((given, row.nll_answer), (begin, row.nll_answer_alone)):
                ids, labels = [*before, *answer], [-100] * len(before) + answer
                loss = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
                assert nll == pytest.approx(loss, abs=1e-5)


def test_k_means_finds_the_planted_topics(default: Path, raw: pd.DataFrame, composed: list[BundledRow]) -> None:
    clean = of_kind(raw, composed, "clean")
    topic_of = {row.text: row.topic for row in composed if row.kind == "clean"}
    topics = clean["instruction"].map(topic_of)
    vectors = np.stack(pd.read_parquet(default / "data/embeddings.parquet")["vector"])[clean.index]
    words = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)).fit_transform(clean["instruction"])
    plain = TruncatedSVD(64, random_state=0).fit_transform(words)
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)

    def lowest(rows: np.ndarray) -> float:
        labels = [KMeans(TOPICS, n_init=10, random_state=seed).fit(rows).labels_ for seed in range(3)]
        return min(normalized_mutual_info_score(topics, found) for found in labels)

    ours, theirs = lowest(vectors), lowest(plain)
    print(f"NMI, lowest of three seeds: encoder {ours:.3f}, TF-IDF + SVD {theirs:.3f}")
    assert ours >= 0.6


def test_the_perplexity_of_every_row_is_that_of_the_models_own_loss_row_by_row(
    default: Path, raw: pd.DataFrame
) -> None:
    folder = default / "models/hub/scorer"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    limit = read_params(Params, default / "params.yaml").ppl.max_tokens
    with torch.inference_mode():
        for text, ppl, tokens in zip(raw["instruction"], raw["ppl"], raw["tokens"], strict=True):
            ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"][:limit]])
            assert ids.shape[1] - 1 == tokens
            assert float(torch.exp(model(ids, labels=ids).loss)) == pytest.approx(ppl, rel=1e-4)


def test_bits_of_perplexities_do_not_change_if_rows_are_reordered_or_scored_in_two_parts(
    default: Path, raw: pd.DataFrame
) -> None:
    params, folder = read_params(Params, default / "params.yaml"), default / "models/hub/scorer"
    texts = list(raw["instruction"])
    order = random.Random(3).sample(range(len(texts)), len(texts))
    reordered = mean_nll([texts[row] for row in order], folder, params)
    parts = [mean_nll(part, folder, params) for part in (texts[:100], texts[100:])]
    assert (reordered == raw["nll"].to_numpy()[order]).all()
    assert (np.concatenate(parts) == raw["nll"].to_numpy()).all()


def test_why_explains_selected_dropped_and_held_out_rows(
    default: Path, raw: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(default)
    explained = "\n".join(why(raw["id"][0]))
    assert raw["instruction"][0][:40] in explained
    assert f"ppl {raw['ppl'][0]:.4g}" in explained
    assert all(f"  {arm}: " in explained for arm in ("middle", "ifd", "random_2"))
    chosen = read_jsonl(default / "data/samples/middle_2.jsonl")[0]
    assert "  middle_2: IN (selected; rank " in "\n".join(why(chosen["id"]))
    held = read_jsonl(default / "data/held_out.jsonl")[0]
    assert list(why(held["id"])) == [f"{held['id']} [{held['source']}] {held['instruction']}\n  held out: in no arm"]
    assert "dropped by merge: not_korean, row" in "\n".join(why("How do I make a good cup of coffee"))


def test_outputs_contain_no_path_of_the_machine(default: Path) -> None:
    for folder in ("data", "models", "metrics"):
        for path in (default / folder).rglob("*"):
            if path.is_file():
                assert str(default).encode() not in path.read_bytes(), path
