"""Say what a change will cost before anything runs: `python -m tools.forecast [--flops-per-second X]`.

It names the stages that `dvc repro --pull --allow-missing` would run, the texts that have no score yet, the arms to
train, and the cost in tokens and floating-point operations. It also works in a clone that was never pulled. A stage
below one that runs "may run": it runs only if its inputs change, which nobody can know in advance, so its cost is an
upper bound. DVC's run-cache may restore the outputs of a stage instead.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages import embed, ppl, rate
from stages.lib.core.artifacts import read_arrow, read_json
from stages.lib.core.errors import UserError
from stages.lib.core.params import PARAMS, Section, read_params, read_yaml
from stages.lib.core.runner import CHECKPOINTS, checkpoints_folder
from stages.lib.scoring.cache import KEY, Cache, known_keys, read_fingerprint
from stages.lib.scoring.committed import read_committed, read_object
from stages.lib.scoring.fingerprint import MACHINE, compute_fingerprint, hash_file
from stages.lib.text.hashing import text_hash
from tools.output import print_lines
from tools.pipeline import reading_pipeline

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage

RAW, METRICS, LOCK = "data/raw.parquet", Path("metrics"), Path("dvc.lock")
COLUMNS = ("id", "instruction", "output", "turns")
MERGE_FIRST = "dvc repro --pull --allow-missing merge"
MODEL = ("weights", "tokenizer")
"""The parts of a fingerprint that are read from the model's files."""


class Plan(NamedTuple):
    """Stages by name, in the order of the pipeline."""

    will: dict[str, list[str]]
    """Those that run in any case, each with what changed."""
    may: dict[str, list[str]]
    """Those that run if what they read changes, each with what changed by hand."""

    def runs(self, *names: str) -> bool:
        return any(name in self.will or name in self.may for name in names)

    def named(self, stage: str, section: str = "arms") -> list[str]:
        """Return the entries of a section of params.yaml for which the stage runs."""
        return [name for name in read_yaml(PARAMS)[section] if self.runs(f"{stage}@{name}")]


class Cost(NamedTuple):
    what: str
    flops: float | None
    """None if there is no earlier run to go by."""


class Scorer(NamedTuple):
    """A stage that looks every text up before it scores it."""

    stage: str
    model: str
    """The role in `fetch_model`."""
    output: str
    settings: dict[str, Any]
    code: list[Path]
    texts: Callable[[pa.Table], list[str]]


def forecast(speed: float | None) -> Iterator[str]:
    """Yield what would run, and what it costs. `speed` is in FLOPs per second."""
    from dvc.repo import Repo

    with reading_pipeline():
        repo = Repo()
        plan = plan_stages(repo)
    yield from stage_lines(plan)
    if plan.will or plan.may:
        costs = [*score_costs(plan, repo), *training_costs(plan)]
        yield from (cost.what for cost in costs)
        yield from total_lines(costs, speed)


def plan_stages(repo: "Repo") -> Plan:
    """Return what `dvc repro` would run. DVC's own dry run names only stages that changed themselves."""
    import networkx as nx

    plan, graph, lock = Plan({}, {}), repo.index.graph, read_lock()
    place = {stage: number for number, stage in enumerate(repo.index.stages)}
    for stage in nx.lexicographical_topological_sort(graph.reverse(copy=False), key=place.get):
        if stage.cmd is None:  # a .dvc file
            continue
        above = list(graph.successors(stage))
        running = [one for one in above if plan.runs(one.addressing)]
        is_new = stage.addressing not in lock
        changes = ["it has never run"] if is_new else own_changes(stage, above, running)
        if changes:
            plan.will[stage.addressing] = changes
        elif running or (changes := changed_outs(stage)):
            plan.may[stage.addressing] = changes
    return plan


def read_lock() -> dict[str, Any]:
    """Return the stages of dvc.lock, none if nothing ever ran."""
    return read_yaml(LOCK)["stages"] if LOCK.is_file() else {}


def own_changes(stage: "Stage", above: list["Stage"], running: list["Stage"]) -> list[str]:
    """Return what changed in the stage's command, params and deps, except deps that the `running` stages write.

    A dep that is only missing, as in a clone that was never pulled, has not changed unless the stage above ran since.
    """
    found = ["its command"] if stage.changed_stage() else []
    for dep in stage.deps:
        if any(overlap(dep, out) for one in running for out in one.outs):
            continue
        state = dep.status().get(str(dep))
        if isinstance(state, dict):
            found += [f"params {name}" for name in state]
        elif state == "deleted":
            outs = [out for one in above for out in one.outs if out.fs_path == dep.fs_path]
            found += [str(dep) for out in outs if out.hash_info != dep.hash_info]
        elif state:
            found.append(str(dep))
    return found


def overlap(dep: "Output", out: "Output") -> bool:
    one, other = Path(dep.fs_path), Path(out.fs_path)
    return one.is_relative_to(other) or other.is_relative_to(one)


def changed_outs(stage: "Stage") -> list[str]:
    """Return the outputs that somebody changed by hand; DVC writes them again, or restores them."""
    return [str(out) for out in stage.outs if out.status().get(str(out)) in ("modified", "new")]


def stage_lines(plan: Plan) -> Iterator[str]:
    if not plan.will and not plan.may:
        yield "nothing changed, so nothing runs"
        return
    yield "changed:"
    by_change: dict[str, list[str]] = {}
    for stage, changes in (plan.will | plan.may).items():
        by_change.setdefault(", ".join(changes), []).append(stage)
    yield from (f"  {grouped(stages)}: {changes}" for changes, stages in by_change.items() if changes)
    yield f"will run: {grouped([*plan.will])}"
    yield f"may run, each only if what it reads changes: {grouped([*plan.may])}"


def grouped(names: list[str]) -> str:
    """Return the names, with the arms of a stage together: `ppl, train@{middle, random}`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        stage, _, item = name.partition("@")
        groups.setdefault(stage, []).append(item)
    return ", ".join(with_items(*group) for group in groups.items()) or "none"


def with_items(stage: str, items: list[str]) -> str:
    if len(items) == 1:
        return f"{stage}@{items[0]}".removesuffix("@")
    arms = list(read_yaml(PARAMS)["arms"])
    return f"{stage} of all {len(arms)} arms" if items == arms else f"{stage}@{{{', '.join(items)}}}"


def score_costs(plan: Plan, repo: "Repo") -> Iterator[Cost]:
    """Yield for each stage that scores how many texts have no score yet."""
    scorers = [scorer for scorer in all_scorers() if plan.runs(scorer.stage)]
    if not scorers:
        return
    if plan.runs("fetch", "merge"):
        names = ", ".join(scorer.stage for scorer in scorers)
        yield Cost(f"{names}: the number of new texts is known after `{MERGE_FIRST}`, which is cheap", None)
        return
    try:
        corpus = read_raw(repo)
    except Exception as error:  # each remote has its own errors, and the rest of the forecast stands
        yield Cost(f"{RAW} cannot be read, so new texts are not counted: {error}; `dvc pull {RAW}`", None)
        return
    for scorer in scorers:
        yield score_cost(scorer, scorer.texts(corpus), is_same_model(scorer, plan))


def is_same_model(scorer: Scorer, plan: Plan) -> bool:
    """Return whether the model is here or, if it is not pulled, is that of the last run."""
    folder = f"models/hub/{scorer.model}"
    used = {dep["path"] for dep in read_lock().get(scorer.stage, {}).get("deps", [])}
    return not plan.runs(f"fetch_model@{scorer.model}") and (Path(folder).is_dir() or folder in used)


def all_scorers() -> Iterator[Scorer]:
    """Yield the stages that score texts, as params.yaml has them; `rate` only if its judge is a local model."""
    ppls, embeds, rates = (read_params(module.Params) for module in (ppl, embed, rate))
    yield Scorer("ppl", "scorer", "data/ppl.parquet", settings_of(ppls, ppls.ppl), ppl.CODE, instructions_of)
    yield Scorer(
        "embed", "encoder", "data/embeddings.parquet", settings_of(embeds, embeds.embed), embed.CODE, instructions_of
    )
    if judge := rate.JUDGES.get(rates.rate.judge):
        settings = settings_of(rates, rates.rate, rate.SETTINGS)

        def texts(corpus: pa.Table) -> list[str]:
            return judge.texts(corpus, rates.rate)

        yield Scorer("rate", rates.rate.model, "data/ratings.parquet", settings, rate.CODE, texts)


def settings_of(params: Section, section: Section, names: set[str] | None = None) -> dict[str, Any]:
    """Return the params that a fingerprint contains."""
    return section.model_dump(include=names) | params.model_dump(include=MACHINE)


def instructions_of(corpus: pa.Table) -> list[str]:
    return list(corpus["instruction"].to_pylist())


def read_raw(repo: "Repo") -> pa.Table:
    """Return the columns of raw that are scored, pulled or not. Raises what the remote raises."""
    if Path(RAW).is_file():
        return read_arrow(Path(RAW), *COLUMNS)
    (out,) = repo.find_outs_by_path(RAW)
    content = read_object(out.hash_info.value)
    if content is None:
        raise UserError("it is not in the cache, and no remote is set")
    return pq.read_table(BytesIO(content), columns=list(COLUMNS))


def score_cost(scorer: Scorer, texts: list[str], same_model: bool) -> Cost:
    keys = {text_hash(text) for text in texts}
    if not same_model:
        new, why = len(keys), f"at most: models/hub/{scorer.model} may become another model"
    else:
        committed, error = read_scores(scorer.output)
        new = len(keys - stored_keys(scorer, committed))
        why = f"the scores of the last commit cannot be read: {error}" if error else f"{len(keys) - new:,} have scores"
    flops = flops_per_text(scorer.stage) if new else 0
    return Cost(f"{scorer.stage}: {new:,} of {len(keys):,} distinct texts to compute ({why})", flops and flops * new)


def read_scores(output: str) -> tuple[pa.Table | None, Exception | None]:
    """Return the keys of the last commit's scores, with their fingerprint in the metadata, or why there are none."""
    try:
        content = read_committed(Path(output))
        return (None if content is None else pq.read_table(BytesIO(content), columns=[KEY])), None
    except Exception as error:  # as in scoring.cache: each remote has its own errors
        return None, error


def stored_keys(scorer: Scorer, committed: pa.Table | None) -> set[str]:
    """Return the keys of the scores in .checkpoints and in the last commit that have this fingerprint."""
    model = Path("models/hub") / scorer.model
    before = {} if committed is None else read_fingerprint(committed.schema)
    now = compute_fingerprint(model, scorer.settings, scorer.code)
    if not model.is_dir():  # not pulled, so it is the model of the last commit
        now |= {part: before[part] for part in MODEL if part in before}
    files = Cache(checkpoints_folder(CHECKPOINTS / scorer.stage), now, lambda _: {}, [], Path(scorer.output)).files()
    intact = [path for path in files if path.suffixes[-2] == f".{hash_file(path)}"]
    return known_keys([read_arrow(path, KEY) for path in intact] + [committed] * (before == now))


def flops_per_text(stage: str) -> float | None:
    """Return the mean cost of a text as the last summary has it; None if it has none, as for `rate`."""
    path = METRICS / "summary.json"
    cost = read_json(path)["cost"]["selection"] if path.is_file() else {}
    return cost[f"{stage}_flops"] / cost["rows"] if f"{stage}_flops" in cost else None


def training_costs(plan: Plan) -> Iterator[Cost]:
    """Yield what the arms and preferences to train cost, and what is evaluated."""
    if arms := plan.named("train"):
        yield arms_cost(plan, arms)
    if tuned := plan.named("prefer", "prefer"):
        yield preferences_cost(tuned)
    for stage, does in (("evaluate", "evaluate"), ("generate", "answer the prompts")):
        preferred = plan.named(f"{stage}_preferred", "prefer")
        names = [*plan.named(stage), *preferred, *(["the base"] if plan.runs(f"{stage}_base") else [])]
        if names:
            yield Cost(f"models to {does}: at most {len(names)} ({', '.join(names)})", 0)


def arms_cost(plan: Plan, arms: list[str]) -> Cost:
    params = read_yaml(PARAMS)
    known = [cost for cost in (training_cost(arm, params) for arm in arms) if cost]
    surely = sum(f"train@{arm}" in plan.will for arm in arms)
    count = len(arms) if surely == len(arms) else f"{surely} to {len(arms)}"
    text = f"arms to train: {count} ({', '.join(arms)})"
    tokens, flops = sum(cost[0] for cost in known), sum(cost[1] for cost in known)
    if known:
        text += f", about {tokens:,.0f} tokens, {flops:.2g} FLOPs"
        if plan.runs("fetch_model@base"):
            text += "; the FLOPs are those of the earlier base"
    missing = len(arms) - len(known)
    return Cost(text + without_earlier_run(missing), None if missing else flops)


def preferences_cost(tuned: list[str]) -> Cost:
    known = [flops for flops in map(last_flops, tuned) if flops is not None]
    text = f"preferences to train: at most {len(tuned)} ({', '.join(tuned)})"
    if known:
        text += f", about {sum(known):.2g} FLOPs"
    missing = len(tuned) - len(known)
    return Cost(text + without_earlier_run(missing), None if missing else sum(known))


def without_earlier_run(missing: int) -> str:
    return f"; {missing} without an earlier run to go by" if missing else ""


def last_flops(name: str) -> float | None:
    """Return what the last training of a preference cost; None if there was none."""
    path = METRICS / f"arms/{name}.json"
    return float(read_json(path)["cost"]["training_flops"]) if path.is_file() else None


def training_cost(arm: str, params: dict[str, Any]) -> tuple[float, float] | None:
    """Estimate the tokens and FLOPs of a training from the arm's last run, or from the control's if the arm is new.

    None if neither has run. Longer rows or a larger base take more.
    """
    like = next((one for one in (arm, params["control"]) if (METRICS / f"arms/{one}.json").is_file()), None)
    if like is None:
        return None
    last = read_json(METRICS / f"arms/{like}.json")
    times = presented_again(params, arm, last, batch_of(like, params))
    return times * last["cost"]["training_tokens"], times * last["cost"]["training_flops"]


def presented_again(params: dict[str, Any], arm: str, last: dict[str, Any], batch: int) -> float:
    """Return how many times as long as the `last` run, with `batch` rows a step, the training in params is."""
    budget, settings, ran, sample = params["train"]["budget"], params["arms"][arm], last["train"], last["sample"]
    share = settings.get("fraction", 1 if settings["method"] == "all" else sample["rows"] / sample["candidates"])
    rows = ran["epochs"] * ran["rows"]
    then = {"steps": ran["steps"] * batch, "rows": rows, "epochs": rows, "tokens": ran["tokens"]}
    each = {"steps": params["train"]["batch"], "epochs": share * sample["candidates"]}
    return float(budget["amount"] * each.get(budget["unit"], 1) / then[budget["unit"]])


def batch_of(arm: str, params: dict[str, Any]) -> int:
    """Return the batch size that the arm was trained with, from dvc.lock."""
    ran = read_lock().get(f"train@{arm}", {})
    return int(ran.get("params", {}).get("params.yaml", params)["train"]["batch"])


def total_lines(costs: list[Cost], speed: float | None) -> Iterator[str]:
    """Yield all FLOPs, and how long they take."""
    if not costs:
        return
    flops = sum(cost.flops or 0 for cost in costs)
    less = " and what is not known" if any(cost.flops is None for cost in costs) else ""
    if less and not flops:
        yield "scoring and training: the FLOPs are not known"
        return
    yield f"scoring and training: at most about {flops:.2g} FLOPs, without evaluation{less}"
    if speed:
        yield f"at {speed:.2g} FLOPs per second: {flops / speed / 3600:.2g} hours"


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.forecast", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--flops-per-second", type=float, metavar="X", help="of your machine, to print the hours")
    options = parser.parse_args(words)
    if options.flops_per_second is not None and not options.flops_per_second > 0:
        parser.error("--flops-per-second needs a number above 0")
    return print_lines(forecast(options.flops_per_second))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
