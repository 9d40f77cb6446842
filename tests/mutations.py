"""Changes in a pull request: forgeries and damage that a gate has to refuse, and harmless ones.

Each function changes a clone; `rng` decides where. MUTATIONS lists them with the gates that refuse them.
"""

import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from ruamel.yaml import YAML

from stages.lib.core.artifacts import read_json
from tests.project import change_params, commit, run
from tools.gates import LEAKED, LEAKS, LOCK, PUSHED, TRUE, WHOLE

SUMMARY = "metrics/summary.json"
LOSS = "spread − control, held-out loss, upper end"
F1 = "spread − control, mean macro-F1, lower end"
SCORES = ("data/ppl.parquet", "data/candidates.parquet", "data/ratings.parquet", "data/clusters.parquet")


def read_lock_of(folder: Path) -> Any:
    return YAML(typ="safe").load(folder / "dvc.lock")


def entries(lock: Any, kind: str) -> Iterator[Any]:
    for stage in lock["stages"].values():
        yield from stage.get(kind, [])


def forge(folder: Path, path: str) -> None:
    """Write to dvc.lock what a file in git is now, as `dvc commit -f` does; commit."""
    lock = read_lock_of(folder)
    for entry in (*entries(lock, "outs"), *entries(lock, "deps")):
        there = folder / entry["path"]
        if entry["path"] == path:
            entry |= {"md5": md5_of(there.read_bytes()), "size": there.stat().st_size}
        elif path.startswith(f"{entry['path']}/"):
            entry |= {"md5": folder_md5(there), "size": sum(file.stat().st_size for file in there.iterdir())}
    write_lock(folder, lock)
    commit(folder, "forged")


def write_lock(folder: Path, lock: Any) -> None:
    with (folder / "dvc.lock").open("w", encoding="utf-8") as file:
        YAML().dump(lock, file)


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def folder_md5(folder: Path) -> str:
    files = sorted(folder.iterdir())
    listed = [{"md5": md5_of(file.read_bytes()), "relpath": file.name} for file in files]
    return md5_of(json.dumps(listed, sort_keys=True).encode()) + ".dir"


def object_of(remote: Path, md5: str) -> Path:
    return remote / "files/md5" / md5[:2] / md5[2:]


def write_metrics(folder: Path, path: str, content: Any) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True)
    (folder / path).write_text(text + "\n", encoding="utf-8")


def edit_a_metric(folder: Path, rng: random.Random) -> None:
    """Change one number of the metrics, and commit it with `dvc commit -f`."""
    path = rng.choice([SUMMARY, *(f"metrics/{kind}/{arm}.json" for kind in ("arms",) for arm in ("spread", "random"))])
    content = read_json(folder / path)
    places = [(inside, key) for inside, key, value in leaves(content) if isinstance(value, float)]
    inside, key = rng.choice(places)
    inside[key] += rng.choice([-1, 1]) * 10 ** rng.uniform(-4, 0)
    write_metrics(folder, path, content)
    forge(folder, path)


def leaves(content: Any) -> Iterator[tuple[Any, str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from leaves(value)
        else:
            yield content, key, value


def take_metrics_of_another_commit(folder: Path, rng: random.Random) -> None:
    run(folder, "git", "checkout", "-q", "HEAD~1", "--", SUMMARY)
    if rng.random() < 0.5:
        run(folder, "git", "checkout", "-q", "HEAD~1", "--", "metrics")
    forge(folder, SUMMARY)


def leave_the_lock_stale(folder: Path, rng: random.Random) -> None:
    """Change what a stage reads, and run nothing."""
    kind = rng.choice(["params", "code", "lock", "data"])
    if kind == "params":
        key, value = rng.choice([("ppl__max_tokens", 99), ("cluster__clusters", 5), ("train__learning_rate", 0.1)])
        change_params(folder, **{key: value})
    elif kind == "code":
        path = folder / "stages" / rng.choice(["sample.py", "train.py", "lib/selection/methods.py", "compare.py"])
        path.write_text(path.read_text(encoding="utf-8") + "\nCHANGED = True\n", encoding="utf-8")
    elif kind == "data":
        path = folder / "data/inputs/assistant.jsonl"
        path.write_bytes('{"instruction": "새 질문?", "output": "답"}\n'.encode() + path.read_bytes())
    else:
        run(folder, "git", "checkout", "-q", "HEAD~1", "--", "dvc.lock")
    commit(folder, "nothing ran")


def lose_an_object(folder: Path, rng: random.Random) -> None:
    """Remove from the remote what a stage wrote, as if it was never pushed: a file, a folder or a file in it."""
    remote = folder.parent / "remote"
    outs = [out for out in entries(read_lock_of(folder), "outs") if not out["path"].startswith("metrics/")]
    place = object_of(remote, rng.choice(outs)["md5"])
    if place.suffix == ".dir" and rng.random() < 0.5:
        place = object_of(remote, rng.choice(json.loads(place.read_bytes()))["md5"])
    place.unlink()


def flip_a_bit(folder: Path, rng: random.Random) -> None:
    """Change one bit of a sample or of a table of scores in the remote."""
    samples = [out["path"] for out in entries(read_lock_of(folder), "outs") if out["path"].startswith("data/samples/")]
    damage(folder, rng.choice([*samples, *SCORES]), rng)


def flip_a_bit_of_an_evaluation(folder: Path, rng: random.Random) -> None:
    damage(folder, f"data/eval/{rng.choice(['spread', 'random', 'full', 'base'])}", rng)


def damage(folder: Path, path: str, rng: random.Random) -> None:
    (md5,) = {out["md5"] for out in entries(read_lock_of(folder), "outs") if out["path"] == path}
    place = object_of(folder.parent / "remote", md5)
    if place.suffix == ".dir" and rng.random() < 0.5:
        place = object_of(folder.parent / "remote", json.loads(place.read_bytes())[0]["md5"])
    content = bytearray(place.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    place.chmod(0o644)
    place.write_bytes(content)


def loosen_a_gate(folder: Path, rng: random.Random) -> str:
    """Put a pull request on a base whose gates refuse it, and let it loosen them. Return the base."""
    head = run(folder, "git", "rev-parse", "HEAD").strip()
    run(folder, "git", "reset", "-q", "--hard", "HEAD~1")
    gate, limit = rng.choice([("macro_f1", rng.uniform(2, 9)), ("held_out_loss", -rng.uniform(5, 9))])
    change_params(folder, **{f"gates__{gate}": {"spread": limit}})
    commit(folder, "a strict gate")
    base = run(folder, "git", "rev-parse", "HEAD").strip()
    run(folder, "git", "checkout", "-q", head, "--", ".")
    loose: list[dict[str, Any]] = [{f"gates__{gate}": {}}, {f"gates__{gate}": {"spread": -limit}}]
    change_params(folder, **rng.choice(loose))
    commit(folder, "loosened")
    return base


def leak_an_item(folder: Path, rng: random.Random) -> None:
    """Let a row contain an item of the benchmark: push a table of leaks with it, and name it in dvc.lock."""
    lock = read_lock_of(folder)
    (old,) = {out["md5"] for out in entries(lock, "outs") if out["path"] == LEAKS}
    place = object_of(folder.parent / "remote", old)
    table = pq.read_table(place)
    row = dict.fromkeys(table.schema.names) | {
        "id": "0" * 16,
        "task": rng.choice(["boolq", "copa", "wic"]),
        "split": rng.choice(["train", "validation", "test"]),
        "item": rng.randrange(60),
        "kind": "exact",
        "drop": rng.random() < 0.5,
    }
    added = pq.ParquetWriter(buffer := io.BytesIO(), table.schema)
    added.write_table(table)
    added.write_table(table.from_pylist([row], schema=table.schema))
    added.close()
    new = md5_of(buffer.getvalue())
    object_of(folder.parent / "remote", new).parent.mkdir(exist_ok=True)
    object_of(folder.parent / "remote", new).write_bytes(buffer.getvalue())
    for entry in (*entries(lock, "outs"), *entries(lock, "deps")):
        if entry["path"] == LEAKS:
            entry |= {"md5": new, "size": len(buffer.getvalue())}
    write_lock(folder, lock)
    commit(folder, "a leak")


def drop_an_arm(folder: Path, rng: random.Random) -> None:
    content = read_json(folder / SUMMARY)
    del content["arms"][rng.choice(["spread", "random", "full"])]
    write_metrics(folder, SUMMARY, content)
    forge(folder, SUMMARY)


class Mutation(NamedTuple):
    apply: Callable[[Path, random.Random], str | None]
    """It may return another base."""
    gates: set[str]
    """One of these refuses it."""
    own_remote: bool = False


MUTATIONS = {
    "a metric edited by hand": Mutation(edit_a_metric, {TRUE}),
    "the metrics of another commit": Mutation(take_metrics_of_another_commit, {TRUE}),
    "a stale lock": Mutation(leave_the_lock_stale, {LOCK}),
    "an object that was never pushed": Mutation(lose_an_object, {PUSHED}, own_remote=True),
    "a flipped bit in a table": Mutation(flip_a_bit, {WHOLE}, own_remote=True),
    "a flipped bit in an evaluation": Mutation(flip_a_bit_of_an_evaluation, {TRUE}, own_remote=True),
    "a loosened gate": Mutation(loosen_a_gate, {LOSS, F1}),
    "a leaked row": Mutation(leak_an_item, {LEAKED}, own_remote=True),
    "an arm missing from the summary": Mutation(drop_an_arm, {TRUE}),
}


def comment_on_params(folder: Path, rng: random.Random) -> None:
    lines = (folder / "params.yaml").read_text(encoding="utf-8").splitlines()
    lines.insert(rng.choice([0, len(lines)]), "# A remark.")
    (folder / "params.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def reformat_params(folder: Path, rng: random.Random) -> None:
    """Indent and break the lines in another way; half the time, drop all comments and write no mapping in one line."""
    yaml = YAML() if rng.random() < 0.5 else YAML(typ="safe", pure=True)
    yaml.default_flow_style = yaml.sort_base_mapping_type_on_output = False
    yaml.width = rng.choice([60, 200])
    yaml.indent(mapping=rng.choice([2, 4]), sequence=rng.choice([4, 6]), offset=2)
    content = yaml.load(folder / "params.yaml")
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def comment_on_the_pipeline(folder: Path, rng: random.Random) -> None:
    path = folder / "dvc.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("  ") and not line.startswith("   ")]
    lines.insert(rng.choice(starts), "  # A remark.")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_about_it(folder: Path, rng: random.Random) -> None:
    path = folder / rng.choice(["README.md", "CHANGELOG.md", "docs/team.md", "docs/new.md", "tests/test_new.py"])
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    path.write_text(f"{before}\n# More\n", encoding="utf-8")


HARMLESS = {
    "a comment in params.yaml": comment_on_params,
    "params.yaml in another format": reformat_params,
    "a comment in dvc.yaml": comment_on_the_pipeline,
    "a text": write_about_it,
}
