"""How far a decoder with rounded weights is from the same one in fp32: its logits, its choices, its summaries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from foredraft.bench.harness.cases import Case
from foredraft.bench.harness.measure import until_end
from foredraft.engine.generate import Model, load
from foredraft.errors import UserError

EXACT = "fp32"


def compare_weights(folder: str | Path | None, storages: Sequence[str], cases_of: Callable[[Model], list[Case]],
                    max_new_tokens: int, on_case: Callable[[], None] = lambda: None) -> tuple[Model, dict[str, dict]]:
    """Figures of each storage against fp32, which is always measured first; and the fp32 model.

    Distributions: over every prefix of fp32's own greedy output. `kl_nats`: E[KL(p_fp32 || p)]; `logit_mean`, `logit_max`: the
    distance of logits after the mean over the vocabulary is taken off, which no distribution sees; `argmax`: how often both
    choose the same. Summaries: ROUGE in percent against the human ones (where there are any) and against fp32's.
    """
    exact = load(folder, drafter=None, weights=EXACT)
    if exact.tokenizer is None:
        raise UserError(f"{exact.path}: tokenizer.json is missing, so ROUGE cannot be taken; put it beside config.json")
    cases = cases_of(exact)
    own: list[list[int]] = []
    found = {}
    for stored in dict.fromkeys([EXACT, *storages]):
        model = exact if stored == EXACT else load(folder, drafter=None, weights=stored)
        outputs, sums = [], np.zeros(4)
        largest = 0.0
        for number, case in enumerate(cases):
            ids = model.generate([list(case.source)], max_new_tokens=max_new_tokens, draft_tokens=0).token_ids[0]
            outputs.append(until_end(ids, model.target.end_token, max_new_tokens))
            if stored == EXACT:
                own.append(outputs[-1])
            else:
                one = distribution_distance(forced_logits(exact, case.source, own[number]),
                                   forced_logits(model, case.source, own[number]))
                sums += (one["kl"], one["mean"], one["same"], one["prefixes"])
                largest = max(largest, one["max"])
            on_case()
        figures = {"bytes": decoder_bytes(model), "tokens": sum(map(len, outputs))}
        if stored != EXACT:
            figures |= {"kl_nats": sums[0] / sums[3], "logit_mean": sums[1] / sums[3], "logit_max": largest,
                        "argmax": sums[2] / sums[3]}
        found[stored] = figures | summary_figures(model, cases, outputs, own)
    return exact, found


def decoder_bytes(model: Model) -> int:
    w = model.target.weights
    return sum(a.nbytes for a in (w.qkv, w.self_out, w.cross_q, w.cross_out, w.ff_in, w.ff_out, w.head))


@torch.inference_mode()
def forced_logits(model: Model, source: Sequence[int], output: Sequence[int]) -> torch.Tensor:
    """Logits [n, V] before each of the n ids of `output`, read in one pass (teacher forcing)."""
    target, n = model.target, len(output)
    target.reserve(1, 1, n, len(source))
    target.admit([0], [torch.tensor(list(source))])
    tokens = torch.tensor([[target.start_token, *output[:-1]]])
    logits = target.logits(target.decode(tokens, torch.arange(n)[None].contiguous()))[0].clone()
    target.release([0])
    return logits


def distribution_distance(p: torch.Tensor, q: torch.Tensor) -> dict[str, float]:
    """Sums over the rows of logits [n, V]: KL(p || q) in nats, mean absolute distance, equal choices; and the largest."""
    log_p, log_q = torch.log_softmax(p.double(), -1), torch.log_softmax(q.double(), -1)
    apart = ((p - p.mean(-1, keepdim=True)) - (q - q.mean(-1, keepdim=True))).abs()
    return {"kl": float((log_p.exp() * (log_p - log_q)).sum()), "mean": float(apart.mean(-1).sum()),
            "max": float(apart.max()), "same": int((p.argmax(-1) == q.argmax(-1)).sum()), "prefixes": len(p)}


def summary_figures(model: Model, cases: Sequence[Case], outputs: Sequence[list[int]],
                    exact: Sequence[list[int]]) -> dict:
    """ROUGE against the human summaries (None without any) and against fp32's summaries, and how many are fp32's own."""
    try:
        from foredraft.train.target.target_metrics import rouge
    except ImportError:
        raise UserError("ROUGE needs rouge-score; pip install 'foredraft[bench]'") from None

    def texts(rows: Sequence[list[int]]) -> list[str]:
        return model.tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens=True)

    references = [case.reference for case in cases]
    human = None if None in references else rouge(texts(outputs), references)
    return {"rouge": human, "rouge_to_fp32": rouge(texts(outputs), texts(exact)),
            "same_summaries": sum(a == b for a, b in zip(outputs, exact, strict=True)), "summaries": len(cases)}
