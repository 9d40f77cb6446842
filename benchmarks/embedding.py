"""Embedding by the original, by sentence-transformers and by us: `python -m benchmarks.embedding`.

The original (KoQuality, generate_sentence_embedding_clustering.py) embeds one row at a time, padded to 512 tokens. It
also tracks gradients, which the loop here does not. Texts have real lengths, vectors are mean-pooled and of unit
length, weights are random. On a CPU the model is a RoBERTa of 12.1 million parameters, with one thread; on a GPU one in
RoBERTa-base's shape.
"""

import tempfile
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerFast, RobertaConfig

from benchmarks.lengths import ALL, MAX_TOKENS, token_ids
from benchmarks.measure import Timed, alternate, machine, ratio, seconds, table
from benchmarks.models import DTYPES, Shape, configuration, random_models
from benchmarks.scoring import Ours, padding
from stages.lib.models.loading import start_torch
from stages.lib.scoring.embedding import unit_vectors

LOOP = "one row padded to 512, fp32"
SMALL = Shape(layers=6, width=384, heads=6, vocabulary=2_720, positions=MAX_TOKENS + 2)
BASE = Shape(layers=12, width=768, heads=12, vocabulary=32_000, positions=MAX_TOKENS + 2)  # klue/roberta-base
ON_CPU = [Ours(dtype, budget, 6_000) for dtype in DTYPES for budget in (512, 1024, 4096)]
ON_GPU = [Ours("fp32", 16_384, ALL), Ours("bf16", 16_384, ALL), Ours("bf16", 65_536, ALL)]


def main() -> None:
    if start_torch(threads=1).startswith("cuda"):
        rows = compare(BASE, 300, ON_GPU, (128, 512), rounds=3)
    else:
        rows = compare(SMALL, 60, ON_CPU, (8, 32, 128), rounds=3)
    print(f"{table(rows)}\n\n{machine()}")


def compare(shape: Shape, looped: int, ways: list[Ours], sizes: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Return the table's lines: the loop over `looped` padded rows, sentence-transformers per batch size, our ways."""
    ids = token_ids(max(way.rows for way in ways), shape.vocabulary)
    texts = [" ".join(f"t{token}" for token in row[: MAX_TOKENS - 2]) for row in ids]
    tokenizer = make_tokenizer(shape.vocabulary)
    encoders = random_models(AutoModel, configuration(RobertaConfig, shape, type_vocab_size=1))
    library = sentence_transformer(encoders["fp32"], tokenizer)
    runs = {LOOP: partial(one_by_one, encoders["fp32"], tokenizer, texts[:looped])}
    for size in sizes:
        encode = partial(library.encode, batch_size=size, normalize_embeddings=True, show_progress_bar=False)
        runs[f"sentence-transformers, fp32, {size} rows"] = partial(encode, texts)
    for way in ways:
        ours(encoders[way.dtype], tokenizer, texts[:100], way.budget)
        name = f"ours, {way.dtype}, {way.budget:,} tokens"
        runs[name] = partial(ours, encoders[way.dtype], tokenizer, texts[: way.rows], way.budget)
    timed = alternate(runs, rounds)
    budgets = [None] * (1 + len(sizes)) + [way.budget for way in ways]
    best = min((took for name, took in timed.items() if name.startswith("sentence")), key=seconds)
    lengths = tokenizer(texts)["input_ids"]
    return [
        line(name, took, timed[LOOP], best)
        | {"tokens/s": sum(map(len, lengths[: len(took.value)])) / seconds(took)}
        | {"padding and dummies": budget and padding(lengths[: len(took.value)], budget)}
        for (name, took), budget in zip(timed.items(), budgets, strict=True)
    ]


def line(name: str, took: Timed, loop: Timed, best: Timed) -> dict[str, Any]:
    rows, both = len(took.value), slice(len(loop.value))
    return {
        "way": name,
        "rows": rows,
        "rows/s": rows / seconds(took),
        "ratio": ratio(loop, took) * rows / len(loop.value),
        "to the best of sentence-transformers": ratio(best, took) * rows / len(best.value),
        "peak GiB": took.peak,
        "largest 1 - cosine": 1 - float((took.value[both] * loop.value).sum(1, dtype=np.float64).min()),
        f"minutes for {ALL:,} rows": ALL / rows * seconds(took) / 60,
    }


def one_by_one(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> NDArray[np.float32]:
    """Return unit vectors [N, D] from rows padded to 512 tokens, as the original does."""
    vectors = []
    with torch.inference_mode():
        for text in texts:
            row = tokenizer(text, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            row = row.to(model.device)
            hidden_TD = model(**row).last_hidden_state[0]
            mask_T1 = row["attention_mask"][0].unsqueeze(1)
            vectors.append(F.normalize((hidden_TD * mask_T1).sum(0) / mask_T1.sum(), dim=0).cpu().numpy())
    return np.stack(vectors)


def ours(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str], budget: int
) -> NDArray[np.float32]:
    ids = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return unit_vectors(model, ids, "mean", budget)


def sentence_transformer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Return the same model in sentence-transformers, mean-pooled."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        body = Transformer(folder, max_seq_length=MAX_TOKENS)
    return SentenceTransformer(modules=[body, Pooling(model.config.hidden_size, "mean")], device=str(model.device))


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the words t3, t4, ... that adds a start and an end token."""
    entries = ["<s>", "<pad>", "</s>", *[f"t{token}" for token in range(3, vocabulary)]]
    words = Tokenizer(models.WordLevel({entry: token for token, entry in enumerate(entries)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", pad_token="<pad>", eos_token="</s>")


if __name__ == "__main__":
    main()
