"""Evaluation of a drafter: acceptance, cost, the speed-up that they predict, and the measured one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from foredraft.bench.harness import measure, record
from foredraft.bench.harness.alpha import interval, overlaps
from foredraft.bench.harness.methods import drafting_method
from foredraft.bench.harness.settings import Settings
from foredraft.engine.drafters.registry import kind_of, trained_kinds
from foredraft.errors import UserError

PLAIN = "plain"
# drafters without a checkpoint, or whose checkpoint is a file: an n-gram table, a skip set
LOOKUP, NGRAM, SELF = "lookup", "ngram", "self"
TREE = "tree:"


def drafter_spec(ckpt_path: Path | None, drafter: str | None) -> tuple[str, str]:
    """The drafter as foredraft.load takes it, and its kind, which is read from the checkpoint.

    UserError: neither a checkpoint nor a name, a path that does not exist, a checkpoint of another kind than `drafter`.
    """
    if ckpt_path is None and drafter is not None and drafter.startswith(TREE):
        return drafter, drafter
    known = (LOOKUP, NGRAM, SELF, *trained_kinds())
    if drafter is not None and drafter not in known:
        raise UserError(f"--drafter {drafter} is not known; one of {', '.join(known)}")
    if ckpt_path is None:
        if drafter not in (LOOKUP, NGRAM):
            raise UserError("give --ckpt-path PATH, or --drafter lookup, ngram or tree:SHAPE:NAME")
        return drafter, drafter
    if not ckpt_path.exists():
        raise UserError(f"{ckpt_path}: no such checkpoint; give a trained drafter's folder, an n-gram table or a skip file")
    kind = kind_of(ckpt_path) if ckpt_path.is_dir() else SELF if ckpt_path.suffix == ".json" else NGRAM
    if drafter not in (None, kind):
        raise UserError(f"{ckpt_path}: is a drafter of kind {kind}, not {drafter}; drop --drafter")
    return (str(ckpt_path) if ckpt_path.is_dir() else f"{kind}:{ckpt_path}"), kind


def evaluate(models: Mapping[str, object], sources: Sequence[Sequence[int]], settings: Settings,
             draft_tokens: Mapping[str, Sequence[int]], on_batch: Callable[[], None] = lambda: None,
             big_little: tuple[float, float] | None = None) -> dict[str, dict]:
    """Figures of drafters on one target at one temperature, interleaved with plain decoding.

    Parameters
    ----------
    models : mapping
        By name; they share their target and differ in their drafters.
    settings : Settings
        settings.draft_tokens is not used.
    draft_tokens : mapping
        The K of each model.
    big_little : tuple of float, optional
        Thresholds of Big Little Decoder, LOSSY: records then have `lossy`, no prediction and no speed-up.

    Returns
    -------
    dict
        By name: `temperature`, `plain_step_ms`, `alpha` (alpha_tv with its 95 % interval over articles) and `rows`, one for
        each K: `acceptance`; `c`, seconds of a drafted token, and `v`, seconds of a step without its drafts, both over the
        seconds of a plain step; `predicted`, the decode speed-up of Leviathan et al. 2023, Theorem 3.8 with v instead of 1
        (None for trees); `speed_up` of decoding and `speed_up_whole` with encoding; `differing`, articles whose greedy
        tokens are not plain decoding's (then there is no speed-up).
    """
    target = next(iter(models.values())).target
    methods = _methods(models, settings, draft_tokens, big_little)
    samples = measure.measure(methods, sources, settings, end_token=target.end_token, on_batch=on_batch)
    plain = samples[PLAIN]
    outputs = measure.outputs_of(plain[0])
    step = _step_seconds(plain)
    found = {}
    drafters = [model.drafter for model in models.values()]
    every = overlaps(target, drafters, sources, outputs, settings.temperature, on_batch=on_batch)
    for name, sums in zip(models, every, strict=True):
        low, high = interval(sums)
        covered, prefixes = sums.sum(0).tolist()
        alpha = {"value": covered / prefixes, "low": low, "high": high, "prefixes": int(prefixes)}
        rows = [_row(K, plain, samples[name, K], alpha["value"], step, settings) for K in draft_tokens[name]]
        if name.startswith(TREE):
            for row in rows:
                row["predicted"] = None
        found[name] = {"temperature": settings.temperature, "alpha": alpha, "plain_step_ms": step * 1e3, "rows": rows}
    return found


def fastest(models: Mapping[str, object], sources: Sequence[Sequence[int]], settings: Settings,
            draft_tokens: Sequence[int]) -> dict[str, int]:
    """The K of each drafter that is fastest on `sources`, which must not be the articles it is reported on."""
    end = next(iter(models.values())).target.end_token
    methods = _methods(models, settings, {name: draft_tokens for name in models})
    samples = measure.measure(methods, sources, settings, end_token=end)
    return {name: max(draft_tokens, key=lambda K, name=name: measure.tokens_per_second(
        samples[name, K], with_encoding=False)["median"]) for name in models}


def common_fields(model, data: dict, settings: Settings) -> dict:
    """record.common_fields and the settings; `data` is cases.describe()."""
    return record.common_fields(model=model, data=data, device=settings.device) | {
        "batch_size": settings.batch_size, "max_new_tokens": settings.max_new_tokens, "seed": settings.seed,
        "repeats": settings.repeats}


def _methods(models: Mapping[str, object], settings: Settings, draft_tokens: Mapping[str, Sequence[int]],
             big_little: tuple[float, float] | None = None) -> dict:
    plain = next(iter(models.values())).with_drafter(None)
    return {PLAIN: drafting_method(plain, settings, 0)} | {
        (name, K): drafting_method(model, settings, K, big_little=big_little)
        for name, model in models.items() for K in draft_tokens[name]}


def _step_seconds(samples: measure.Samples) -> float:
    """Seconds of a step of one sequence, without drafts and encoding."""
    spent = measure.seconds(samples)
    return (spent["verify"] + spent["other"]) / sum(sample.stats.steps for sample in samples[0])


def _row(K: int, plain: measure.Samples, drafted: measure.Samples, alpha: float, step: float, settings: Settings) -> dict:
    found = measure.acceptance(drafted)
    cost = measure.seconds(drafted)["draft"] / found["drafted"] / step if found["drafted"] else None
    step_cost = _step_seconds(drafted) / step
    lossy = drafted[0][0].stats.lossy
    row = {"draft_tokens": K, "acceptance": found, "c": cost, "v": step_cost,
           "predicted": predicted(alpha, K, cost, step_cost) if cost is not None and not lossy else None,
           "differing": None if settings.do_sample else measure.differing(plain, drafted)}
    if lossy:
        row |= {"lossy": lossy, "tokens_per_second": measure.tokens_per_second(drafted, with_encoding=False)}
    elif not row["differing"]:
        row["speed_up"] = measure.speed_up(plain, drafted, with_encoding=False)
        row["speed_up_whole"] = measure.speed_up(plain, drafted, with_encoding=True)
        row["tokens_per_second"] = measure.tokens_per_second(drafted, with_encoding=False)
    return row


def predicted(alpha: float, K: int, c: float, v: float) -> float:
    """Expected tokens per step, (1 - alpha^(K+1)) / (1 - alpha), over the cost of a step, K c + v plain steps."""
    tokens = K + 1 if alpha == 1 else (1 - alpha ** (K + 1)) / (1 - alpha)
    return tokens / (K * c + v)
