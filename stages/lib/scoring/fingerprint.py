"""Fingerprints of scores: equal fingerprints mean equal scores.

A fingerprint does not contain the device: equal bits are promised on one type of machine only, and a score is computed
once and then shared.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

Fingerprint = dict[str, str]
"""From the name of a part (weights, tokenizer, code, a setting, a library) to its value or hash."""
MACHINE = {"threads", "portable"}
"""The params at the top of params.yaml that change bits."""


def compute_fingerprint(model: Path, settings: Mapping[str, Any], code: Iterable[Path]) -> Fingerprint:
    """Return the fingerprint of scores computed with this model folder, these settings and these source files."""
    files = sorted(path for path in model.rglob("*") if path.is_file())
    weights = [path for path in files if path.suffix == ".safetensors" or path.name == "config.json"]
    return {
        "weights": digest(f"{path.name} {hash_file(path)}" for path in weights),
        "tokenizer": digest(f"{path.name} {hash_file(path)}" for path in files if path not in weights),
        "code": digest(without_comments(path.read_text(encoding="utf-8")) for path in code),
        **{name: str(value) for name, value in settings.items()},
        **{name: version(name).split("+")[0] for name in ("tokenizers", "torch", "transformers")},
    }


def short_hash(fingerprint: Fingerprint) -> str:
    """Return 16 hex digits, for file names."""
    return digest([json.dumps(fingerprint, sort_keys=True)])


def digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def hash_folder(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest(f"{path.relative_to(folder)} {hash_file(path)}" for path in files)


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def without_comments(source: str) -> str:
    """Return the source without comments, docstrings and layout, so that only changed code changes its hash."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not is_docstring(line)] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def describe_changes(before: Fingerprint, now: Fingerprint) -> str:
    """Return the parts that differ, as `name (was ..., is ...)`."""
    names = sorted(name for name in before | now if before.get(name) != now.get(name))
    return ", ".join(f"{name} (was {before.get(name)}, is {now.get(name)})" for name in names)
