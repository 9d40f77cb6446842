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


class Size(Section):
    parameters: int
    """All, each once."""
    multiplied: int
    """Those that every token is multiplied with: N."""
    layers: int
    width: int


def forward_flops(size: Size, tokens: float, squares: float) -> int:
    return round(2 * size.multiplied * tokens + 4 * size.layers * size.width * squares)


def selection_cost(predicted: pd.Series, scorer: Size, encoder: Size) -> dict[str, int]:
    """Return the cost of scoring and embedding instructions of so many predicted tokens, each once.

    A row has one token more than are predicted. The encoder is assumed to split a text as the scorer does.
    """
    tokens = predicted + 1
    total, squares = int(tokens.sum()), int((tokens**2).sum())
    ppl, embed = forward_flops(scorer, total, squares), forward_flops(encoder, total, squares)
    return {"rows": len(tokens), "tokens": total, "ppl_flops": ppl, "embed_flops": embed, "flops": ppl + embed}


def training_flops(training: dict[str, Any], base: Size) -> int:
    """Return the cost of training all weights, rows taken at their mean length."""
    presented = training["epochs"] * (training["rows"] - training["rows_without_answer"])
    return 3 * forward_flops(base, training["tokens"], training["tokens"] ** 2 / presented)
