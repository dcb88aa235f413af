"""Distance of a decoder with rounded weights from fp32: its distributions, its greedy choices, its summaries.

    python -m foredraft.bench.studies.weights --target MODEL --data articles.jsonl --limit 100
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from foredraft.bench.harness.bench_run import Rouge
from foredraft.bench.harness.cases import Case, describe
from foredraft.bench.harness.measure import until_end
from foredraft.bench.harness.record import common_fields
from foredraft.bench.report.tables import Table
from foredraft.cli import options
from foredraft.cli.measuring import counting, finish, read_articles, run_script
from foredraft.cli.output import announce_compilation
from foredraft.engine.generate import Model
from foredraft.engine.load import load
from foredraft.errors import UserError

EXACT = "fp32"


def compare_weights(folder: str | Path | None, storages: Sequence[str], cases_of: Callable[[Model], list[Case]],
                    max_new_tokens: int, on_case: Callable[[], None] = lambda: None) -> tuple[Model, dict[str, dict]]:
    """The fp32 model, and the figures of each storage against fp32, which is measured first.

    Over every prefix of fp32's greedy output: `kl_nats`, E[KL(p_fp32 || p)]; `logit_mean` and `logit_max`, the distance of
    the logits with their mean over the vocabulary removed; `argmax`, how often both choose the same token. Of the summaries:
    ROUGE in percent against the human ones (where there are any) and against fp32's.
    """
    exact = load(folder, drafter=None, weights=EXACT)
    if exact.tokenizer is None:
        raise UserError(f"{exact.path}: ROUGE needs texts; put tokenizer.json beside config.json")
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
    """Logits [n, V] before each of the n tokens of `output`, in one pass (teacher forcing)."""
    target, n = model.target, len(output)
    target.reserve(1, 1, n, len(source))
    target.admit([0], [torch.tensor(list(source))])
    tokens = torch.tensor([[target.start_token, *output[:-1]]])
    logits = target.logits(target.decode(tokens, torch.arange(n)[None].contiguous()))[0].clone()
    target.release([0])
    return logits


def distribution_distance(p: torch.Tensor, q: torch.Tensor) -> dict[str, float]:
    """Sums over the prefixes of logits [n, V]: KL(p || q) in nats, mean absolute distance, equal choices; the largest
    distance."""
    log_p, log_q = torch.log_softmax(p.double(), -1), torch.log_softmax(q.double(), -1)
    apart = ((p - p.mean(-1, keepdim=True)) - (q - q.mean(-1, keepdim=True))).abs()
    return {"kl": float((log_p.exp() * (log_p - log_q)).sum()), "mean": float(apart.mean(-1).sum()),
            "max": float(apart.max()), "same": int((p.argmax(-1) == q.argmax(-1)).sum()), "prefixes": len(p)}


def summary_figures(model: Model, cases: Sequence[Case], outputs: Sequence[list[int]],
                    exact: Sequence[list[int]]) -> dict:
    """ROUGE against the human summaries (None without any) and fp32's summaries; how many summaries equal fp32's."""
    human = Rouge(model.tokenizer, [case.reference for case in cases])(outputs)
    texts = model.tokenizer.decode_batch([list(tokens) for tokens in exact], skip_special_tokens=True)
    if (to_exact := Rouge(model.tokenizer, texts)(outputs)) is None:
        raise UserError("ROUGE needs rouge-score; pip install 'foredraft[bench]'")
    return {"rouge": human, "rouge_to_fp32": to_exact,
            "same_summaries": sum(a == b for a, b in zip(outputs, exact, strict=True)), "summaries": len(cases)}


HEADS = ("weights", "decoder MB", "KL, nats", "same choice", "logits: mean", "logits: largest", "ROUGE-1", "ROUGE-2",
         "ROUGE-Lsum", "ROUGE-L to fp32", "same summaries")


def main(
    target: options.Target = None,
    data: options.Data = None,
    limit: options.Limit = None,
    weights: Annotated[str, typer.Option(help="Storages compared with fp32, separated by commas.")] = "bf16,int8",
    max_new_tokens: options.MaxNewTokens = 128,
    max_source: options.MaxSource = None,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
    wide: options.Wide = False,
) -> None:
    """Compare bf16 and int8 weights with fp32: distributions, greedy choices, ROUGE."""
    announce_compilation()
    articles: list[Case] = []

    def cases_of(model) -> list[Case]:
        articles.extend(read_articles(data, model, limit, max_source))
        return articles

    with counting() as advance:
        model, found = compare_weights(target, weights.split(","), cases_of, max_new_tokens, advance)
    row = common_fields("weights", model=model, data=describe(data, articles)) | {
        "max_new_tokens": max_new_tokens, "weights": found}
    of = row["target"]
    finish([row], out, [Table(
        f"{of['model']} ({of['hash'][:12]}) on {len(articles)} articles, greedy", HEADS,
        [_line(stored, figures) for stored, figures in found.items()], ("ROUGE-1", "ROUGE-2", "same summaries"),
        "distributions: over every prefix of fp32's output; ROUGE: F1 in percent")], as_json, wide)


def _line(stored: str, figures: dict) -> list[str]:
    apart = [f"{figures[name]:{form}}" if name in figures else "-" for name, form in
             (("kl_nats", ".2g"), ("argmax", ".2%"), ("logit_mean", ".2g"), ("logit_max", ".2g"))]
    human = [f"{figures['rouge'][kind]:.2f}" if figures["rouge"] else "-" for kind in ("rouge1", "rouge2", "rougeLsum")]
    return [stored, f"{figures['bytes'] / 1e6:.1f}", *apart, *human, f"{figures['rouge_to_fp32']['rougeL']:.1f}",
            f"{figures['same_summaries']} of {figures['summaries']}"]


if __name__ == "__main__":
    run_script(main)
