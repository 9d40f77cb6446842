"""Perplexity by the original and by us: `python -m benchmarks.scoring`.

The original (KoQuality, generate_perplexity.py) scores one row at a time in fp32, by
`model(input_ids, labels=input_ids).loss`. Rows have real lengths, weights are random. On a CPU the model is a GPT-NeoX
of 12.6 million parameters, with one thread. On a GPU it is one in polyglot-ko-1.3b's shape, and the table adds the
share of the FLOP/s that the GPU reaches in a plain matrix product.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedModel

from benchmarks.lengths import ALL, token_ids
from benchmarks.measure import Timed, alternate, machine, ratio, seconds, table
from benchmarks.models import DTYPES, Shape, configuration, random_models
from stages.lib.models.loading import start_torch
from stages.lib.scoring.batching import canonical_batches
from stages.lib.scoring.log_likelihood import nll_sums

Ids = list[list[int]]
LOOP = "one row, fp32"


class Ours(NamedTuple):
    dtype: str
    budget: int
    rows: int


SMALL = Shape(layers=6, width=320, heads=5, vocabulary=8192, positions=1024)
POLYGLOT = Shape(layers=24, width=2048, heads=16, vocabulary=30_080, positions=2048)  # EleutherAI/polyglot-ko-1.3b
ON_CPU = [Ours(dtype, budget, 6_000) for dtype in DTYPES for budget in (512, 1024, 4096)]
ON_GPU = [Ours("fp32", 16_384, 30_000), Ours("bf16", 16_384, ALL), Ours("bf16", 65_536, ALL)]


def main() -> None:
    on_gpu = start_torch(threads=1).startswith("cuda")
    rows = compare(POLYGLOT, 300, ON_GPU, 3) if on_gpu else compare(SMALL, 6_000, ON_CPU, 3)
    print(f"{table(rows)}\n\n{machine()}")


def compare(shape: Shape, looped: int, ways: list[Ours], rounds: int) -> list[dict[str, Any]]:
    """Return the table's lines: first the one-row loop over `looped` rows, then our ways."""
    ids = [row for row in token_ids(max(way.rows for way in ways), shape.vocabulary) if len(row) > 1]
    models = random_models(AutoModelForCausalLM, configuration(GPTNeoXConfig, shape))
    runs = {LOOP: partial(one_by_one, models["fp32"], ids[:looped])}
    for way in ways:
        ours(models[way.dtype], ids[:100], way.budget)  # the first run of a shape prepares its kernels
        name = f"ours, {way.dtype}, {way.budget:,} tokens"
        runs[name] = partial(ours, models[way.dtype], ids[: way.rows], way.budget)
    timed = alternate(runs, rounds)
    ceiling = matmul_rate() if torch.cuda.is_available() else None
    budgets = [None, *[way.budget for way in ways]]
    return [
        line(name, took, timed[LOOP], ids[: len(took.value)])
        | {
            "padding and dummies": budget and padding(ids[: len(took.value)], budget),
            "of the ceiling": ceiling and useful_flops(shape, ids[: len(took.value)]) / seconds(took) / ceiling,
        }
        for (name, took), budget in zip(timed.items(), budgets, strict=True)
    ]


def line(name: str, took: Timed, loop: Timed, ids: Ids) -> dict[str, Any]:
    """Return one line; tokens/s counts predicted tokens."""
    both = slice(min(len(took.value), len(loop.value)))
    return {
        "way": name,
        "rows": len(ids),
        "rows/s": len(ids) / seconds(took),
        "tokens/s": sum(len(row) - 1 for row in ids) / seconds(took),
        "ratio": ratio(loop, took) * len(ids) / len(loop.value),
        "peak GiB": took.peak,
        "largest difference, nats": float(np.abs(took.value[both] - loop.value[both]).max()),
        f"minutes for {ALL:,} rows": ALL / len(ids) * seconds(took) / 60,
    }


def one_by_one(model: PreTrainedModel, ids: Ids) -> NDArray[np.float64]:
    """Return the mean NLL of every row [N], as the original does."""
    with torch.inference_mode():
        rows = (torch.tensor([row], device=model.device) for row in ids)
        return np.array([model(row, labels=row).loss.item() for row in rows])


def ours(model: PreTrainedModel, ids: Ids, budget: int) -> NDArray[np.float64]:
    sums = nll_sums(model, ids, [1] * len(ids), budget, "perplexity, batches")
    return sums / np.array([len(row) - 1 for row in ids])


def padding(ids: Ids, budget: int) -> float:
    """Return the share of a run's tokens that are padding or in dummy rows."""
    lengths = [len(row) for row in ids]
    return 1 - sum(lengths) / sum(batch.height * batch.length for batch in canonical_batches(lengths, budget))


def useful_flops(shape: Shape, ids: Ids) -> int:
    """Return the FLOPs of the rows without padding: products with the weights, the head, and causal attention."""
    layers = 2 * 12 * shape.layers * shape.width**2
    head = 2 * shape.width * shape.vocabulary
    attention = 2 * shape.layers * shape.width
    return sum(layers * len(row) + head * (len(row) - 1) + attention * len(row) ** 2 for row in ids)


def matmul_rate(size: int = 8192, times: int = 50) -> float:
    """Return the FLOP/s of a bf16 product of two square matrices of this size."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    took = alternate({"product": lambda: [torch.mm(a, b).shape for _ in range(times)]}, rounds=3)["product"]
    return 2 * size**3 * times / seconds(took)


if __name__ == "__main__":
    main()
