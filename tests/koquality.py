"""A plain reference for KoQuality's length groups and its selection, written from the description of its scripts."""

import pandas as pd


def groups(lengths, count):
    """Return the group of each row: group i has q(i/L) <= length < q((i+1)/L), the last has no upper bound."""
    lengths = pd.Series(lengths)
    group = pd.Series(-1, index=lengths.index)
    for i in range(count):
        inside = lengths >= lengths.quantile(i / count)
        if i < count - 1:
            inside &= lengths < lengths.quantile((i + 1) / count)
        group[inside] = i
    return group.tolist()


def picks(rows, fraction, method):
    """Return the positions in raw of the rows that its `ppl` (our `spread`) or `ppl_h` (our `highest`) selects."""
    table = rows.assign(position=range(len(rows)), length=rows["instruction"].str.len(), ppl=rows["score"].round(2))
    picked = []
    for _, cell in table.sort_values(["length", "position"]).groupby(["length_group", "cluster"]):
        cell = cell.sort_values("ppl", kind="stable")
        if method == "spread":
            picked += list(cell["position"].iloc[:: int(1 / fraction)])
        elif count := int(fraction * len(cell)):
            picked += list(cell.drop_duplicates("instruction")["position"].tail(count))
    return sorted(picked)
