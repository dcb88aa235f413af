"""Spec-Bench (Xia et al. 2024): answers in its format, which its scripts read, and its summary figures."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foredraft.atomic_write import write_atomic
from foredraft.bench.harness.measure import Sample, Samples
from foredraft.engine.drafters.registry import PROPOSERS

CATEGORY = "summarization"
TARGET = PROPOSERS.index("target")


def accept_lengths(sample: Sample) -> list[int]:
    """Tokens emitted by each step of one request. A step ends with the target's own token, or with the output.

    One token a step for a method without proposers, which does not speculate.
    """
    if sample.proposers is None:
        return [1] * sample.tokens
    lengths, length = [], 0
    for proposer in sample.proposers[0][: sample.tokens]:
        length += 1
        if proposer == TARGET:
            lengths.append(length)
            length = 0
    return lengths + [length] * (length > 0)


def answers(method: str, passed: Sequence[Sample], tokenizer, names: Sequence[str]) -> list[dict]:
    """A line for each article of one pass, whose samples are `passed`, one article each."""
    lines = []
    for number, (sample, name) in enumerate(zip(passed, names, strict=True), 1):
        lengths = accept_lengths(sample)
        text = tokenizer.decode(sample.outputs[0], skip_special_tokens=True)
        answer_id = hashlib.sha256(f"{method}\0{name}".encode()).hexdigest()[:22]
        choice = {"index": 0, "turns": [text], "decoding_steps": [len(lengths)], "new_tokens": [sample.tokens],
                  "wall_time": [sample.seconds], "accept_lengths": lengths}
        lines.append({"question_id": number, "category": CATEGORY, "answer_id": answer_id, "model_id": method,
                      "choices": [choice], "tstamp": time.time()})
    return lines


def write(folder: Path, method: str, samples: Samples, tokenizer, names: Sequence[str]) -> None:
    """Write FOLDER/run_1/METHOD.jsonl and so on, one file for each pass: Spec-Bench's model_answer."""
    for number, passed in enumerate(samples, 1):
        path = folder / f"run_{number}" / f"{method.replace('/', '_').replace(':', '-')}.jsonl"
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in answers(method, passed, tokenizer, names)))


def summary(samples: Samples, plain: Samples, has_steps: bool = True) -> dict[str, float | None]:
    """Spec-Bench's figures, means and sample deviations over the passes.

    Mean accepted tokens of a step (None if `has_steps` is false: the method does not report its steps); tokens a second, the
    mean over articles of each article's speed, encoding included; the ratio of that to plain decoding's.
    """
    def speeds(passed: Sequence[Sample]) -> float:
        return float(np.mean([sample.tokens / sample.seconds for sample in passed]))

    ours, theirs = np.array([speeds(one) for one in samples]), np.array([speeds(one) for one in plain])
    lengths = [length for one in samples for sample in one for length in accept_lengths(sample)]

    def deviation(values: np.ndarray) -> float:
        return float(values.std(ddof=1)) if len(values) > 1 else 0.0

    return {"mean_accepted_tokens": float(np.mean(lengths)) if has_steps else None, "tokens_per_second": float(ours.mean()),
            "tokens_per_second_deviation": deviation(ours), "speed_up": float((ours / theirs).mean()),
            "speed_up_deviation": deviation(ours / theirs)}
