"""What curation costs and what it saves, in floating-point operations: counted, not measured.

A forward pass multiplies every token by every weight matrix, a multiplication and an addition each, and by the keys
and values of its own row, in every layer (Kaplan et al. 2020, arXiv 2001.08361, section 2.1; Hoffmann et al. 2022,
arXiv 2203.15556, appendix F):

    forward(T, S) = 2 N T + 4 L D S        T tokens, S sum of the rows' squared lengths, L layers, D width
    training = 3 forward                   the backward pass counts twice

N are the parameters without the table of input embeddings, which is looked up, and with the output head; positions and
pooler of an encoder are in it, 1 % of a RoBERTa-base. A causal model's attention counts in full, for it is computed so.
Softmax, norms and padding are left out.
"""

from typing import Any

import pandas as pd

from stages.lib.core.params import Section

COVERING = ("spread", "highest", "middle", "steady")
"""Methods that want perplexities, embeddings and cells; the others cost nothing before training."""


class Size(Section):
    parameters: int
    """All, each once."""
    multiplied: int
    """Those that every token is multiplied with: N."""
    layers: int
    width: int


def forward_flops(size: Size, tokens: float, squares: float) -> int:
    return round(2 * size.multiplied * tokens + 4 * size.layers * size.width * squares)


def selection_cost(scores: pd.DataFrame, scorer: Size, encoder: Size) -> dict[str, int]:
    """Return what scoring and embedding every distinct instruction costs; `scores` has `text` and `tokens`.

    A row has a token more than are predicted. The encoder is taken to split a text as the scorer does.
    """
    tokens = scores.drop_duplicates("text")["tokens"] + 1
    total, squares = int(tokens.sum()), int((tokens**2).sum())
    ppl, embed = forward_flops(scorer, total, squares), forward_flops(encoder, total, squares)
    return {"rows": len(tokens), "tokens": total, "ppl_flops": ppl, "embed_flops": embed, "flops": ppl + embed}


def arm_costs(
    arms: dict[str, Any], methods: dict[str, str], control: str | None, unit: str, selection: int, base: Size
) -> dict[str, dict[str, int]]:
    """Return what every arm's selection and training cost, and what it saved beside training on every candidate.

    Only a budget of epochs makes a smaller arm train less: under any other, nothing is saved.
    """
    spent = {name: training_flops(arm["train"], base) for name, arm in arms.items()}
    full = full_flops(arms, spent, control) if control and unit == "epochs" else 0
    return {
        name: {
            "selection_flops": selection if methods[name] in COVERING else 0,
            "training_tokens": arms[name]["train"]["tokens"],
            "training_flops": flops,
            "saved_flops": full - flops if full else 0,
        }
        for name, flops in spent.items()
    }


def full_flops(arms: dict[str, Any], spent: dict[str, int], control: str) -> int:
    """Return what training on every candidate costs: as an arm did, or the control's cost for as many rows."""
    samples = {name: arm["sample"] for name, arm in arms.items()}
    for name, sample in samples.items():
        if sample["rows"] == sample["candidates"]:
            return spent[name]
    share: float = samples[control]["rows"] / samples[control]["candidates"]
    return round(spent[control] / share)


def training_flops(training: dict[str, Any], base: Size) -> int:
    """Return the cost of training all weights, rows taken at their mean length."""
    presented = training["epochs"] * (training["rows"] - training["rows_without_answer"])
    return 3 * forward_flops(base, training["tokens"], training["tokens"] ** 2 / presented)
