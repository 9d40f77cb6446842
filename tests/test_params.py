"""params.yaml is checked before any work, and every mistake is named at once."""

from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from stages import cluster, compare, fetch_model, merge, ppl, sample, train
from stages.lib.core.errors import UserError
from stages.lib.core.params import read_params
from stages.lib.core.runner import parse_arguments
from tests.project import ROOT
from tools import check

TRAIN = """\
threads: 1
cluster: {seeds: [1, 2]}
arms:
  spread: {method: spread, fraction: 0.1, seed: 1}
  random: {method: random, fraction: 0.1, seed: 2}
control: random
train:
  budget: {unit: steps, amount: 10}
  batch: 8
  micro_batch: 4
  learning_rate: 1e-5
  schedule: linear
  warmup: 0
  max_tokens: 64
  format: koalpaca
  end: null
  loss_on: answers
  packing: false
  dtype: fp32
  gradient_checkpointing: false
  attn_implementation: sdpa
  adapter: null
  quantize: null
  deepspeed: null
  held_out_batch_tokens: 256
"""


@pytest.fixture
def read(tmp_path):
    def run(model, text):
        path = tmp_path / "params.yaml"
        path.write_text(text, encoding="utf-8")
        return read_params(model, path)

    return run


@pytest.fixture
def complaint(read):
    def run(model, text):
        with pytest.raises(UserError) as stop:
            read(model, text)
        return str(stop.value)

    return run


@pytest.mark.parametrize(("written", "number"), [("1e-5", 1e-5), ("1.0e-5", 1e-5), ("3E-4", 3e-4), ("1", 1.0)])
def test_an_exponent_without_a_point_is_a_number(written, number, read):
    rate = read(train.Params, TRAIN.replace("1e-5", written)).train.learning_rate
    assert isinstance(rate, float)
    assert rate == number


def test_params_cannot_be_changed(read):
    params = read(train.Params, TRAIN)
    with pytest.raises(ValueError, match="frozen"):
        params.threads = 8


LAST = "seed: 2}"
MISTAKES = {
    "a value out of range": (sample, "fraction: 0.1, seed: 1", "fraction: 2, seed: 1", "arms.spread.fraction", "2"),
    "no fraction": (sample, "method: spread, fraction: 0.1", "method: spread", "arms.spread", "fraction"),
    "a fraction of all": (sample, "method: spread", "method: all", "arms.spread", "fraction"),
    "a method that is none": (sample, "method: spread", "method: best", "arms.spread.method", "best"),
    "an unknown key": (train, "dtype: fp32", "dtype: fp32\n  dropout: true", "train.dropout: unknown key", "True"),
    "a missing key": (train, "  batch: 8\n", "", "train.batch", "missing"),
    "a missing section": (train, "threads: 1\n", "", "threads", "missing"),
    "a missing key inside": (train, "unit: steps, ", "", "train.budget.unit", "missing"),
    "a number in quotes": (train, "batch: 8", 'batch: "8"', "train.batch", "'8'"),
    "a number that is yes": (train, "max_tokens: 64", "max_tokens: true", "train.max_tokens", "True"),
    "half a step": (train, "amount: 10", "amount: 10.5", "train.budget.amount", "10.5"),
    "no batch": (train, "  batch: 8", "  batch: 0", "train.batch", "0"),
    "an arm without a seed": (sample, "fraction: 0.1, seed: 2", "fraction: 0.1", "arms.random.seed", "missing"),
    "a control that is no arm": (sample, "control: random", "control: randm", "control", "'randm'", "spread, random"),
    "no control": (sample, "control: random", "control: null", "control", "None"),
    "an arm named base": (sample, "  spread:", "  base:", "arms.base"),
    "a replicate of no arm": (
        sample,
        LAST,
        f"{LAST}\n  random_2: {{method: random, fraction: 0.1, seed: 3, replicate: rendom}}",
        "arms.random_2.replicate",
        "'rendom'",
    ),
    "a replicate of a replicate": (
        sample,
        LAST,
        f"{LAST}\n  random_2: {{method: random, fraction: 0.1, seed: 3, replicate: random_2}}",
        "random_2",
        "itself a replicate",
    ),
    "a replicate of another size": (
        sample,
        LAST,
        f"{LAST}\n  random_2: {{method: random, fraction: 0.2, seed: 3, replicate: random}}",
        "arms.random_2",
        "its fraction too",
    ),
    "a replicate of the same seed": (
        sample,
        LAST,
        f"{LAST}\n  random_2: {{method: random, fraction: 0.1, seed: 2, replicate: random}}",
        "arms.random_2",
        "has seed 2 too",
    ),
    "a replicate as the control": (
        sample,
        f"{LAST}\ncontrol: random",
        f"{LAST}\n  random_2: {{method: random, fraction: 0.1, seed: 3, replicate: random}}\ncontrol: random_2",
        "random_2 is a replicate",
    ),
    "a replicate of the same rows and seed": (
        sample,
        LAST,
        f"{LAST}\n  random_2: {{method: random, fraction: 0.1, seed: 2, partition: 1, replicate: random}}",
        "arms.random_2: random has seed 2 too, and the same rows: one run, not two",
    ),
    "a replicate of the same partition and seed": (
        sample,
        LAST,
        f"{LAST}\n  spread_2: {{method: spread, fraction: 0.1, seed: 1, replicate: spread}}",
        "arms.spread_2: spread has seed 1 too, and the same rows: one run, not two",
    ),
    "a partition that is none": (
        sample,
        LAST,
        "seed: 2, partition: 2}",
        "arms.random.partition: 2, but cluster.seeds has 2 seeds, so the last partition is 1; add a seed",
    ),
    "a partition below 0": (sample, LAST, "seed: 2, partition: -1}", "arms.random.partition", "-1"),
    "no thread": (train, "threads: 1", "threads: 0", "threads", "0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_place_and_what_was_found(mistake, complaint):
    stage, right, wrong, *words = MISTAKES[mistake]
    assert right in TRAIN
    message = complaint(stage.Params, TRAIN.replace(right, wrong, 1))
    assert "params.yaml: 1 to correct" in message
    for word in words:
        assert word in message


def test_a_replicate_of_another_seed_is_an_arm(read):
    text = TRAIN.replace(LAST, f"{LAST}\n  random_2: {{method: random, fraction: 0.1, seed: 3, replicate: random}}")
    assert read(sample.Params, text).arms["random_2"].replicate == "random"


@pytest.mark.parametrize("settings", ["seed: 1, partition: 1", "seed: 3", "seed: 3, partition: 1"])
def test_a_replicate_differs_in_seed_in_partition_or_in_both(settings, read):
    text = TRAIN.replace(LAST, f"{LAST}\n  spread_2: {{method: spread, fraction: 0.1, {settings}, replicate: spread}}")
    assert read(sample.Params, text).arms["spread_2"].replicate == "spread"


def test_all_mistakes_are_named_at_once(complaint):
    text = TRAIN.replace("batch: 8", "batch: -1").replace("schedule: linear", "schedule: steep")
    message = complaint(train.Params, text.replace("  warmup: 0\n", ""))
    assert "3 to correct" in message
    for place in ("train.batch", "train.schedule", "train.warmup"):
        assert f"\n  {place}: " in message


def test_a_message_does_not_repeat_the_whole_file(complaint):
    message = complaint(sample.Params, TRAIN.replace("control: random", "control: randm"))
    assert "fraction" not in message


CLUSTER = (
    "cluster: {length_groups: 3, clusters: 8, small_groups: stop, algorithm: lloyd, init: hashed, n_init: 1, "
    "seeds: [1]}\n"
)
NUMBERS = {
    "ppl.max_tokens": (ppl, "ppl: {max_tokens: 0, add_bos: false, batch_tokens: 64, dtype: fp32}"),
    "ppl.batch_tokens": (ppl, "ppl: {max_tokens: 8, add_bos: false, batch_tokens: -1, dtype: fp32}"),
    "cluster.clusters": (
        cluster,
        CLUSTER.replace("clusters: 8", "clusters: 0"),
    ),
    "cluster.seeds.1": (cluster, CLUSTER.replace("seeds: [1]", "seeds: [1, -1]")),
    "cluster.seeds.0": (cluster, CLUSTER.replace("seeds: [1]", "seeds: [one]")),
    "cluster.seeds": (cluster, CLUSTER.replace("seeds: [1]", "seeds: []")),
    "merge.held_out.share": (
        merge,
        "merge: {sources: [], drop: {empty: true, duplicate: exact, max_characters: null, min_korean: null, "
        "min_korean_output: null, foreign_script: true, broken_characters: true, max_unreadable: 0}, "
        "held_out: {sources: [], share: 1.5, max_rows: 1, seed: 1}}",
    ),
}


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_training_would_refuse_is_refused_everywhere(seed, complaint):
    everywhere = {
        "cluster.seeds.0": (cluster, f"threads: 1\n{CLUSTER}".replace("seeds: [1]", f"seeds: [{seed}]")),
        "arms.random.seed": (sample, TRAIN.replace("seed: 2", f"seed: {seed}")),
        "arms.spread.seed": (train, TRAIN.replace("seed: 1", f"seed: {seed}")),
        "compare.seed": (compare, f"compare: {{resamples: 1, randomisations: 1, seed: {seed}}}\ncontrol: null\n"),
    }
    for place, (stage, text) in everywhere.items():
        message = complaint(stage.Params, text)
        assert f"\n  {place}: " in message
        assert f"(got {seed})" in message


def test_every_seed_of_params_has_the_same_bounds():
    def seeds(model, path=()):
        for name, field in model.model_fields.items():
            if name == "seed":
                yield ".".join(path), {repr(bound) for bound in field.metadata}
            for inner in models_in(field.annotation):
                yield from seeds(inner, (*path, name))

    def models_in(kind):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return [kind]
        return [model for part in get_args(kind) for model in models_in(part)]

    found = {place: bounds for name in check.STAGES for place, bounds in seeds(import_module(f"stages.{name}").Params)}
    assert {"merge.held_out", "arms", "stability", "compare"} <= set(found)
    assert set(map(frozenset, found.values())) == {frozenset({"Ge(ge=0)", "Lt(lt=4294967296)"})}


@pytest.mark.parametrize("place", NUMBERS)
def test_a_number_that_makes_no_sense_is_refused(place, complaint):
    stage, text = NUMBERS[place]
    assert f"\n  {place}: " in complaint(stage.Params, f"threads: 1\n{text}\n")


def test_a_role_that_is_none_is_refused(complaint):
    model = "{from: folder, inputs: x, name: null, revision: null, small: null}"
    message = complaint(fetch_model.Params, f"threads: 1\nfetch_model: {{judge: {model}}}\n")
    assert "fetch_model.judge" in message


def test_small_settings_go_with_a_small_model_only(complaint):
    model = "{from: small, inputs: x, name: null, revision: null, small: null}"
    assert "fetch_model.base" in complaint(fetch_model.Params, f"threads: 1\nfetch_model: {{base: {model}}}\n")


def test_one_stage_does_not_look_at_the_section_of_another(read):
    assert set(read(cluster.Params, TRAIN.replace("cluster: {seeds: [1, 2]}\n", CLUSTER)).model_fields_set) == {
        "threads",
        "cluster",
    }


BROKEN = {
    "not YAML": ("threads: [1", "not YAML"),
    "twice the same key": ("threads: 1\nthreads: 2\n", "not YAML"),
    "no mapping": ("- 1\n", "expected a mapping of sections, got list"),
    "empty": ("", "expected a mapping of sections"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_file_that_is_no_params_file_is_refused(broken, complaint):
    text, words = BROKEN[broken]
    assert words in complaint(train.Params, text)


def test_a_missing_file_is_named_with_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"params\.yaml: missing.*cp recipes/"):
        read_params(train.Params, tmp_path / "params.yaml")


def test_an_unknown_section_is_named_by_the_check_of_all_stages(tmp_path, capsys):
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text(encoding="utf-8") + "trian: {}\n", encoding="utf-8")
    assert check.main([str(path)]) == 1
    assert capsys.readouterr().err == f"{path}: 1 to correct\n  trian: unknown section; no stage reads it\n"


def test_flags_have_the_types_of_the_parameters():
    words = ["--arm", "spread", "--raw", "a", "--candidates", "b", "--embeddings", "e", "--samples", "c"]
    words += ["--sample_parquet", "d"]
    found = parse_arguments(sample.sample, words)
    assert found["arm"] == "spread"
    assert found["raw"] == Path("a")


def test_flags_come_in_any_order_and_those_with_a_default_may_be_left_out():
    words = ["--items", "i", "--metrics", "m", "--leaks", "l", "--evaluations", "e", "--arm", "base", "--answers", "a"]
    found = parse_arguments(compare.compare, words)
    assert (found["arm"], found["items"], found["samples"]) == ("base", Path("i"), None)


WHOLE = ["--raw", "a", "--embeddings", "b", "--clusters", "c"]
WRONG_FLAGS = {
    "a missing flag": (WHOLE[:4], "required: --clusters"),
    "a misspelt flag": (["--rwa", *WHOLE[1:]], "required: --raw"),
    "a flag too many": ([*WHOLE, "--ppl", "d"], "unrecognized arguments: --ppl d"),
    "an abbreviated flag": (["--ra", *WHOLE[1:]], "required: --raw"),
    "a flag twice": ([*WHOLE, "--raw", "d"], "--raw is given more than once"),
    "a flag twice, once with =": (["--raw=d", *WHOLE], "--raw is given more than once"),
    "a flag without its value": (WHOLE[:5], "--clusters: expected one argument"),
    "a value without its flag": (["a", *WHOLE], "unrecognized arguments: a"),
}


@pytest.mark.parametrize("wrong", WRONG_FLAGS)
def test_wrong_flags_are_one_line_that_names_them_and_the_right_ones(wrong):
    words, message = WRONG_FLAGS[wrong]
    with pytest.raises(UserError) as stop:
        parse_arguments(cluster.cluster, words)
    assert message in str(stop.value)
    assert "usage: --raw RAW --embeddings EMBEDDINGS --clusters CLUSTERS; see dvc.yaml" in str(stop.value)
    assert "\n" not in str(stop.value)
