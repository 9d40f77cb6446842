"""The marks of a model's answers to the prompts: as a table, as shares, and as JSON for git (metrics/items/<arm>.json).

The table has a row for each of the N prompts: `id`, `constraints` (how many the prompt has), `followed` (how many of
them the answer follows), and `final` (1 if the final number is right, 0 if not, NaN if the prompt asks for none).
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.lib.evaluation.predictions import classes, digits

Share = tuple[NDArray[np.float64], NDArray[np.float64]]
"""What is right and how much counts, both [M], of the M prompts that count: the share is the ratio of their sums."""
NO_FINAL = 2
"""How JSON marks a prompt that asks for no final number."""


def shares_of(marks: pd.DataFrame) -> dict[str, Share]:
    """Return each share that any prompt counts for, over all prompts.

    `prompt_level`: prompts with all constraints followed; `instruction_level`: constraints followed; `final`: right
    final numbers. The first two are the strict accuracies of IFEval (Zhou et al. 2023, arXiv 2311.07911, section 3).
    """
    constraints, followed = (marks[name].to_numpy(dtype=np.float64) for name in ("constraints", "followed"))
    final = marks["final"].to_numpy(dtype=np.float64)
    found = {
        "prompt_level": (1.0 * (followed == constraints), 1.0 * (constraints > 0)),
        "instruction_level": (followed, constraints),
        "final": (final, 1.0 * ~np.isnan(final)),
    }
    return {name: (right[counts > 0], counts[counts > 0]) for name, (right, counts) in found.items() if counts.any()}


def marks_to_json(marks: pd.DataFrame) -> dict[str, Any]:
    """Return the marks with a string of digits for each column. Raises UserError if a prompt has over 9 constraints."""
    final = marks["final"].fillna(NO_FINAL)
    columns = {"constraints": marks["constraints"], "followed": marks["followed"], "final": final}
    texts = {name: digits(column.to_numpy(dtype=np.int64)) for name, column in columns.items()} if len(marks) else {}
    return {"ids": marks["id"].tolist(), **texts}


def marks_from_json(content: dict[str, Any]) -> pd.DataFrame:
    """Return the marks that `marks_to_json` wrote."""
    columns = {name: classes(content.get(name, "")) for name in ("constraints", "followed", "final")}
    found = pd.DataFrame({"id": pd.Series(content["ids"], dtype=object), **columns})
    return found.assign(final=found["final"].astype(np.float64).replace(NO_FINAL, np.nan))
