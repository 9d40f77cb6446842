"""Allocation `koquality`: what the original selects (nayohan/KoQuality, proceed_sampling_dataset.py), for parity."""

import pandas as pd

from stages.lib.selection.candidates import CELL
from stages.lib.selection.quotas import Mask


def select_as_koquality(rows: pd.DataFrame, method: str, fraction: float) -> Mask:
    """Return what KoQuality selects [N].

    Its perplexities have 2 decimals; ties are broken by the characters of the instruction, then by the order of raw.
    `spread` takes ranks 0, s, 2s, ... of each cell with s = int(1 / fraction), so each cell gives at least one row.
    `highest` takes the last int(fraction x size) distinct instructions of each cell, where the size counts repeats.
    """
    order = rows.assign(score=rows["score"].round(2), length=rows["instruction"].str.len())
    order = order.sort_values(["score", "length"], kind="stable")
    selected = pd.Series(False, index=order.index)
    cells = order.groupby(CELL, sort=False)
    if method == "spread":
        selected = cells.cumcount() % int(1 / fraction) == 0
    else:
        quota = (fraction * cells["score"].transform("size")).astype(int)
        single = order[~order.duplicated([*CELL, "instruction"])]
        from_top = single.groupby(CELL, sort=False).cumcount(ascending=False)
        selected.loc[single.index] = from_top < quota.loc[single.index]
    mask: Mask = selected.reindex(rows.index).to_numpy(dtype=bool)
    return mask
