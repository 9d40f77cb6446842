"""Files as a revision of the repository has them: in git, or in DVC's cache or remote, whether they were pulled or not.

DVC's API does not verify what it reads, not even with `verify = true`, so every object is compared with its md5 here.
"""

import hashlib
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from stages.lib.core.errors import UserError

LOCK = Path("dvc.lock")


class DamagedError(UserError):
    """DVC's cache or remote has other bytes than those that were committed."""


def read_committed(path: Path, revision: str = "HEAD") -> bytes | None:
    """Return what DVC has for this path at a revision; None if dvc.lock does not name it, or if no remote is set.

    Raises DamagedError, and what the remote raises if it does not answer or does not have it.
    """
    md5 = committed_md5(path, revision)
    return None if md5 is None else read_object(md5)


def committed_md5(path: Path, revision: str = "HEAD") -> str | None:
    """Return the md5 that a revision's dvc.lock has for this path, None if there is no such revision or path."""
    from dvc.scm import SCMError

    try:
        stages = committed_lock(revision)["stages"]
    except SCMError:
        return None
    outs = (out for stage in stages.values() for out in stage.get("outs", []))
    return next((out["md5"] for out in outs if out["path"] == str(path)), None)


def committed_lock(revision: str = "HEAD") -> dict[str, Any]:
    """Return a revision's dvc.lock, without stages if there is none. Raises SCMError if there is no such revision."""
    content = read_git(LOCK, revision)
    return {"stages": {}} if content is None else parse_lock(content)


@lru_cache(maxsize=4)
def parse_lock(content: bytes) -> dict[str, Any]:
    from ruamel.yaml import YAML

    lock: dict[str, Any] = YAML(typ="safe").load(content)
    return lock


def read_git(path: Path, revision: str) -> bytes | None:
    """Return the file that git has at a revision, None if it has none. Raises SCMError if there is no such revision."""
    from dvc.scm import SCM, resolve_rev

    git = SCM(".")
    try:
        root, commit = Path(git.root_dir).resolve(), resolve_rev(git, revision)
    finally:
        git.close()
    place = (Path.cwd().resolve() / path).relative_to(root)
    try:
        content: bytes = open_commit(root, commit).cat_file(place.as_posix())
    except (FileNotFoundError, IsADirectoryError):
        return None
    return content


@lru_cache(maxsize=4)
def open_commit(root: Path, commit: str) -> Any:
    """Return the files of a commit. They are listed once, because a commit never changes."""
    from dvc.scm import SCM

    return SCM(str(root)).get_fs(commit)


def read_object(md5: str) -> bytes | None:
    """Return what DVC's cache or else its default remote has under this md5; None if no remote is set.

    Raises DamagedError, and what the remote raises if it does not answer or does not have it.
    """
    here = Path.cwd()
    local = open_project(here).cache.local
    store = local if local.exists(md5) else open_remote(here)
    if store is None:
        return None
    place = store.oid_to_path(md5)
    content: bytes = store.fs.cat_file(place)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5.removesuffix(".dir"):
        raise DamagedError(
            f"{store.fs.unstrip_protocol(place)} is damaged: its md5 is {found}; delete it, and run `dvc push` in a "
            "clone that has it intact"
        )
    return content


@cache
def open_project(folder: Path) -> Any:
    from dvc.repo import Repo

    return Repo(str(folder))


@cache
def open_remote(folder: Path) -> Any:
    """Return DVC's default remote, None if there is none; one connection serves all reads."""
    from dvc.config import NoRemoteError

    try:
        return open_project(folder).cloud.get_remote_odb()
    except NoRemoteError:
        return None
