"""Fetch models and data sets from the Hugging Face hub, each at a pinned commit, through the hub's own cache."""

import re
from pathlib import Path
from typing import Any, Literal

from stages.lib.core.errors import UserError


def snapshot(
    repo_type: Literal["model", "dataset"],
    where: str,
    name: str | None,
    revision: str | None,
    **options: Any,
) -> Path:
    """Return the local folder of a hub repository at a commit; `where` names the params entry.

    If HF_HUB_OFFLINE=1, only what HF_HUB_CACHE already contains is used.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if not name:
        raise UserError(f"params.yaml: {where}.name: missing; `from: hub` needs the repository's name")
    if not revision or not re.fullmatch(r"[0-9a-f]{40}", revision):
        address = f"https://huggingface.co/{'datasets/' if repo_type == 'dataset' else ''}{name}"
        raise UserError(
            f"params.yaml: {where}.revision: expected a commit hash (40 hex digits), got {revision!r}; "
            f"`python -m tools.pin params.yaml` writes the newest of {address} where it is null"
        )
    try:
        return Path(snapshot_download(name, repo_type=repo_type, revision=revision, **options))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"{where}: {name} at {revision} could not be fetched: {error}; "
            "check the name, the revision, the network and, for a gated repository, HF_TOKEN"
        ) from error


def save_split(
    where: str, name: str | None, revision: str | None, config: str | None, split: str | None, path: Path
) -> None:
    """Write one split of a data set on the hub, at a commit, as Parquet; `where` names the params entry."""
    if split is None:
        raise UserError(f"params.yaml: {where}.split: missing; a hub data set needs a split, usually `train`")
    local = snapshot("dataset", where, name, revision)
    load_split(where, name, local, config, split).to_parquet(str(path))


def load_split(where: str, name: str | None, folder: Path, config: str | None, split: str) -> Any:
    """Return one split of the data set in a local folder, read by `datasets`."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return load_dataset(str(folder), config, split=split)
    except (DatasetsError, ValueError, OSError) as error:
        raise UserError(f"{where}: {name} did not load: {error}; check its name, config and split") from error
