"""Scores that are never computed twice.

A score is a function of its text and of what it was made by (`lib.fingerprint`), so it is looked for by the hash of
its text: first in this folder, in <fingerprint>.<hash of the file>.parquet, then in the output of the last commit,
pulled or not. What is computed goes into the folder in chunks, every few seconds, so a run that is killed loses no
more than one chunk of each process. The folder may be removed at any time; it costs the scores that are not committed.
"""

import hashlib
import json
import logging
import os
import subprocess
import time
from collections.abc import Callable, Collection, Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.lib.core.artifacts import read_arrow, remove, write_arrow
from stages.lib.core.errors import UserError
from stages.lib.core.processes import barrier, rank
from stages.lib.scoring.fingerprint import Fingerprint, changes, hash_file, short
from stages.lib.text.hashing import text_hash

if TYPE_CHECKING:
    import torch

log = logging.getLogger("stages")
SECONDS = 2.0
"""Work between two chunks."""
KEY = "text"
Batches = Iterable[tuple[list[int], "torch.Tensor"]]
"""Which of the missing texts a batch scored, and their scores [n, W] on the device."""


class Store(NamedTuple):
    folder: Path
    fingerprint: Fingerprint
    columns: Callable[[Any], dict[str, pa.Array]]
    """From scores [n, W] to what is kept of them."""
    names: list[str]
    """Of those columns."""
    output: Path
    """The stage's output, which has the same columns and `text`, the keys."""

    def files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{short(self.fingerprint)}.*.parquet"))


def complete(store: Store, texts: list[str], compute: Callable[[list[str]], Batches]) -> pa.Table | None:
    """Return the columns and keys of these distinct texts, in their order; None in any process but the first.

    `compute` is called with the texts that are nowhere to be found, and does this process's part of them.
    """
    keys = [text_hash(text) for text in texts]
    if rank() == 0:
        collect_known(store, keys)
    barrier()
    known = known_keys([read_arrow(path, KEY) for path in store.files()])
    barrier()  # the first chunk of any process comes after this
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    if missing:
        keep_chunks(store, list(missing), compute(list(missing.values())))
    barrier()
    return look_up(collect_known(store), keys) if rank() == 0 else None


def collect_known(store: Store, wanted: Collection[str] = ()) -> pa.Table | None:
    """Bring what is known into one file, and return it: chunks, and the last commit's where a wanted key lacks."""
    for torn in store.folder.glob(".*.part"):
        remove(torn)
    files = store.files()
    tables = [table for path in files for table in intact(store, path)]
    kept = known_keys(tables)
    if set(wanted) - kept:
        tables += last_commit(store)
        log_what_is_new(store, set(wanted), kept, known_keys(tables))
    if not tables:
        return None
    together = distinct(tables)
    if len(tables) > 1 or not files:
        kept_in = keep(store, together)
        for path in set(files) - {kept_in}:
            remove(path)
    return together


def keep(store: Store, table: pa.Table) -> Path:
    """Write a file that bears its own hash, for Parquet's checksums leave out the footer."""
    scratch = store.folder / f".{rank()}-{os.getpid()}.part"
    write_arrow(scratch, stamped(table, store.fingerprint))
    return scratch.replace(store.folder / f"{short(store.fingerprint)}.{hash_file(scratch)}.parquet")


def log_what_is_new(store: Store, wanted: set[str], kept: set[str], known: set[str]) -> None:
    others = sorted(store.folder.glob("*.parquet"), key=lambda path: path.stat().st_mtime)
    if others and not store.files():
        before = read_fingerprint(pq.read_schema(others[-1]))
        log.info("the last scores in %s have another fingerprint: %s", store.folder, changes(before, store.fingerprint))
    log.info(
        "%d distinct texts: %d have scores in %s, %d more in the last commit, %d to compute",
        len(wanted), len(wanted & kept), store.folder, len(wanted & known - kept), len(wanted - known),
    )  # fmt: skip


def intact(store: Store, path: Path) -> list[pa.Table]:
    """Return the file's table, or remove the file where it is damaged: its scores are then computed again."""
    if path.suffixes[-2] == f".{hash_file(path)}":
        return [read_arrow(path).select([KEY, *store.names])]
    log.warning("%s: damaged, removed", path)
    remove(path)
    return []


def last_commit(store: Store) -> list[pa.Table]:
    """Return the table that the last commit has as this stage's output, where it is of the same make."""
    if "DVC_STAGE" not in os.environ:
        return []
    try:
        table = pq.read_table(BytesIO(committed(store.output)))
        before = read_fingerprint(table.schema)
    except Exception as error:  # no history, no remote, no network, an older format: each means to compute
        log.info("no scores from the last commit: %s", error)
        return []
    if before != store.fingerprint:
        if before:  # else the output of a time before there were fingerprints
            log.info("the last commit's scores have another fingerprint: %s", changes(before, store.fingerprint))
        return []
    return [table.select([KEY, *store.names])]


def committed(path: Path) -> bytes:
    """Return the file as the last commit has it, from the cache or the remote.

    DVC verifies nothing on this way, so the content is held against that commit's dvc.lock.
    """
    import dvc.api
    from ruamel.yaml import YAML

    content: bytes = dvc.api.read(str(path), rev="HEAD", mode="rb")
    lock = subprocess.run(["git", "show", "HEAD:./dvc.lock"], capture_output=True, check=True).stdout
    outs = [out for stage in YAML(typ="safe").load(lock)["stages"].values() for out in stage.get("outs", [])]
    wanted = next(out["md5"] for out in outs if out["path"] == str(path))
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != wanted:
        raise ValueError(f"{path} is damaged in the cache or the remote, dvc.lock has md5 {wanted}")
    return content


def keep_chunks(store: Store, keys: list[str], batches: Batches) -> None:
    """Write what the batches score into the folder, every few seconds."""
    pending: list[tuple[list[int], torch.Tensor]] = []
    since = time.monotonic()
    for batch in batches:
        pending.append(batch)
        if time.monotonic() - since > SECONDS:
            keep(store, scores_table(store, keys, pending))
            pending, since = [], time.monotonic()
    if pending:
        keep(store, scores_table(store, keys, pending))


def scores_table(store: Store, keys: list[str], batches: list[tuple[list[int], "torch.Tensor"]]) -> pa.Table:
    import torch

    rows = [row for rows, _ in batches for row in rows]
    scores = torch.cat([scores for _, scores in batches]).cpu().numpy()
    return pa.table({KEY: [keys[row] for row in rows], **store.columns(scores)})


def stamped(table: pa.Table, fingerprint: Fingerprint) -> pa.Table:
    """Return the table with its fingerprint in the metadata."""
    return table.replace_schema_metadata({"fingerprint": json.dumps(fingerprint, sort_keys=True)})


def read_fingerprint(schema: pa.Schema) -> Fingerprint:
    """Return what the metadata tell, nothing where they have none; raises ValueError where they are damaged."""
    found: Fingerprint = json.loads((schema.metadata or {}).get(b"fingerprint", b"{}"))
    return found


def known_keys(tables: list[pa.Table]) -> set[str]:
    return {key for table in tables for key in table[KEY].to_pylist()}


def distinct(tables: list[pa.Table]) -> pa.Table:
    """Return the tables as one, without repeated keys."""
    table = pa.concat_tables(tables)
    repeated = table[KEY].to_pandas().duplicated()
    return table.filter(pa.array(~repeated)) if repeated.any() else table


def look_up(table: pa.Table | None, keys: list[str]) -> pa.Table:
    place = {key: row for row, key in enumerate(table[KEY].to_pylist() if table else [])}
    lost = sum(key not in place for key in keys)
    if lost or table is None:
        raise UserError(f"{lost} of {len(keys)} scores did not arrive; do all nodes share .checkpoints?")
    return table.take([place[key] for key in keys])
