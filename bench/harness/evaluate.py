"""What a drafter is worth: how often it is right, what it costs, the speed-up that this predicts, and the one measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from foredraft.bench.harness import machine, measure
from foredraft.bench.harness.alpha import interval, overlaps
from foredraft.bench.harness.methods import drafting_method
from foredraft.bench.harness.settings import Settings
from foredraft.engine.drafters.trained import KINDS, kind_of
from foredraft.errors import UserError

PLAIN = "plain"
# The drafter that needs no checkpoint, and those whose checkpoint is a file: a table, a skip set.
LOOKUP, NGRAM, SELF = "lookup", "ngram", "self"
TREE = "tree:"


def drafter_spec(ckpt_path: Path | None, drafter: str | None) -> tuple[str, str]:
    """(what foredraft.load takes as a drafter, its kind); the kind is told from the checkpoint.

    UserError: no checkpoint and no name, a path that is not there, a checkpoint of another kind than `drafter`.
    """
    if ckpt_path is None and drafter is not None and drafter.startswith(TREE):
        return drafter, drafter
    known = (LOOKUP, NGRAM, SELF, *KINDS)
    if drafter is not None and drafter not in known:
        raise UserError(f"--drafter {drafter} is not known; one of {', '.join(known)}")
    if ckpt_path is None:
        if drafter not in (LOOKUP, NGRAM):
            raise UserError("name what to evaluate: --ckpt_path PATH, or --drafter lookup, ngram or tree:SHAPE:NAME")
        return drafter, drafter
    if not ckpt_path.exists():
        raise UserError(f"{ckpt_path}: no such checkpoint; give a trained drafter's folder, an n-gram table or a skip file")
    kind = kind_of(ckpt_path) if ckpt_path.is_dir() else SELF if ckpt_path.suffix == ".json" else NGRAM
    if drafter not in (None, kind):
        raise UserError(f"{ckpt_path}: is a drafter of kind {kind}, not {drafter}; leave --drafter out or name its kind")
    return (str(ckpt_path) if ckpt_path.is_dir() else f"{kind}:{ckpt_path}"), kind


def evaluate(models: Mapping[str, object], sources: Sequence[Sequence[int]], settings: Settings,
             draft_tokens: Mapping[str, Sequence[int]], on_batch: Callable[[], None] = lambda: None,
             big_little: tuple[float, float] | None = None) -> dict[str, dict]:
    """All figures of drafters on one target at one temperature, by name; `settings.draft_tokens` is not read.

    `models` share their target and differ in their drafters; `draft_tokens` are the K of each. All of them and plain
    decoding take turns. alpha: alpha_tv with its 95 % interval over articles. rows: one for every K, with the drafting
    figures of measure.acceptance; `c`, the seconds of a drafted id, and `v`, those of a round without its drafts, both
    over the seconds of a plain step; `predicted`, the decode speed-up of Leviathan et al. 2023 (Theorem 3.8 with v in the
    place of 1) from alpha, c and v, None of a tree; `speed_up` of decoding and `speed_up_whole` with encoding; `differing`:
    articles whose greedy tokens are not plain decoding's (then no speed-up is told). big_little: as DecodeConfig's, LOSSY;
    rows then say so under `lossy`, and tell neither a prediction nor a speed-up.
    """
    target = next(iter(models.values())).target
    methods = _methods(models, settings, draft_tokens, big_little)
    samples = measure.measure(methods, sources, settings, end_token=target.end_token, on_batch=on_batch)
    plain = samples[PLAIN]
    outputs = [row for sample in plain[0] for row in sample.rows]
    step = _step_seconds(plain)
    found = {}
    drafters = [model.drafter for model in models.values()]
    every = overlaps(target, drafters, sources, outputs, settings.temperature, on_batch=on_batch)
    for name, sums in zip(models, every, strict=True):
        low, high = interval(sums)
        covered, prefixes = sums.sum(0).tolist()
        alpha = {"value": covered / prefixes, "low": low, "high": high, "prefixes": int(prefixes)}
        rows = [_row(K, plain, samples[_method(name, K)], alpha["value"], step, settings) for K in draft_tokens[name]]
        if name.startswith(TREE):
            for row in rows:
                row["predicted"] = None
        found[name] = {"temperature": settings.temperature, "alpha": alpha, "plain_step_ms": step * 1e3, "rows": rows}
    return found


def fastest(models: Mapping[str, object], sources: Sequence[Sequence[int]], settings: Settings,
            draft_tokens: Sequence[int]) -> dict[str, int]:
    """The K of each drafter that decodes most tokens a second on `sources`: choose it on other articles than it is
    reported on."""
    end = next(iter(models.values())).target.end_token
    methods = _methods(models, settings, {name: draft_tokens for name in models})
    samples = measure.measure(methods, sources, settings, end_token=end)
    return {name: max(draft_tokens, key=lambda K, name=name: measure.tokens_per_second(
        samples[_method(name, K)], with_encoding=False)["median"]) for name in models}


def common_fields(model, data: dict, settings: Settings) -> dict:
    """What a row of figures says besides them; `data` is cases.describe()."""
    known = model.describe()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine.describe(settings.device),
        "target": {name: known[name] for name in ("model", "hash", "weights", "parameters", "threads")},
        "data": data, "batch_size": settings.batch_size, "max_new_tokens": settings.max_new_tokens, "seed": settings.seed,
        "repeats": settings.repeats}


def _methods(models: Mapping[str, object], settings: Settings, draft_tokens: Mapping[str, Sequence[int]],
             big_little: tuple[float, float] | None = None) -> dict:
    plain = next(iter(models.values())).with_drafter(None)
    return {PLAIN: drafting_method(plain, settings, 0)} | {
        _method(name, K): drafting_method(model, settings, K, big_little=big_little)
        for name, model in models.items() for K in draft_tokens[name]}


def _method(name: str, K: int) -> str:
    return f"{name} K={K}"


def _step_seconds(samples: measure.Samples) -> float:
    """Seconds of one row's round, its drafts and the encoding left out."""
    spent = measure.seconds(samples)
    return (spent["verify"] + spent["other"]) / sum(sample.stats.steps for sample in samples[0])


def _row(K: int, plain: measure.Samples, drafted: measure.Samples, alpha: float, step: float, settings: Settings) -> dict:
    found = measure.acceptance(drafted)
    cost = measure.seconds(drafted)["draft"] / found["drafted"] / step if found["drafted"] else None
    round_cost = _step_seconds(drafted) / step
    lossy = drafted[0][0].stats.lossy
    row = {"draft_tokens": K, "acceptance": found, "c": cost, "v": round_cost,
           "predicted": predicted(alpha, K, cost, round_cost) if cost is not None and not lossy else None,
           "differing": None if settings.do_sample else measure.differing(plain, drafted)}
    if lossy:
        row |= {"lossy": lossy, "tokens_per_second": measure.tokens_per_second(drafted, with_encoding=False)}
    elif not row["differing"]:
        row["speed_up"] = measure.speed_up(plain, drafted, with_encoding=False)
        row["speed_up_whole"] = measure.speed_up(plain, drafted, with_encoding=True)
        row["tokens_per_second"] = measure.tokens_per_second(drafted, with_encoding=False)
    return row


def predicted(alpha: float, K: int, c: float, v: float) -> float:
    """Expected tokens a round (1 - alpha^(K+1)) / (1 - alpha), over its cost K c + v in plain steps."""
    tokens = K + 1 if alpha == 1 else (1 - alpha ** (K + 1)) / (1 - alpha)
    return tokens / (K * c + v)
