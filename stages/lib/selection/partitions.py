"""The columns of a table that hold the cells of each partition.

`cluster` cuts the corpus once for each seed. The cut of the first seed, partition 0, is in the columns `cluster` and
`distance`, partition 1 in `cluster_1` and `distance_1`, and so on. `length_group` is the same in all of them.
"""

from collections.abc import Iterable
from itertools import count, takewhile

import pandas as pd
import pyarrow as pa

COLUMNS = ("cluster", "distance")


def named(partition: int) -> dict[str, str]:
    """Return the names of the partition's columns, by those of partition 0."""
    return {name: f"{name}_{partition}" if partition else name for name in COLUMNS}


def columns_of(partitions: int) -> list[str]:
    return [name for partition in range(partitions) for name in named(partition).values()]


def count_partitions(columns: Iterable[str]) -> int:
    """Return how many partitions a table with these columns has."""
    names = set(columns)
    return sum(1 for _ in takewhile(lambda partition: names.issuperset(named(partition).values()), count()))


def with_partitions(schema: pa.Schema, partitions: int) -> pa.Schema:
    """Return the schema of a table with one partition, with the columns of the others after those of the first."""
    place = schema.get_field_index(COLUMNS[-1]) + 1
    types = {column: schema.field(name).type for p in range(1, partitions) for name, column in named(p).items()}
    fields = [pa.field(column, kind) for column, kind in types.items()]
    return pa.schema([*list(schema)[:place], *fields, *list(schema)[place:]])


def take_partition(rows: pd.DataFrame, partition: int) -> pd.DataFrame:
    """Return the table as if this were its only partition: its cells in `cluster` and `distance`."""
    own = {name: rows[column] for name, column in named(partition).items()}
    others = columns_of(count_partitions(rows))[len(COLUMNS) :]
    return rows.drop(columns=others).assign(**own)
