"""Projects that were never run: a commit with outs in its dvc.lock, whose bytes are in a cache or a remote."""

import hashlib
import json
from pathlib import Path

from tests.project import commit, run


def commit_outs(folder: Path, outs: dict[str, bytes], store: Path, **files: str) -> dict[str, Path]:
    """Commit these outs, one stage each, with their bytes in `store`; return where there. `files` are those of git.

    In the names of `files`, `__` stands for a slash.
    """
    objects = {path: write_object(store, content) for path, content in outs.items()}
    stages = {path: {"cmd": "true", "outs": [out_entry(path, objects[path])]} for path in outs}
    tracked = {"dvc.lock": json.dumps({"schema": "2.0", "stages": stages})}
    for name, text in (tracked | {name.replace("__", "/"): text for name, text in files.items()}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / ".dvc").mkdir(exist_ok=True)
    if not (folder / ".git").exists():
        run(folder, "git", "init", "-q", "-b", "main")
        (folder / ".gitignore").write_text(".dvc/cache\n.dvc/tmp\n/remote\n")
    commit(folder, "outs")
    return objects


def write_object(store: Path, content: bytes, suffix: str = "") -> Path:
    md5 = hashlib.md5(content).hexdigest() + suffix
    path = store / "files/md5" / md5[:2] / md5[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def out_entry(path: str, place: Path) -> dict[str, object]:
    return {"path": path, "hash": "md5", "md5": place.parent.name + place.name, "size": place.stat().st_size}
