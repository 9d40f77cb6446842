"""The beginning-of-text token (BOS), where the tokenizer adds it by itself: Llama's and Gemma's do, GPT-NeoX's do not.

It begins every prompt: in training, in held-out loss, in the benchmark, and in use by the chat template. `ppl` has its
own param for it (KoQuality scores without).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def added_bos(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return [BOS] if the tokenizer begins every text with it, otherwise []."""
    begins = [tokenizer.bos_token_id]
    return begins if tokenizer("a")["input_ids"][:1] == begins else []
