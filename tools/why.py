"""Say why a row is in or out of each arm: `python -m tools.why ID`, an id or a piece of its text.

Reads what the stages wrote (data/raw.parquet, data/held_out.jsonl, data/dropped.parquet, data/leaks.parquet,
data/samples/*.parquet).
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from stages.lib.core.artifacts import read_jsonl, read_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import PARAMS, read_yaml
from tools.output import print_lines

MOST = 10
"""Rows that are told about; a piece of text may be in many."""


def why(wanted: str, data: Path = Path("data")) -> Iterator[str]:
    """Yield lines about every row whose id or text holds `wanted`; raise UserError where there is none."""
    raw, dropped = read_table(data / "raw.parquet"), read_table(data / "dropped.parquet")
    held_out = pd.DataFrame(read_jsonl(data / "held_out.jsonl"), columns=raw.columns)
    arms = {arm: read_table(data / f"samples/{arm}.parquet") for arm in read_yaml(PARAMS)["arms"]}
    found = [*raw_rows(raw[matches(raw, wanted)], arms, read_table(data / "leaks.parquet"))]
    found += [f"{about(row)}\n  held out: in no arm" for row in held_out[matches(held_out, wanted)].to_dict("records")]
    gone = dropped.rename(columns={"text": "instruction"}).assign(output="")
    for row in gone[matches(gone, wanted)].to_dict("records"):
        found.append(f"{about(row)}\n  dropped by merge: {row['reason']}, row {row['line']} of {row['source']}")
    if not found:
        raise UserError(
            f"no row has the id {wanted!r} or holds it in its text; rows read are in data/raw.parquet and beside it"
        )
    yield from found[:MOST]
    if len(found) > MOST:
        yield f"... and {len(found) - MOST} more; give an id, or a longer piece"


def matches(rows: pd.DataFrame, wanted: str) -> pd.Series:
    text = rows["instruction"].str.contains(wanted, regex=False) | rows["output"].str.contains(wanted, regex=False)
    return (rows["id"] == wanted) | text


def raw_rows(rows: pd.DataFrame, arms: dict[str, pd.DataFrame], leaks: pd.DataFrame) -> Iterator[str]:
    for place, row in rows.iterrows():
        lines = [about(row.to_dict())]
        for leak in leaks[leaks["id"] == row["id"]].to_dict("records"):
            item = f"{leak['task']} {leak['split']} {leak['item']}"
            lines.append(f"  leak ({leak['kind']}): {item}, {leak['item_text']}{'' if leak['drop'] else '; kept'}")
        for arm, table in arms.items():
            one = table.loc[place]
            where = f"cell {one['length_group']}.{one['cluster']}"
            if pd.notna(one["rank"]):
                where += f", rank {int(one['rank'])} by perplexity {one['score']:.1f}"
            lines.append(f"  {arm}: {'IN' if one['selected'] else 'out'} ({one['reason']}; {where})")
        yield "\n".join(lines)


def about(row: dict[str, str]) -> str:
    text = " ".join(str(row["instruction"]).split())
    return f"{row['id'] or 'no id'} [{row['source']}] {text[:80]}{'...' if len(text) > 80 else ''}"


def main(words: list[str]) -> int:
    if len(words) != 1:
        print("usage: python -m tools.why ID, or a piece of the text in quotes", file=sys.stderr)
        return 2
    return print_lines(why(words[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
