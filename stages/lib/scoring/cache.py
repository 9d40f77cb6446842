"""A cache of scores, so that none is computed twice.

A score is a function of its text and of the fingerprint (`scoring.fingerprint`), so it is found by the hash of its
text. It is looked for first in the cache folder, in files named <fingerprint>.<hash of the file>.parquet; then in the
output that the last commit has for this stage, pulled or not. New scores are written to the folder in chunks, every few
seconds, so a run that is killed loses at most one chunk per process. The folder may be removed at any time; only the
scores that are not committed are lost with it.
"""

import json
import logging
import os
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
from stages.lib.scoring.committed import read_committed
from stages.lib.scoring.fingerprint import Fingerprint, describe_changes, hash_file, short_hash
from stages.lib.text.hashing import text_hash

if TYPE_CHECKING:
    import torch

log = logging.getLogger("stages")
CHUNK_SECONDS = 2.0
"""Time between two chunks."""
KEY = "text_hash"
"""The column by which a score is found."""
Batches = Iterable[tuple[list[int], "torch.Tensor"]]
"""For every batch, the indices of its texts among the missing ones, and their scores [n, W] on the device."""


class Cache(NamedTuple):
    folder: Path
    fingerprint: Fingerprint
    columns: Callable[[Any], dict[str, pa.Array]]
    """From scores [n, W] to the columns that are kept."""
    names: list[str]
    """The names of those columns."""
    output: Path
    """The stage's output, which has those columns and KEY."""

    def files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{short_hash(self.fingerprint)}.*.parquet"))


def complete(cache: Cache, texts: list[str], compute: Callable[[list[str]], Batches]) -> pa.Table | None:
    """Return the columns and keys of these distinct texts, in their order; None in every process but the first.

    `compute` gets the texts that have no score yet, and yields the scores of this process's share of them.
    """
    keys = [text_hash(text) for text in texts]
    if rank() == 0:
        collect_known(cache, keys)
    barrier()
    known = known_keys([read_arrow(path, KEY) for path in cache.files()])
    barrier()  # no process writes a chunk until all have read the folder
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    if missing:
        keep_chunks(cache, list(missing), compute(list(missing.values())))
    barrier()
    return look_up(collect_known(cache), keys) if rank() == 0 else None


def collect_known(cache: Cache, wanted: Collection[str] = ()) -> pa.Table | None:
    """Merge the folder's files into one and return its table.

    If a wanted key is missing, the scores of the last commit are added.
    """
    for partial in cache.folder.glob(".*.part"):
        remove(partial)
    files = cache.files()
    tables = [table for path in files for table in read_if_intact(cache, path)]
    kept = known_keys(tables)
    if set(wanted) - kept:
        tables += read_last_commit(cache, len(set(wanted) - kept))
        log_what_is_new(cache, set(wanted), kept, known_keys(tables))
    if not tables:
        return None
    merged = without_repeated_keys(tables)
    if len(tables) > 1 or not files:
        written = write_chunk(cache, merged)
        for path in set(files) - {written}:
            remove(path)
    return merged


def write_chunk(cache: Cache, table: pa.Table) -> Path:
    """Write a file with its own hash in its name, because Parquet's page checksums do not cover the footer."""
    scratch = cache.folder / f".{rank()}-{os.getpid()}.part"
    write_arrow(scratch, with_fingerprint(table, cache.fingerprint))
    return scratch.replace(cache.folder / f"{short_hash(cache.fingerprint)}.{hash_file(scratch)}.parquet")


def log_what_is_new(cache: Cache, wanted: set[str], kept: set[str], known: set[str]) -> None:
    others = sorted(cache.folder.glob("*.parquet"), key=lambda path: path.stat().st_mtime)
    if others and not cache.files():
        before = read_fingerprint(pq.read_schema(others[-1]))
        changes = describe_changes(before, cache.fingerprint)
        log.info("the last scores in %s have another fingerprint: %s", cache.folder, changes)
    log.info(
        "%d distinct texts: %d have scores in %s, %d more in the last commit, %d to compute",
        len(wanted), len(wanted & kept), cache.folder, len(wanted & known - kept), len(wanted - known),
    )  # fmt: skip


def read_if_intact(cache: Cache, path: Path) -> list[pa.Table]:
    """Return the file's table; or remove the file if it is damaged, so that its scores are computed again."""
    if path.suffixes[-2] == f".{hash_file(path)}":
        return [read_arrow(path).select([KEY, *cache.names])]
    log.warning("%s: damaged, removed", path)
    remove(path)
    return []


def read_last_commit(cache: Cache, missing: int) -> list[pa.Table]:
    """Return the stage's output in the last commit, if it has the same fingerprint.

    If there is such an output but it cannot be read, a warning says why, and that `missing` texts are scored anew.
    """
    if "DVC_STAGE" not in os.environ:
        return []
    try:
        content = read_committed(cache.output)
        table = None if content is None else pq.read_table(BytesIO(content))
        before = {} if table is None else read_fingerprint(table.schema)
    except Exception as error:  # the libraries of remotes have their own, and a stage can do without these scores
        log.warning(
            "%s of the last commit cannot be read, so %s texts are scored anew: %s: %s; check the network, the "
            "remote's credentials, and whether the file was pushed",
            cache.output, f"{missing:,}", type(error).__name__, error,
        )  # fmt: skip
        return []
    if table is not None and before == cache.fingerprint:
        return [table.select([KEY, *cache.names])]
    if before:  # an output from before there were fingerprints has none
        changes = describe_changes(before, cache.fingerprint)
        log.info("the last commit's scores have another fingerprint: %s", changes)
    return []


def keep_chunks(cache: Cache, keys: list[str], batches: Batches) -> None:
    """Write the batches' scores to the folder, every few seconds."""
    pending: list[tuple[list[int], torch.Tensor]] = []
    since = time.monotonic()
    for batch in batches:
        pending.append(batch)
        if time.monotonic() - since > CHUNK_SECONDS:
            write_chunk(cache, scores_table(cache, keys, pending))
            pending, since = [], time.monotonic()
    if pending:
        write_chunk(cache, scores_table(cache, keys, pending))


def scores_table(cache: Cache, keys: list[str], batches: list[tuple[list[int], "torch.Tensor"]]) -> pa.Table:
    import torch

    rows = [row for rows, _ in batches for row in rows]
    scores = torch.cat([scores for _, scores in batches]).cpu().numpy()
    return pa.table({KEY: [keys[row] for row in rows], **cache.columns(scores)})


def with_fingerprint(table: pa.Table, fingerprint: Fingerprint) -> pa.Table:
    """Return the table with the fingerprint in its metadata."""
    return table.replace_schema_metadata({"fingerprint": json.dumps(fingerprint, sort_keys=True)})


def read_fingerprint(schema: pa.Schema) -> Fingerprint:
    """Return the fingerprint in the metadata, empty if there is none. Raises ValueError if the metadata is damaged."""
    found: Fingerprint = json.loads((schema.metadata or {}).get(b"fingerprint", b"{}"))
    return found


def known_keys(tables: list[pa.Table]) -> set[str]:
    return {key for table in tables for key in table[KEY].to_pylist()}


def without_repeated_keys(tables: list[pa.Table]) -> pa.Table:
    """Return the tables as one; of rows with equal keys, the first stays."""
    table = pa.concat_tables(tables)
    repeated = table[KEY].to_pandas().duplicated()
    return table.filter(pa.array(~repeated)) if repeated.any() else table


def look_up(table: pa.Table | None, keys: list[str]) -> pa.Table:
    """Return the rows of these keys, in their order."""
    place = {key: row for row, key in enumerate(table[KEY].to_pylist() if table else [])}
    lost = sum(key not in place for key in keys)
    if lost or table is None:
        raise UserError(f"{lost} of {len(keys)} scores did not arrive; do all nodes share .checkpoints?")
    return table.take([place[key] for key in keys])
