"""Read a file as a revision has it, whether it was pulled or not.

What git tracks comes from git. What DVC tracks comes from its cache or its remote, and is compared with the md5 in that
revision's dvc.lock, or in its .dvc file. No other bytes are ever returned.
"""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from stages.lib.core.errors import UserError
from stages.lib.scoring import committed
from stages.lib.scoring.committed import DamagedError, committed_md5, parse_lock, read_git, read_object


class MissingError(UserError):
    """The revision has no such file, or there is no such revision."""


class RemoteError(UserError):
    """The bytes are not in the cache, and the remote does not give them."""


def read_at(path: str, revision: str) -> bytes:
    """Return the content that a revision has for this path.

    Raises MissingError, RemoteError or DamagedError, which name the path and the revision.
    """
    content = git_at(path, revision)
    if content is not None:
        return content
    return object_at(find_md5(Path(path), revision), path, revision)


def read_lock(revision: str) -> dict[str, Any]:
    """Return the revision's dvc.lock; raise MissingError if it has none."""
    return parse_lock(read_at(str(committed.LOCK), revision))


def table_at(path: str, revision: str, *names: str) -> pd.DataFrame:
    """Return the named columns of a Parquet file at a revision, all if none is named."""
    content = read_at(path, revision)
    try:
        return pq.read_table(BytesIO(content), columns=list(names) or None).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} at {revision}: not readable as Parquet: {error}; is it the right file?") from None


def yaml_at(path: str, revision: str) -> Any:
    """Return a YAML file at a revision, such as params.yaml."""
    return YAML(typ="safe").load(read_at(path, revision))


def git_at(path: str, revision: str) -> bytes | None:
    """Return what git has, None if it does not track the path; raise MissingError if there is no such revision."""
    from dvc.scm import SCMError

    try:
        return read_git(Path(path), revision)
    except SCMError:
        raise MissingError(
            f"{revision}: git has no such revision here; `git fetch` it (in CI, check out with the full history)"
        ) from None


def find_md5(path: Path, revision: str) -> str:
    """Return the revision's md5 of an output, of a file added with `dvc add`, or of a file in such a folder."""
    for place in [path, *path.parents][:-1]:
        md5 = committed_md5(place, revision) or added_md5(place, revision)
        if md5 and place != path:
            md5 = entries(md5, place, revision).get(path.relative_to(place).as_posix())
        if md5 and md5.endswith(".dir"):
            raise MissingError(f"{path} at {revision}: it is a folder; name a file in it")
        if md5:
            return md5
    raise MissingError(
        f"{path} at {revision}: neither git nor DVC tracks it there; is the path right, and was dvc.lock committed?"
    )


def added_md5(path: Path, revision: str) -> str | None:
    """Return the md5 in the .dvc file of a path, None if it has none."""
    pointer = git_at(f"{path}.dvc", revision)
    return None if pointer is None else YAML(typ="safe").load(pointer)["outs"][0]["md5"]


def entries(md5: str, folder: Path, revision: str) -> dict[str, str]:
    """Return the md5 of every file in a folder, by its path there."""
    listed = json.loads(object_at(md5, str(folder), revision))
    return {entry["relpath"]: entry["md5"] for entry in listed}


def object_at(md5: str, path: str, revision: str) -> bytes:
    """Return what DVC has under this md5; the path and the revision are for the errors."""
    where = f"{path} at {revision}"
    try:
        content = read_object(md5)
    except DamagedError as error:
        raise DamagedError(f"{where}: {error}") from None
    except FileNotFoundError:
        raise RemoteError(f"{where}: not on the remote; `dvc push` from a clone that has it") from None
    except Exception as error:  # each remote has its own errors
        raise RemoteError(
            f"{where}: the remote cannot be read: {type(error).__name__}: {error}; check the network, the remote's "
            "address and its credentials"
        ) from None
    if content is None:
        raise RemoteError(f"{where}: not in the cache, and no remote is set; `dvc remote default NAME`")
    return content
