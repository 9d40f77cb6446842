"""The cost of curation and of training in floating-point operations: counted from sizes, not measured.

A forward pass multiplies every token by every weight matrix, one multiplication and one addition per weight, and in
every layer by the keys and values of its sequence (Kaplan et al. 2020, arXiv 2001.08361, section 2.1; Hoffmann et al.
2022, arXiv 2203.15556, appendix F):

    forward(T, P) = 2 N T + 4 L D P        T tokens, P token pairs, L layers, D width
    training = 3 forward                   the backward pass costs twice the forward pass
    preference tuning = 4 forward          the reference model computes another forward pass

P is the sum of the squared lengths of the sequences that attention is computed over. A sequence is a row; or, if rows
are packed, all rows of a forward pass, because a mask only hides what has been computed. Flash attention computes
nothing between packed rows.

N counts the output head, but not the table of input embeddings, which is looked up, not multiplied. An encoder's
position embeddings and pooler are in N too, although not every token is multiplied by them: 1 % of a RoBERTa-base. The
attention of a causal model counts in full, because it is computed in full. Softmax, norms, padding and the second
forward pass of `gradient_checkpointing` are left out.
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


def forward_flops(size: Size, tokens: int, pairs: int) -> int:
    return 2 * size.multiplied * tokens + 4 * size.layers * size.width * pairs


def selection_cost(predicted: pd.Series, scorer: Size, encoder: Size) -> dict[str, int]:
    """Return the cost of scoring and embedding every distinct instruction once; `predicted` has its predicted tokens.

    A row has one token more than are predicted. The encoder is assumed to split a text into as many tokens as the
    scorer does.
    """
    tokens = predicted + 1
    total, pairs = int(tokens.sum()), int((tokens**2).sum())
    ppl, embed = forward_flops(scorer, total, pairs), forward_flops(encoder, total, pairs)
    return {"rows": len(tokens), "tokens": total, "ppl_flops": ppl, "embed_flops": embed, "flops": ppl + embed}


def training_flops(training: dict[str, Any], base: Size) -> int:
    """Return the cost of training all weights on the tokens that data/train/<arm>.json reports."""
    return 3 * forward_flops(base, training["tokens"], training["token_pairs"])


def preference_flops(training: dict[str, Any], base: Size) -> int:
    """Return the cost of preference tuning, as if all weights were trained; its tokens are those of both answers."""
    return 4 * forward_flops(base, training["tokens"], training["token_pairs"])
