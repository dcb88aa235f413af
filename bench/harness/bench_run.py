"""A comparison: build the methods, time them interleaved, compare their tokens with plain decoding's, make the records."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foredraft.bench.harness import footprint, measure, record
from foredraft.bench.harness.alpha import alpha_tv
from foredraft.bench.harness.cases import Case, describe
from foredraft.bench.harness.methods import REFERENCE, Absent, Method, build
from foredraft.bench.harness.record import SCHEMA
from foredraft.bench.harness.settings import Settings
from foredraft.bench.harness.steps import product_rate
from foredraft.bench.harness.throughput import floor
from foredraft.engine.models.t5 import T5
from foredraft.engine.stats import DecodeStats


def common_fields(model, settings: Settings, data: dict) -> dict:
    """What every line of a comparison states: record.common_fields and the settings."""
    return {"schema": SCHEMA} | record.common_fields(model=model, data=data, device=settings.device) | {
        name: getattr(settings, name)
        for name in ("device", "batch_size", "max_new_tokens", "draft_tokens", "temperature", "seed", "repeats")}


def compare(model, cases: Sequence[Case], settings: Settings, names: Sequence[str], common: dict,
            on_batch: Callable[[], None] = lambda: None, footprints: bool = False,
            on_samples: Callable[[dict[str, measure.Samples], dict[str, Method]], None] = lambda *_: None) -> list[dict]:
    """A line (record.FIELDS) for each method, plain decoding first.

    Parameters
    ----------
    names : sequence of str
        Methods (methods.METHODS); plain decoding is always measured. One that cannot run gets a line with the reason
        ("absent").
    common : dict
        common_fields().
    footprints : bool
        Also load each method in a process of its own (footprint.measure).
    on_batch, on_samples : callable
        Called after each batch of a timed pass, and once with all samples and methods.

    Returns
    -------
    list of dict
        After an interruption, of the complete passes or of the articles that all methods decoded in the first one.
    """
    methods: dict[str, Method] = {}
    absent: dict[str, str] = {}
    sources = [case.source for case in cases]
    for name in dict.fromkeys((REFERENCE, *names)):
        try:
            methods[name] = _tried(build(name, model, settings), sources[: settings.batch_size], settings.seed)
        except Absent as reason:
            absent[name] = str(reason)
    samples = measure.measure(methods, sources, settings, end_token=model.target.end_token, on_batch=on_batch, partial=True)
    on_samples(samples, methods)
    outputs = measure.outputs_of(samples[REFERENCE][0])
    done = len(outputs)
    if done < len(cases):
        cases, sources = cases[:done], sources[:done]
        common = common | {"data": describe(common["data"]["name"], cases)}
    footprints = footprints and len(samples[REFERENCE]) == settings.repeats

    scores = Rouge(model.tokenizer, [case.reference for case in cases])
    rows = []
    for name in (*methods, *absent):
        row = common | {"method": name, "absent": absent.get(name), "repeats": len(samples[REFERENCE])}
        if name in methods:
            row |= figures(samples[REFERENCE], samples[name], methods[name])
            if row["acceptance"] and row["acceptance"]["drafted"]:
                row["acceptance"]["alpha_tv"] = alpha_tv(methods[name].model, sources, outputs, settings.temperature)
            row["rouge"] = scores(measure.outputs_of(samples[name][0]))
            row["floor"] = least(model.target, sources, samples[name], common["machine"]["read_gb_s"])
            row["footprint"] = footprint.measure(name, model, settings, sources[0]) if footprints else None
        rows.append(row)
    return rows


def least(target, sources: Sequence[Sequence[int]], samples: measure.Samples, read_gb_s: float) -> dict[str, float] | None:
    """throughput.floor() of one pass at rates measured now; None without DecodeStats, or if the target is not on the CPU."""
    if not isinstance(target, T5) or samples[0][0].stats is None:
        return None
    passes, steps = (sum(getattr(sample.stats, name) for sample in samples[0]) for name in ("passes", "steps"))
    rate = product_rate(target.config, max(map(len, sources)))
    outputs = measure.outputs_of(samples[0])
    return floor(target, sources, outputs, DecodeStats(passes=passes, steps=steps), rate, read_gb_s)


class Rouge:
    """ROUGE of outputs against human summaries; None without summaries or without rouge-score."""

    def __init__(self, tokenizer, references: Sequence[str | None]):
        self.tokenizer, self.references = tokenizer, references
        # most methods emit the same tokens
        self.known: dict[tuple, dict | None] = {}

    def __call__(self, outputs: Sequence[Sequence[int]]) -> dict[str, float] | None:
        if None in self.references:
            return None
        try:
            from foredraft.train.target.target_metrics import rouge
        except ImportError:
            return None
        key = tuple(map(tuple, outputs))
        if key not in self.known:
            texts = self.tokenizer.decode_batch([list(tokens) for tokens in outputs], skip_special_tokens=True)
            self.known[key] = rouge(texts, self.references)
        return self.known[key]


def _tried(method: Method, batch: Sequence[Sequence[int]], seed: int) -> Method:
    """The method after it has decoded a batch. A peer that fails is Absent; errors of foredraft are not caught."""
    if method.model is None:
        try:
            method.run(batch, seed)
        except Exception as error:  # another library may raise anything; it is reported
            raise Absent(f"it fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
    return method


def figures(reference: measure.Samples, samples: measure.Samples, method: Method) -> dict:
    """The measured fields of a line: no speed-up where tokens, or their distribution, differ from plain decoding's."""
    differ = measure.differing(reference, samples) if method.comparable else None
    same = differ == 0 or (differ is None and method.lossless)
    return {
        "differ": differ,
        "tokens": sum(sample.tokens for sample in samples[0]),
        "seconds": measure.seconds(samples),
        "tokens_per_second": measure.tokens_per_second(samples, with_encoding=False),
        "tokens_per_second_encoding": measure.tokens_per_second(samples, with_encoding=True),
        "speed_up": measure.speed_up(reference, samples, with_encoding=False) if same else None,
        "speed_up_encoding": measure.speed_up(reference, samples, with_encoding=True) if same else None,
        "acceptance": measure.acceptance(samples),
    }
