"""Describe the near-duplicates and the marks. `report` reads nothing else about them.

data/raw.parquet, data/candidates.parquet, data/duplicates.parquet, data/ratings.parquet -> data/audit.json
"""

from pathlib import Path

from stages.lib.core.params import Section
from stages.lib.core.runner import run
from stages.lib.rating.request import Ask


class AnyArm(Section):
    model_config = Section.model_config | {"extra": "ignore"}
    method: str


class Params(Section):
    arms: dict[str, AnyArm]
    ask: Ask
    """Where `python -m tools.ask` asks a judge, and what it costs there."""


def audit(params: Params, raw: Path, candidates: Path, duplicates: Path, ratings: Path, audit: Path) -> None:
    raise NotImplementedError


if __name__ == "__main__":
    run(audit, Params)
