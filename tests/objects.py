"""Projects that were never run: a commit with outs in its dvc.lock, whose bytes are in a cache or a remote."""

import hashlib
import json
from pathlib import Path

from tests.project import commit, run


def commit_outs(folder: Path, outs: dict[str, bytes], store: Path, files: dict[str, str]) -> None:
    """Commit these files, and a dvc.lock with these outs, whose bytes go into `store`."""
    stages = {path: {"cmd": "true", "outs": [out_entry(path, write_object(store, outs[path]))]} for path in outs}
    tracked = {
        "dvc.lock": json.dumps({"schema": "2.0", "stages": stages}),
        ".gitignore": "/.dvc/cache\n/.dvc/tmp\n/remote\n",
    }
    for name, text in (tracked | files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    run(folder, "git", "init", "-q", "-b", "main")
    commit(folder, "outs")


def write_object(store: Path, content: bytes, suffix: str = "") -> Path:
    md5 = hashlib.md5(content).hexdigest() + suffix
    path = store / "files/md5" / md5[:2] / md5[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def out_entry(path: str, place: Path) -> dict[str, object]:
    return {"path": path, "hash": "md5", "md5": place.parent.name + place.name, "size": place.stat().st_size}
