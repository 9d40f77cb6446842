"""What the environment variables of a stage cost on a CPU: `python -m benchmarks.environment`.

The same work is timed in turns: with and without the variables that `portable: true` sets, on one thread; and with two
threads that sleep or spin while they wait for each other, on an idle machine and beside a busy process of low priority.
Libraries read these variables when they are imported, so each run is a process of its own, which prints the wall-clock
seconds of its work, without imports. Weights are random, lengths are real.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import machine, table
from stages.lib.core.portable import PORTABLE

ROOT = Path(__file__).parent.parent
SIZES = {"large": (4, 192, 4, 8192, 2048), "small": (1, 96, 2, 2048, 1024)}
"""Layers, width, heads, vocabulary, positions: the scorers of `recipes/local.yaml` and of the default."""
BUSY = "while True: pass"


def main(rounds: int = 3) -> None:
    rows = [portable_line(part, shape, rounds) for part in WORK for shape in SIZES]
    print(f"{table(rows)}\n")
    rows = [spinning_line(part, busy, rounds) for part in ("scoring", "training") for busy in (False, True)]
    print(f"{table(rows)}\n\n{machine()}")


def portable_line(part: str, shape: str, rounds: int) -> dict[str, Any]:
    ways = {"without": {}, "with portable": PORTABLE}
    return {"part": part, "model": shape} | in_turns(part, shape, 1, ways, rounds)


def spinning_line(part: str, busy: bool, rounds: int) -> dict[str, Any]:
    ways = {"asleep": {"OMP_WAIT_POLICY": "PASSIVE"}, "spinning": {"OMP_WAIT_POLICY": "ACTIVE"}}
    with busy_process() if busy else nullcontext():
        found = in_turns(part, "large", 2, ways, rounds)
    return {"part": part, "beside": "a busy process" if busy else "nothing"} | found


def in_turns(part: str, shape: str, threads: int, ways: dict[str, dict[str, str]], rounds: int) -> dict[str, Any]:
    """Return the median seconds of both ways, and the median of the rounds' ratios of the second to the first."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, variables in ways.items():
            took[name].append(seconds_of(part, shape, threads, variables))
    first, second = took.values()
    ratios = [b / a for a, b in zip(first, second, strict=True)]
    spread = {"lowest": min(ratios), "highest": max(ratios)}
    return {f"{name}, s": median(values) for name, values in took.items()} | {"ratio": median(ratios)} | spread


def seconds_of(part: str, shape: str, threads: int, variables: dict[str, str]) -> float:
    """Return the seconds that a new process needs for the work. It runs in a folder without a params.yaml."""
    plain = {name: value for name, value in os.environ.items() if name not in {*PORTABLE, "OMP_WAIT_POLICY"}}
    environment = plain | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-m", "benchmarks.environment", part, shape, str(threads)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


@contextmanager
def busy_process() -> Iterator[None]:
    command = ["nice", "-n", "19", sys.executable, "-c", BUSY]
    process = subprocess.Popen(command, start_new_session=True)  # Linux weighs nice only inside a session (autogroup)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def scoring(shape: str) -> Callable[[], object]:
    from benchmarks.lengths import token_ids
    from stages.lib.scoring.log_likelihood import nll_sums

    model = language_model(shape).eval()
    ids = [row for row in token_ids(100, model.config.vocab_size) if len(row) > 1]
    return lambda: nll_sums(model, ids, [1] * len(ids), 256, "perplexity, batches")


def embedding(shape: str) -> Callable[[], object]:
    from transformers import AutoModel, RobertaConfig

    from benchmarks.lengths import token_ids
    from benchmarks.models import Shape, configuration
    from stages.lib.scoring.embedding import unit_vectors

    config = configuration(RobertaConfig, Shape(*SIZES[shape]), type_vocab_size=1)
    model = AutoModel.from_config(config).eval()
    ids = token_ids(100, config.vocab_size)
    return lambda: unit_vectors(model, ids, "mean", 256)


def training(shape: str) -> Callable[[], object]:
    import torch

    model = language_model(shape).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(3, model.config.vocab_size, (8, 64))

    def steps() -> None:
        for _ in range(5):
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def language_model(shape: str) -> Any:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    from benchmarks.models import Shape, configuration

    return AutoModelForCausalLM.from_config(configuration(GPTNeoXConfig, Shape(*SIZES[shape])))


WORK = {"scoring": scoring, "embedding": embedding, "training": training}


def work(part: str, shape: str, threads: int) -> None:
    """Do the work twice, because the first time prepares kernels, and print the seconds of the second time."""
    import torch

    torch.manual_seed(1)
    torch.set_num_threads(threads)
    task = WORK[part](shape)
    task()
    started = time.perf_counter()
    task()
    print(time.perf_counter() - started)


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], int(sys.argv[3])) if sys.argv[1:] else main()
