"""Print the difference that a benchmark can detect: `python -m tools.power DISCORDANCE SPREAD [N ...]`.

DISCORDANCE is the share of items that one of two runs answers correctly and the other does not. SPREAD is the standard
deviation of a run's mean accuracy over seeds. N are the numbers of items of the tasks; by default, those of the
benchmark in data/ or in params.yaml.

The command prints the minimum detectable effect in mean accuracy by the number of runs: the smallest difference that is
found in 80 of 100 repetitions. Start with `python -m tools.power 0.1 0.01`. Once arms have replicates, take the spread
from `run_sd` in metrics/summary.json.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from stages.lib.core.artifacts import read_jsonl
from stages.lib.core.errors import UserError
from stages.lib.core.params import PARAMS, read_yaml
from stages.lib.evaluation.tasks import find_task
from stages.lib.statistics import power
from tools.output import print_lines

RUNS = (2, 3, 5, 10)


def mde_lines(discordance: float, spread: float, items: list[int]) -> Iterator[str]:
    """Yield the MDE of two models, and of two methods with several runs each; `items` defaults to the benchmark's."""
    items = items or benchmark_items()
    yield f"discordance {discordance}, spread {spread}, {len(items)} tasks of {', '.join(map(str, items))} items"
    yield f"{'two models, over items only':33} {power.mde_between_models(discordance, items):.4f}"
    for runs in RUNS:
        name = f"two methods of {runs} runs each"
        yield f"{name:33} {power.mde_between_methods(discordance, spread, items, runs):.4f}"


def benchmark_items() -> list[int]:
    """Return the number of evaluated items of every task. Raises UserError if the benchmark has not been fetched."""
    params = read_yaml(PARAMS)
    inputs = Path(str(params["fetch_benchmark"]["inputs"]))
    names = [f"{task.name}/{task.asked}.jsonl" for task in map(find_task, params["evaluate"]["tasks"])]
    for folder in (Path("data/benchmark"), inputs):
        if all((folder / name).is_file() for name in names):
            return [len(read_jsonl(folder / name)) for name in names]
    raise UserError(f"no {names[0]} in data/benchmark or {inputs}; run `dvc repro fetch_benchmark`, or give N")


def main(words: list[str]) -> int:
    try:
        discordance, spread, *items = (float(word) for word in words)
        if not (0 < discordance <= 1 and 0 <= spread < 1 and all(n >= 2 and n.is_integer() for n in items)):
            raise ValueError
    except ValueError:
        print("usage: python -m tools.power DISCORDANCE SPREAD [N ...], shares from 0 to 1", file=sys.stderr)
        return 2
    return print_lines(mde_lines(discordance, spread, [int(n) for n in items]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
