"""Train the toy models: a tokenizer, a causal LM, an encoder.

B rows, T tokens, D width
"""

import logging
from collections.abc import Callable
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from stages.lib.core.errors import UserError
from stages.lib.core.progress import progress
from stages.lib.models.toy import Small, neighbouring_spans, read_text

log = logging.getLogger("stages")
END, PAD, START = "<|endoftext|>", "<|pad|>", "<|start|>"
TEMPERATURE = 0.05
"""Of the softmax over cosines."""


def train_toy(role: str, folder: Path, settings: Small, out: Path) -> None:
    """Train the model of a role (an encoder for `encoder`, otherwise a causal LM); save it and its tokenizer."""
    documents, pairs = read_text(folder)
    texts = documents + [f"{instruction}\n{output}" for instruction, output in pairs]
    torch.manual_seed(settings.seed)
    tokenizer = make_tokenizer(texts, settings)
    if role == "encoder":
        model = train_encoder(tokenizer, pairs + neighbouring_spans(documents, settings.seed), settings)
    else:
        tokenizer.backend_tokenizer.post_processor = None  # add no start and end tokens to a causal LM's text
        model = train_lm(tokenizer, texts, settings)
    log.info("%s: %s parameters, %s entries", role, f"{model.num_parameters():,}", f"{len(tokenizer):,}")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def make_tokenizer(texts: list[str], settings: Small) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[END, PAD, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.RobertaProcessing((END, 0), (START, 2), trim_offsets=False, add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=START, cls_token=START, eos_token=END, sep_token=END, pad_token=PAD
    )


def train_lm(tokenizer: PreTrainedTokenizerFast, texts: list[str], settings: Small) -> PreTrainedModel:
    documents = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    stream = torch.tensor(list(chain(*documents)), dtype=torch.long)
    if len(stream) <= settings.context:
        raise UserError(f"the text has {len(stream)} tokens; `context` ({settings.context}) needs more")
    last = len(stream) - settings.context  # no row begins here or later
    begins = torch.tensor([begin for begin in accumulate(map(len, documents[:-1]), initial=0) if begin < last])
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            **common_config(tokenizer, settings),
            intermediate_size=4 * settings.width,
            use_parallel_residual=True,
            tie_word_embeddings=False,
        )
    )

    def loss() -> torch.Tensor:
        drawn = torch.randint(len(begins) if settings.whole else last, (settings.batch,))
        starts = begins[drawn] if settings.whole else drawn
        ids_BT = torch.stack([stream[start : start + settings.context] for start in starts])
        logits = model(input_ids=ids_BT[:, :-1].to(model.device), use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), ids_BT[:, 1:].flatten().to(model.device))

    return optimise(model, loss, settings)


def train_encoder(tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]], settings: Small) -> PreTrainedModel:
    if len(pairs) < settings.batch:
        raise UserError(f"{len(pairs)} pairs to train an encoder on; `batch` ({settings.batch}) needs more")
    left, right = (
        tokenizer([pair[side] for pair in pairs], truncation=True, max_length=settings.context)["input_ids"]
        for side in (0, 1)
    )
    config = common_config(tokenizer, settings) | {
        "max_position_embeddings": settings.positions + 2
    }  # RoBERTa's start at 2
    model = RobertaModel(
        RobertaConfig(
            **config, intermediate_size=4 * settings.width, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
    )

    def vectors(ids: list[list[int]]) -> torch.Tensor:
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)
        hidden_BTD = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        return F.normalize((hidden_BTD * mask).sum(1) / mask.sum(1), dim=-1)

    def loss() -> torch.Tensor:
        rows = torch.randperm(len(pairs))[: settings.batch].tolist()
        similarity = vectors([left[row] for row in rows]) @ vectors([right[row] for row in rows]).T / TEMPERATURE
        own = torch.arange(len(rows), device=similarity.device)
        return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2

    return optimise(model, loss, settings)


def common_config(tokenizer: PreTrainedTokenizerFast, settings: Small) -> dict[str, Any]:
    """Return what both configs share; with the ids, because otherwise generation_config would contain invented ones."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": settings.width,
        "initializer_range": settings.init,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "max_position_embeddings": settings.positions,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def optimise(model: PreTrainedModel, loss: Callable[[], torch.Tensor], settings: Small) -> PreTrainedModel:
    """Train for a fixed number of AdamW steps; a time limit would not be reproducible."""
    model.to("cuda" if torch.cuda.is_available() else "cpu").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)

    # not transformers' get_linear_schedule_with_warmup: its first step has rate 0, ours 1 / warmup of the full rate
    def rate_factor(step: int) -> float:
        rise = (step + 1) / max(1, settings.warmup)
        return min(rise, (settings.steps - step) / max(1, settings.steps - settings.warmup))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor)
    value = torch.zeros(())
    for _ in progress(range(settings.steps), settings.steps, "small model, steps"):
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    log.info("small model: loss %.3f after %d steps", value.item(), settings.steps)
    return model.cpu().eval()
