"""How requests are decoded: SamplingParams for one request, BatchConfig for all requests of a call. Both check values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

from foredraft.engine import checks
from foredraft.errors import UserError
from foredraft.kernels.step.end_tokens import MAX_END_TOKENS

MAX_DRAFT_TOKENS = 64
AUTO = "auto"
MAX_BEAMS = 32
# MAX_NEW_TOKENS to its power is a float32.
MAX_LENGTH_PENALTY = 7
DEFAULT_NEW_TOKENS, MAX_NEW_TOKENS = 128, 100_000
VERIFICATIONS = ("token", "block")


@dataclass(frozen=True)
class SamplingParams:
    """The settings of one request, named as in transformers' `generate` and with its meaning.

    Numbers of tokens exclude the start token, except `max_length` and `min_length`. "The output" of a rule includes it.

    Parameters
    ----------
    max_new_tokens : int or None
        The most tokens to emit, the end token included; None is max_length - 1, or 128 without max_length.
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
        No end token is emitted before this many tokens; None is min_length - 1, or 0 without min_length.
    max_time : float or None
        Seconds after which a request ends with the tokens it has.
    eos_token_id : int, sequence of int or None
        The tokens that end a text, at most 8. An empty sequence: no token does. None: the model's.
    decoder_start_token_id : int or None
        The token before the first; None is the model's.
    repetition_penalty, encoder_repetition_penalty : float
        Above 0; 1 is off. Above 1, repetition_penalty makes tokens of the output less likely, and encoder_repetition_penalty
        makes tokens of the source more likely.
    no_repeat_ngram_size, encoder_no_repeat_ngram_size : int
        No n-gram of this size occurs twice in the output, or both in the source and in the output. 0 is off.
    bad_words_ids : sequence of token sequences
        Sequences that must not occur.
    suppress_tokens, begin_suppress_tokens : sequence of int
        Tokens that must not occur, anywhere or as the first one.
    forced_bos_token_id, forced_eos_token_id : int or sequence of int, or None
        The first token; the last token of an output that reaches max_new_tokens.
    sequence_bias : mapping of token sequences to float, or sequence of pairs
        Added to the score of a sequence's last token where the output ends with the tokens before it.
    exponential_decay_length_penalty : (int, float) or None
        (start, factor): end tokens become more likely with every token after the first `start`.
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
    choices : sequence of str or of token sequences, or None
        The output is one of these.
    regex : str or None
        The whole output matches this regular expression (Rust's syntax, without look-around).
    json_schema : str, mapping or None
        The output is a JSON text of this schema. regex and json_schema need `foredraft[grammar]`.
    stopping_criteria : sequence of callables
        Each maps input_ids [1, t] and None to whether the text ends there.
    num_beams : int
        Beams of beam search, at most 32; 1 is off. With do_sample continuations are sampled.
    length_penalty : float
        A hypothesis' sum of log-probabilities is divided by its length to this power, -7 to 7.
    early_stopping : bool or "never"
        When the search ends. True: as soon as there are num_beams hypotheses. False: when, besides, the best running beam
        would score below all of them at its current length. "never": when it would at the greatest length too.
    num_return_sequences : int
        Outputs of each input: hypotheses of beam search, best first, or samples.
    logprobs : int or None
        Return the log-probability of every token, and those of this many most likely tokens at its position. All are before
        processors and temperature.
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
    choices: tuple[str | tuple[int, ...], ...] | None = None
    regex: str | None = None
    json_schema: str | None = None
    stopping_criteria: tuple[Callable, ...] = ()
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return_sequences: int = 1
    logprobs: int | None = None
    output_scores: bool = False
    output_logits: bool = False

    def __post_init__(self):
        for name, (check, *arguments) in _CHECKS.items():
            value = getattr(self, name)
            self._put(name, getattr(SamplingParams, name) if value is None else check(name, value, *arguments))
        if self.max_new_tokens is None:
            self._put("max_new_tokens", DEFAULT_NEW_TOKENS if self.max_length is None else self.max_length - 1)
        if self.min_new_tokens is None:
            self._put("min_new_tokens", max((self.min_length or 0) - 1, 0))
        if isinstance(self.draft_tokens, str) and self.draft_tokens != AUTO:
            raise UserError(f"draft_tokens is {self.draft_tokens!r}; give a whole number or {AUTO!r}")
        if self.draft_tokens != AUTO:
            self._put("draft_tokens", checks.whole_number("draft_tokens", self.draft_tokens, 0, MAX_DRAFT_TOKENS))
        if self.do_sample and self.temperature == 0:
            raise UserError(f"temperature is {self.temperature}; give a number above 0 (greedy is do_sample=False)")
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(f"min_new_tokens is {self.min_new_tokens}, more than max_new_tokens, {self.max_new_tokens} "
                            "(min_length and max_length count one token more); lower the first or raise the second")
        if self.eos_token_id is not None and len(self.eos_token_id) > MAX_END_TOKENS:
            raise UserError(f"eos_token_id lists {len(self.eos_token_id)} tokens; give at most {MAX_END_TOKENS}")
        if len(self.constraints) > 1:
            raise UserError(f"{' and '.join(self.constraints)} are given; give one of them")
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise UserError(f"num_return_sequences is {self.num_return_sequences}, more than num_beams, {self.num_beams}; "
                            "lower the first or raise the second")
        if self.num_return_sequences > 1 and self.num_beams == 1 and not self.do_sample:
            raise UserError(f"num_return_sequences is {self.num_return_sequences} in greedy decoding, whose outputs are all "
                            "the same; pass do_sample=True or num_beams")
        if self.num_beams > 1 and self.logprobs is not None:
            raise UserError("logprobs does not go with num_beams; leave it out, or use output_scores instead")
        if self.prefix_allowed_tokens_fn is not None and not callable(self.prefix_allowed_tokens_fn):
            raise UserError("prefix_allowed_tokens_fn cannot be called; give a function")

    def _put(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def warn_ignored(self, given: Iterable[str]) -> None:
        """Warn of the sampling arguments among `given` that have no effect because do_sample is False."""
        ignored = [f"{name}={getattr(self, name)}" for name in _SAMPLING
                   if name in given and getattr(self, name) != getattr(SamplingParams, name)]
        if ignored and not self.do_sample:
            warnings.warn(f"{', '.join(ignored)} without effect: do_sample is False; pass do_sample=True to sample",
                          stacklevel=3)

    @property
    def constraints(self) -> list[str]:
        """The names of the constraints given."""
        return [name for name in ("choices", "regex", "json_schema") if getattr(self, name) is not None]

    @property
    def beyond_temperature(self) -> list[str]:
        """The arguments given that need a logits processor or a record of scores."""
        plain = {"max_new_tokens", "draft_tokens", "do_sample", "seed", "stop_strings", "max_length", "min_length",
                 "min_new_tokens", "num_return_sequences", "max_time", "eos_token_id", "decoder_start_token_id",
                 "stopping_criteria", *_SAMPLING[:3]}
        names = [field.name for field in fields(self) if field.name not in plain]
        given = [name for name in names if getattr(self, name) != getattr(SamplingParams, name)]
        return given + ["min_new_tokens"] * (self.min_new_tokens > 0)

    @property
    def num_samples(self) -> int:
        """The samples of each input, every one a request of its own."""
        return self.num_return_sequences if self.num_beams == 1 else 1

    @property
    def has_truncations(self) -> bool:
        """Whether sampling needs more than temperature, top-k and top-p."""
        return self.do_sample and any(getattr(self, name) != getattr(SamplingParams, name) for name in _SAMPLING[3:])


# Arguments of sampling alone; the first three are part of verification.
_SAMPLING = ("temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
# The check of each argument and its bounds, except for draft_tokens and prefix_allowed_tokens_fn. Whole numbers have bounds
# (low, high), numbers (low, high, whether low is allowed).
_CHECKS: dict[str, tuple] = {
    "max_new_tokens": (checks.whole_number, 1, MAX_NEW_TOKENS), "max_length": (checks.whole_number, 2, MAX_NEW_TOKENS + 1),
    **dict.fromkeys(("min_new_tokens", "min_length", "top_k", "seed", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
                     "forced_bos_token_id", "decoder_start_token_id"), (checks.whole_number, 0)),
    "num_beams": (checks.whole_number, 1, MAX_BEAMS), "num_return_sequences": (checks.whole_number, 1),
    "length_penalty": (checks.number, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY, True),
    "early_stopping": (checks.early_stopping,),
    "logprobs": (checks.whole_number, 0, 1000), "temperature": (checks.number, 0, math.inf, True),
    **dict.fromkeys(("top_p", "typical_p"), (checks.number, 0, 1, False)),
    **dict.fromkeys(("top_h", "min_p", "epsilon_cutoff", "eta_cutoff"), (checks.number, 0, 1, True)),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "max_time"), (checks.number, 0, math.inf, False)),
    **dict.fromkeys(("do_sample", "remove_invalid_values", "renormalize_logits", "output_scores", "output_logits"),
                    (checks.flag,)),
    **dict.fromkeys(("eos_token_id", "suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id"),
                    (checks.token_ids,)),
    **dict.fromkeys(("logits_processor", "stopping_criteria"), (checks.functions,)),
    "stop_strings": (checks.texts,), "bad_words_ids": (checks.token_sequences,), "sequence_bias": (checks.biases,),
    "exponential_decay_length_penalty": (checks.decay,), "choices": (checks.choices,), "regex": (checks.expression,),
    "json_schema": (checks.schema,)}


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
        for name, low in (("batch_size", 1), ("max_source", 2), ("kv_memory", 1)):
            if name == "batch_size" or getattr(self, name) is not None:
                checks.whole_number(name, getattr(self, name), low)
        if self.big_little is not None:
            try:
                fallback, rollback = map(float, self.big_little)
                is_possible = 0 <= fallback <= 1 and rollback >= 0
            except (TypeError, ValueError):
                is_possible = False
            if not is_possible:
                raise UserError(f"big_little is {self.big_little!r}; give a probability (fallback) and nats of 0 or more "
                                "(rollback), such as (0.6, 4)")

    def check(self, params: SamplingParams) -> None:
        """Refuse request settings that contradict these (UserError)."""
        if self.big_little is not None and params.do_sample:
            raise UserError("big_little is greedy only: the small model's tokens have no distribution; leave sampling out")
        if params.num_beams > 1 and (self.big_little is not None or self.verification == "block"):
            what = "big_little" if self.big_little is not None else "block verification"
            raise UserError(f"num_beams is {params.num_beams}: beam search does not go with {what}; leave one of them out")
        if self.big_little is not None and params.draft_tokens == AUTO:
            raise UserError("big_little ends drafts by its fallback; give draft_tokens a number, the longest draft")
