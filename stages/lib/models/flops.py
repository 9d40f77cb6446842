"""The cost of curation and of training in floating-point operations: counted from sizes, not measured.

A forward pass multiplies every token by every weight matrix, one multiplication and one addition per weight, and in
every layer by the keys and values of its own row (Kaplan et al. 2020, arXiv 2001.08361, section 2.1; Hoffmann et al.
2022, arXiv 2203.15556, appendix F):

    forward(T, S) = 2 N T + 4 L D S        T tokens, S sum of the rows' squared lengths, L layers, D width
    training = 3 forward                   the backward pass costs twice the forward pass

N counts the output head, but not the table of input embeddings, which is looked up, not multiplied. An encoder's
position embeddings and pooler are in N too, although not every token is multiplied by them: 1 % of a RoBERTa-base. The
attention of a causal model counts in full, because it is computed in full. Softmax, norms and padding are left out.
"""

from typing import Any

import pandas as pd

from stages.lib.core.params import Section


class Size(Section):
    parameters: int
    """All parameters, each counted once."""
    multiplied: int
    """The parameters that every token is multiplied by: N."""
    layers: int
    width: int


def forward_flops(size: Size, tokens: float, squares: float) -> int:
    return round(2 * size.multiplied * tokens + 4 * size.layers * size.width * squares)


def selection_cost(predicted: pd.Series, scorer: Size, encoder: Size) -> dict[str, int]:
    """Return the cost of scoring and embedding every distinct instruction once; `predicted` has its predicted tokens.

    A row has one token more than are predicted. The encoder is assumed to split a text into as many tokens as the
    scorer does.
    """
    tokens = predicted + 1
    total, squares = int(tokens.sum()), int((tokens**2).sum())
    ppl, embed = forward_flops(scorer, total, squares), forward_flops(encoder, total, squares)
    return {"rows": len(tokens), "tokens": total, "ppl_flops": ppl, "embed_flops": embed, "flops": ppl + embed}


def training_flops(training: dict[str, Any], base: Size) -> int:
    """Return the cost of training all weights on what data/train/<arm>.json reports; every row has the mean length."""
    presented = training["epochs"] * (training["rows"] - training["rows_without_answer"])
    return 3 * forward_flops(base, training["tokens"], training["tokens"] ** 2 / presented)
