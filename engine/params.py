"""How requests are decoded: SamplingParams for one request, BatchConfig for all requests of a call; both checked once."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from foredraft.errors import UserError

MAX_DRAFT_TOKENS = 64
# As many as a step can compare with (kernels/step/commit_triton.py).
MAX_END_TOKENS = 8
AUTO = "auto"
DEFAULT_NEW_TOKENS, MAX_NEW_TOKENS = 128, 100_000
VERIFICATIONS = ("token", "block")


@dataclass(frozen=True)
class SamplingParams:
    """The settings of one request, named as in transformers' `generate` and with its meaning.

    Tokens count without the start token, except in `max_length`, `min_length` and where a rule speaks of the output so far.

    Parameters
    ----------
    max_new_tokens : int or None
        The most tokens to emit, the end token included; None is max_length - 1, or else 128.
    draft_tokens : int or "auto"
        K, the most tokens drafted per step. 0 is plain decoding; "auto" adapts the draft length to measured costs.
    do_sample : bool
        False is greedy decoding.
    temperature : float
        Above 0.
    top_k : int
        0 is off.
    top_p : float
        In (0, 1]; 1 is off.
    seed : int or None
        None picks a random seed. Input i of a call uses a seed derived from (seed, i).
    stop_strings : tuple of str
        The text ends where one of them is complete.
    max_length, min_length : int or None
        Of the output with its start token; max_new_tokens and min_new_tokens take precedence.
    min_new_tokens : int or None
        No end token before as many tokens; None is min_length - 1, or else 0.
    max_time : float or None
        Seconds after which a request ends with the tokens it has.
    eos_token_id : int, sequence of int or None
        The tokens that end a text, at most 8; an empty sequence is none, None is the model's.
    decoder_start_token_id : int or None
        The token before the first; None is the model's.
    repetition_penalty, encoder_repetition_penalty : float
        Above 0; 1 is off. Above 1 the first makes tokens of the output less likely, the second those of the source more.
    no_repeat_ngram_size, encoder_no_repeat_ngram_size : int
        No n-gram of this size occurs twice in the output; none of the source occurs in it. 0 is off.
    bad_words_ids : sequence of token sequences
        Sequences that must not occur.
    suppress_tokens, begin_suppress_tokens : sequence of int
        Tokens that must not occur, anywhere or first.
    forced_bos_token_id, forced_eos_token_id : int or sequence of int, or None
        The first token; the last token of an output that reaches its limit.
    sequence_bias : mapping of token sequences to float, or sequence of pairs
        Added to the score of a sequence's last token where the tokens before it stand.
    exponential_decay_length_penalty : (int, float) or None
        (start, factor): end tokens become likelier with every token after `start`.
    remove_invalid_values : bool
        Replace scores that are not finite.
    renormalize_logits : bool
        Returned scores are log-probabilities.
    top_h, min_p, typical_p, epsilon_cutoff, eta_cutoff : float
        Further filters of sampling (kernels/sampling/truncations.py); 0 is off, for typical_p 1 is off.
    logits_processor : sequence of callables
        Each maps input_ids [1, t] and scores [1, V] to new scores, as in transformers, and keeps no state.
    prefix_allowed_tokens_fn : callable or None
        Maps the request's index and input_ids [t] to the tokens allowed next.
    choices : sequence of str or of token sequences
        The output is one of these.
    regex : str or None
        The whole output matches this regular expression (Rust's syntax, without look-around).
    json_schema : str, mapping or None
        The output is a JSON text of this schema. regex and json_schema need `foredraft[grammar]`.
    stopping_criteria : sequence of callables
        Each maps input_ids [1, t] and None to whether the text ends there.
    logprobs : int or None
        Return the log-probability of every token, and of this many of the likeliest, before processors and temperature.
    output_scores, output_logits : bool
        Return the scores [V] of every token, after and before processors.

    Raises
    ------
    UserError
        A value is out of range, or two contradict each other.
    """

    max_new_tokens: int | None = None
    draft_tokens: int | str = 5
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop_strings: tuple[str, ...] = ()
    max_length: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    max_time: float | None = None
    eos_token_id: tuple[int, ...] | None = None
    decoder_start_token_id: int | None = None
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    top_h: float = 0.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    logits_processor: tuple[Callable, ...] = ()
    prefix_allowed_tokens_fn: Callable | None = None
    choices: tuple[str | tuple[int, ...], ...] = ()
    regex: str | None = None
    json_schema: str | None = None
    stopping_criteria: tuple[Callable, ...] = ()
    logprobs: int | None = None
    output_scores: bool = False
    output_logits: bool = False

    def __post_init__(self):
        self._normalise()
        for name, (low, high) in _WHOLE.items():
            _check_int(self, name, low, high)
        for name, bounds in _NUMBERS.items():
            _check_number(self, name, *bounds)
        if isinstance(self.draft_tokens, str) and self.draft_tokens != AUTO:
            raise UserError(f"draft_tokens is {self.draft_tokens!r}; give a whole number or {AUTO!r}")
        if self.draft_tokens != AUTO:
            _check_int(self, "draft_tokens", 0, MAX_DRAFT_TOKENS)
        if self.do_sample and not 0 < self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}; give a number above 0 (greedy is do_sample=False)")
        if any(not text for text in self.stop_strings):
            raise UserError("stop_strings holds an empty text; leave it out")
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(f"min_new_tokens is {self.min_new_tokens}, more than max_new_tokens, {self.max_new_tokens} "
                            "(min_length and max_length count one token more); lower the first or raise the second")
        if self.eos_token_id is not None and len(self.eos_token_id) > MAX_END_TOKENS:
            raise UserError(f"eos_token_id lists {len(self.eos_token_id)} tokens; give at most {MAX_END_TOKENS}")
        for name in ("logits_processor", "stopping_criteria"):
            if any(not callable(one) for one in getattr(self, name)):
                raise UserError(f"{name} holds something that cannot be called; give functions")
        if len(self.constraints) > 1:
            raise UserError(f"{' and '.join(self.constraints)} are given; give one of them")
        if self.prefix_allowed_tokens_fn is not None and not callable(self.prefix_allowed_tokens_fn):
            raise UserError("prefix_allowed_tokens_fn cannot be called; give a function")

    def _normalise(self) -> None:
        """Lists become tuples, and lengths of an output become numbers of new tokens."""
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        for name in ("max_length", "min_length"):
            if getattr(self, name) is not None:
                _check_int(self, name, 0)
        if self.max_new_tokens is None:
            put("max_new_tokens", DEFAULT_NEW_TOKENS if self.max_length is None else self.max_length - 1)
        if self.min_new_tokens is None:
            put("min_new_tokens", max((self.min_length or 0) - 1, 0))
        put("stop_strings", (self.stop_strings,) if isinstance(self.stop_strings, str) else tuple(self.stop_strings))
        if self.eos_token_id is not None:
            put("eos_token_id", _tokens("eos_token_id", self.eos_token_id))
        for name in ("suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id"):
            put(name, _tokens(name, getattr(self, name)))
        put("bad_words_ids", tuple(_sequence("bad_words_ids", words) for words in _listed(self, "bad_words_ids")))
        biases = self.sequence_bias.items() if isinstance(self.sequence_bias, Mapping) else _listed(self, "sequence_bias")
        put("sequence_bias", tuple(_bias(pair) for pair in biases))
        if self.exponential_decay_length_penalty is not None:
            put("exponential_decay_length_penalty", _decay(self.exponential_decay_length_penalty))
        choices = (self.choices,) if isinstance(self.choices, str) else _listed(self, "choices")
        put("choices", tuple(one if isinstance(one, str) else _sequence("choices", one) for one in choices))
        put("json_schema", _schema(self.json_schema))
        if self.regex is not None and not isinstance(self.regex, str):
            raise UserError(f"regex is {self.regex!r}; give a regular expression as a text")
        for name in ("logits_processor", "stopping_criteria"):
            given = getattr(self, name)
            put(name, (given,) if callable(given) and not isinstance(given, Iterable) else _listed(self, name))

    def warn_ignored(self, given: Iterable[str]) -> None:
        """Warn of the sampling arguments among `given` that have no effect, because do_sample is False."""
        ignored = [f"{name}={getattr(self, name)}" for name in _SAMPLING
                   if name in given and getattr(self, name) != getattr(SamplingParams, name)]
        if ignored and not self.do_sample:
            warnings.warn(f"{', '.join(ignored)} without effect: do_sample is False", stacklevel=3)

    @property
    def constraints(self) -> list[str]:
        """The names of the constraints given."""
        return [name for name in ("choices", "regex", "json_schema") if getattr(self, name)]

    @property
    def beyond_temperature(self) -> list[str]:
        """The arguments given that need a logits processor or a record of scores."""
        plain = {"max_new_tokens", "draft_tokens", "do_sample", "seed", "stop_strings", "max_length", "min_length",
                 "min_new_tokens", "max_time", "eos_token_id", "decoder_start_token_id", "stopping_criteria", *_SAMPLING[:3]}
        names = [field.name for field in fields(self) if field.name not in plain]
        given = [name for name in names if getattr(self, name) != getattr(SamplingParams, name)]
        return given + ["min_new_tokens"] * (self.min_new_tokens > 0)

    @property
    def has_truncations(self) -> bool:
        """Whether sampling needs more than temperature, top-k and top-p."""
        return self.do_sample and any(getattr(self, name) != getattr(SamplingParams, name) for name in _SAMPLING[3:])


# Arguments of sampling alone; the first three are part of verification.
_SAMPLING = ("temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
# The bounds of whole numbers, and of numbers: (low, high, whether the low bound is allowed).
_WHOLE = {
    "max_new_tokens": (1, MAX_NEW_TOKENS), "min_new_tokens": (0, math.inf), "top_k": (0, math.inf),
    "seed": (0, 2**63 - 1), "no_repeat_ngram_size": (0, math.inf), "encoder_no_repeat_ngram_size": (0, math.inf),
    "forced_bos_token_id": (0, math.inf), "decoder_start_token_id": (0, math.inf), "logprobs": (0, 1000)}
_NUMBERS = {
    "top_p": (0, 1, False), "typical_p": (0, 1, False), "top_h": (0, 1, True), "min_p": (0, 1, True),
    "epsilon_cutoff": (0, 1, True), "eta_cutoff": (0, 1, True), "repetition_penalty": (0, math.inf, False),
    "encoder_repetition_penalty": (0, math.inf, False), "max_time": (0, math.inf, False)}


@dataclass(frozen=True)
class BatchConfig:
    """The settings that all requests of a call or a stream share.

    Parameters
    ----------
    batch_size : int
        The most sequences decoded together.
    max_source : int or None
        The most source tokens read; None is the model's own limit.
    kv_memory : int or None
        Bytes for the target's keys and values; None is half of the machine's free memory.
    verification : "token" or "block"
        How sampled drafts are verified (Leviathan et al. 2023, Alg. 1; Sun et al. 2024, Alg. 2).
    big_little : (float, float) or None
        (fallback, rollback) of Big Little Decoder (Kim et al. 2023), greedy only. LOSSY: a draft ends where its largest
        probability is below `fallback`, and drafted tokens up to `rollback` nats below the target's choice are accepted.

    Raises
    ------
    UserError
        A value is out of range.
    """

    batch_size: int = 8
    max_source: int | None = None
    kv_memory: int | None = None
    verification: str = "token"
    big_little: tuple[float, float] | None = None

    def __post_init__(self):
        if self.verification not in VERIFICATIONS:
            raise UserError(f"verification is {self.verification!r}; give {' or '.join(VERIFICATIONS)}")
        _check_int(self, "batch_size", 1)
        if self.max_source is not None:
            _check_int(self, "max_source", 2)
        if self.kv_memory is not None:
            _check_int(self, "kv_memory", 1)
        if self.big_little is not None:
            fallback, rollback = self.big_little
            if not 0 <= fallback <= 1 or not rollback >= 0:
                raise UserError(f"big_little is {fallback:g},{rollback:g}; give a probability (fallback) and nats of 0 or "
                                "more (rollback), such as 0.6,4")

    def check(self, params: SamplingParams) -> None:
        """Refuse request settings that contradict these (UserError)."""
        if self.big_little is not None and params.do_sample:
            raise UserError("big_little is greedy only: the small model's tokens have no distribution; leave sampling out")
        if self.big_little is not None and params.draft_tokens == AUTO:
            raise UserError("big_little ends drafts by its fallback; give draft_tokens a number, the longest draft")


def _check_int(settings: SamplingParams | BatchConfig, name: str, low: int, high: float = math.inf) -> None:
    value = getattr(settings, name)
    if value is None and name in ("seed", "forced_bos_token_id", "decoder_start_token_id", "logprobs"):
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:
        bound = f"between {low} and {high}" if high < math.inf else f"of at least {low}"
        raise UserError(f"{name} is {value!r}; give a whole number {bound}")


def _check_number(settings: SamplingParams, name: str, low: float, high: float, includes_low: bool) -> None:
    value = getattr(settings, name)
    if value is None and name == "max_time":
        return
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or math.isinf(value) or (value == low and not includes_low):
        bound = f"of at least {low}" if includes_low else f"above {low}"
        raise UserError(f"{name} is {value!r}; give a number {bound}" + (f" and at most {high}" if high < math.inf else ""))


def _listed(settings: SamplingParams, name: str) -> tuple:
    value = getattr(settings, name)
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise UserError(f"{name} is {value!r}; give a list")
    return tuple(value)


def _tokens(name: str, given: Any) -> tuple[int, ...]:
    """A token, or several, as a tuple."""
    if isinstance(given, Integral) and not isinstance(given, bool):
        given = (given,)
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise UserError(f"{name} is {given!r}; give a token id or a list of token ids")
    tokens = tuple(given.tolist() if hasattr(given, "tolist") else given)
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, Integral) or token < 0:
            raise UserError(f"{name} holds {token!r}; give token ids, whole numbers of at least 0")
    return tuple(map(int, tokens))


def _sequence(name: str, given: Any) -> tuple[int, ...]:
    tokens = _tokens(name, given) if not isinstance(given, Integral) else ()
    if not tokens:
        raise UserError(f"{name} holds {given!r}; give lists of at least one token id")
    return tokens


def _bias(pair: Any) -> tuple[tuple[int, ...], float]:
    try:
        sequence, bias = pair
        bias = float(bias)
    except (TypeError, ValueError):
        raise UserError(f"sequence_bias holds {pair!r}; give pairs of a list of token ids and a number") from None
    if math.isnan(bias):
        raise UserError(f"sequence_bias holds {pair!r}; give a number")
    return _sequence("sequence_bias", sequence), bias


def _decay(given: Any) -> tuple[int, float]:
    try:
        start, factor = given
        return int(start), float(factor)
    except (TypeError, ValueError):
        raise UserError(f"exponential_decay_length_penalty is {given!r}; give (start, factor), such as (20, 1.1)") from None


def _schema(given: Any) -> str | None:
    """A JSON schema as a text."""
    if given is None:
        return None
    try:
        schema = json.loads(given) if isinstance(given, str) else given
        if not isinstance(schema, (Mapping, bool)):
            raise ValueError("no object")
        return json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise UserError(f"json_schema is not a JSON schema ({error}); give an object, or its text") from None
