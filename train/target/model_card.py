"""The model card of a target: its training, its metrics, and the requirements that it meets or misses."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import T5ForConditionalGeneration

from foredraft.atomic_write import write_atomic
from foredraft.engine.models.checkpoint import weights_hash
from foredraft.errors import UserError
from foredraft.train.data.pairs import END, load_pairs, read_pairs
from foredraft.train.history import command, machine, read_history
from foredraft.train.target.export import read_tokenizer
from foredraft.train.target.target_metrics import copied_share, repeats, rouge, source_losses, span_accuracy, words
from foredraft.train.target.train_target import TargetTrainingConfig

LONGEST = 128
LEAD_TOKENS = 56
FIGURES = "figures.json"

# Requirements for a target that benchmarks are run on: metric, description, bound, whether the bound is a minimum.
REQUIREMENTS = (
    ("shuffled_penalty", "increase of the loss in nats per token when the sources are shuffled", 0.5, True),
    ("span_top1", "top-1 accuracy of continuing random spans of the source", 0.85, True),
    ("repeated_4grams", "summaries with a repeated 4-gram of words", 0.05, False),
)

Generate = Callable[[list[list[int]]], list[list[int]]]


def lines_of(text: str) -> str:
    """The text with one sentence a line, as ROUGE-Lsum needs it."""
    return re.sub(r"(?<=[.!?])\s+", "\n", text.strip())


def engine_generate(folder: Path) -> Generate:
    """A function from sources to greedy summaries, both lists of tokens, by the engine without drafts."""
    from foredraft.engine.load import load

    model = load(folder, drafter=None)
    return lambda sources: model.generate(sources, max_new_tokens=LONGEST, draft_tokens=0).token_ids


def measure_target(
    folder: str | Path, data: str | Path, limit: int = 500, generate: Generate | None = None
) -> dict[str, float]:
    """The metrics of the card.

    Parameters
    ----------
    folder
        The target.
    data
        A pair file with text.
    limit
        Number of pairs.
    generate
        From sources to summaries, lists of tokens, with `</s>` where it was emitted; by default the engine, greedy.

    Returns
    -------
    dict
        Name to value; shares are 0 to 1, ROUGE is in percent, losses are in nats per token.
    """
    folder = Path(folder)
    tokenizer = read_tokenizer(folder)
    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    longest = model.config.n_positions
    pairs = load_pairs(data, tokenizer, longest, LONGEST).head(limit)
    texts = [text for _, text in zip(range(len(pairs)), read_pairs(data), strict=False)]
    sources = [pairs.source(i).tolist() for i in range(len(pairs))]
    leads = [lines_of(article).split("\n")[:3] for article, _ in texts]
    starts = tokenizer.decode_batch([source[:LEAD_TOKENS] for source in sources])
    references = [highlights for _, highlights in texts]

    own, shuffled = source_losses(model, pairs, len(pairs))
    figures = {
        "articles": len(pairs),
        "source_tokens": longest,
        "loss": own,
        "loss_shuffled": shuffled,
        "shuffled_penalty": shuffled - own,
        "span_top1": span_accuracy(model, pairs, len(pairs)),
    }
    started = time.perf_counter()
    outputs = (generate or engine_generate(folder))(sources)
    figures["generation_seconds"] = time.perf_counter() - started
    bodies = [[token for token in output if token != END] for output in outputs]
    summaries = tokenizer.decode_batch(bodies)
    shares = [copied_share(body, source) for body, source in zip(bodies, sources, strict=True)]
    figures |= _named("", rouge([lines_of(summary) for summary in summaries], references))
    figures |= _named("lead3_", rouge(["\n".join(lead) for lead in leads], references))
    figures |= _named("lead56_", rouge([lines_of(start) for start in starts], references))
    figures |= {
        "rougeL_to_lead3": rouge(summaries, [" ".join(lead) for lead in leads])["rougeL"],
        "repeated_4grams": float(np.mean([repeats(words(summary)) for summary in summaries])),
        "repeated_4pieces": float(np.mean([repeats(body) for body in bodies])),
        "human_repeated_4grams": float(np.mean([repeats(words(reference)) for reference in references])),
        "human_repeated_4pieces": float(np.mean([repeats(encoded.ids) for encoded in tokenizer.encode_batch(references)])),
        "ended": float(np.mean([END in output for output in outputs])),
        "copied_3grams": float(np.nanmean(shares)),
        "tokens": float(np.mean([len(body) for body in bodies])),
    }
    return {name: round(value, 4) for name, value in figures.items()}


def _named(prefix: str, scores: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}{kind}": score for kind, score in scores.items()}


def sample_summaries(
    folder: str | Path, texts: Sequence[Path], generate: Generate | None = None
) -> list[tuple[str, str]]:
    """(file name, summary) of text files."""
    tokenizer = read_tokenizer(folder)
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    encoded = [tokenizer.encode(path.read_text(encoding="utf-8")).ids[:-1] for path in texts]
    sources = [tokens[: config["n_positions"] - 1] + [END] for tokens in encoded]
    outputs = (generate or engine_generate(Path(folder)))(sources)
    return [(path.name, tokenizer.decode(output)) for path, output in zip(texts, outputs, strict=True)]


def write_card(
    folder: str | Path,
    data: str | Path,
    limit: int = 500,
    texts: Sequence[Path] = (),
    generate: Generate | None = None,
) -> dict[str, float]:
    """Measure the target in `folder` (measure_target) and write its README.md and figures.json; returns the metrics."""
    folder = Path(folder)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: contains no {name}; give the folder of a finished target with --target")
    figures = measure_target(folder, data, limit, generate)
    samples = sample_summaries(folder, texts, generate) if texts else []
    record = {"hash": weights_hash(folder), "data": Path(data).name, "machine": machine(), **figures}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_atomic(folder / FIGURES, json.dumps(record, indent=1) + "\n")
    write_atomic(folder / "README.md", card_text(record, config, read_history(folder), samples))
    return figures


def card_text(record: dict, config: dict, history: list[dict], samples: Sequence[tuple[str, str]]) -> str:
    """The card in Markdown."""
    sections = [_head(record, config), _requirements(record), _figures(record)]
    if history:
        sections.append(_making(history))
    if samples:
        body = "\n\n".join(f"**{name}**: {summary}" for name, summary in samples)
        sections.append(f"## Samples\nGreedy and unedited, of our own sample texts.\n\n{body}")
    return "\n\n".join(sections) + "\n"


def _head(record: dict, config: dict) -> str:
    tied = "tied" if config["tie_word_embeddings"] else "untied"
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: summarization
---
# A small T5 summariser

T5 ({config["feed_forward_proj"]}, {tied}, {config["num_layers"]}+{config["num_decoder_layers"]} layers, width \
{config["d_model"]}, {config["num_heads"]} heads of {config["d_kv"]}, feed-forward {config["d_ff"]}), the T5 \
vocabulary, {config["dtype"]} weights; sources of up to {config["n_positions"]} tokens. It exists to develop and \
measure speculative decoding on a target that reads and copies its source. It is not a product: its summaries are often \
wrong.

Input: plain text without a prefix. The decoder starts with `<pad>`.
Weights: `{record["hash"]}` (the beginning of the SHA-256 of tensor names and bytes)."""


def _requirements(record: dict) -> str:
    rows = ["| requirement | bound | measured | |", "|---|---|---|---|"]
    for name, wording, bound, minimum in REQUIREMENTS:
        met = record[name] >= bound if minimum else record[name] <= bound
        sign = ">=" if minimum else "<="
        rows.append(f"| {wording} | {sign} {bound} | {record[name]:.3f} | {'met' if met else '**missed**'} |")
    return "## Requirements\n" + "\n".join(rows)


def _figures(record: dict) -> str:
    rows = ["| | ROUGE-1 | ROUGE-2 | ROUGE-L | ROUGE-Lsum |", "|---|---|---|---|---|"]
    kinds = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    for label, prefix in (
        ("this target, greedy", ""),
        ("the article's first three sentences", "lead3_"),
        (f"the article's first {LEAD_TOKENS} tokens", "lead56_"),
    ):
        rows.append(f"| {label} | " + " | ".join(f"{record[prefix + kind]:.1f}" for kind in kinds) + " |")
    return f"""## Figures
On the first {record["articles"]} pairs of `{record["data"]}` (CNN/DailyMail, lower-cased; F1 in percent, stemmed,
against the highlights), greedy, up to {LONGEST} new tokens.

{chr(10).join(rows)}

- Loss: {record["loss"]:.2f} nats per token with the right source, {record["loss_shuffled"]:.2f} with another article's.
- ROUGE-L between its summaries and the article's first three sentences: {record["rougeL_to_lead3"]:.1f}.
- {record["copied_3grams"]:.0%} of the 3-grams of its summaries occur in the source.
- {record["repeated_4grams"]:.1%} of its summaries repeat four words in a row ({record["human_repeated_4grams"]:.1%} of the \
human ones do); {record["repeated_4pieces"]:.0%} repeat four of the tokenizer's pieces \
({record["human_repeated_4pieces"]:.0%} of the human ones), because a name is often four pieces.
- {record["ended"]:.1%} of the summaries end with the end token; {record["tokens"]:.0f} tokens on average."""


def _making(history: list[dict]) -> str:
    lines = ["## Training", "```"]
    lines += [command(run, TargetTrainingConfig) for run in history]
    lines.append("```")
    for run in history:
        first, last, of = run["first_step"], run["last_step"], run["machine"]
        lines.append(
            f"- Steps {first} to {last}: {(last - first) * run['recipe']['batch_size']:,} examples in "
            f"{run['seconds'] / 60:.0f} minutes on {of['device']} ({of['threads']} threads), torch {of['torch']}, "
            f"transformers {of['transformers']}."
        )
    train = history[-1]["data"][0]
    lines.append(f"- Data: {train['pairs']:,} pairs of `{train['file']}`, fingerprint `{train['fingerprint'][:16]}`.")
    return "\n".join(lines)
