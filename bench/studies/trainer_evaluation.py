"""Seconds of Seq2SeqTrainer.predict with transformers' generate and with foredraft's.

    python -m foredraft.bench.studies.trainer_evaluation --data articles.jsonl --limit 500
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from foredraft.bench.harness.cases import describe
from foredraft.bench.harness.methods import load_peer
from foredraft.bench.harness.record import common_fields
from foredraft.bench.report.tables import Table, number
from foredraft.cli import options
from foredraft.cli.measuring import counting, finish, open_model, read_articles, run_script
from foredraft.engine.load import from_transformers


def evaluate(reference, generate, sources: list[list[int]], batch_size: int, tokens: int) -> tuple[float, list[list[int]]]:
    """Seconds of Seq2SeqTrainer.predict with `generate`, and its outputs without padding."""
    import torch
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.tensor([list(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": ids[:, :1]}

    reference.generate = generate
    with tempfile.TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            folder, predict_with_generate=True, per_device_eval_batch_size=batch_size, generation_max_length=tokens + 1,
            use_cpu=True, report_to=[], disable_tqdm=True)
        trainer = Seq2SeqTrainer(reference, arguments, data_collator=collate)
        began = time.perf_counter()
        found = trainer.predict([{"input_ids": source, "labels": source[:1]} for source in sources]).predictions
    return time.perf_counter() - began, [row[(row > 0)].tolist() for row in found]


def main(
    target: options.Target = None,
    data: options.Data = None,
    limit: options.Limit = 500,
    batch_size: options.BatchSize = 16,
    max_new_tokens: options.MaxNewTokens = 64,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
) -> None:
    """Evaluate the same articles with transformers, then with foredraft on the same model."""
    model = open_model(target, None)
    found = read_articles(data, model, limit)
    sources = [case.source for case in found]
    reference = load_peer(str(model.path), "float32", "cpu")
    theirs = reference.generate
    ours = from_transformers(reference, drafter="lookup").generate
    # the first call compiles
    evaluate(reference, ours, sources[:2], 2, 8)
    with counting(2) as advance:
        rows, outputs = [], []
        for name, generate in (("transformers", theirs), ("foredraft", ours)):
            seconds, written = evaluate(reference, generate, sources, batch_size, max_new_tokens)
            outputs.append(written)
            rows.append({"name": name, "seconds": seconds})
            advance()
    same = sum(a == b for a, b in zip(*outputs, strict=True))
    row = common_fields("trainer-evaluation", model=model, data=describe(data, found)) | {
        "batch_size": batch_size, "max_new_tokens": max_new_tokens, "methods": rows, "articles": len(sources), "same": same}
    finish([row], out, _tables(row), as_json)


def _tables(row: dict) -> Iterator[Table | str]:
    first = row["methods"][0]["seconds"]
    yield Table(f"Seq2SeqTrainer.predict, {row['articles']} articles", ("generate of", "seconds", "times faster"), [
        [one["name"], number(one["seconds"]), number(first / one["seconds"])] for one in row["methods"]])
    yield f"{row['same']} of {row['articles']} outputs are the same"


if __name__ == "__main__":
    run_script(main)
