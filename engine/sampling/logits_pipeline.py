"""The logits processors of a batch: which ones a request has, in transformers' order, and when they run.

Verification calls `process` with the target's logits at all query positions of a step. At each position the processors see
the committed tokens and the drafted tokens before the position. The token that is chosen or sampled there is therefore the
one that decoding without drafts chooses or samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from foredraft.engine.params import SamplingParams
from foredraft.engine.sampling.constraint import Choices, Constraint, ConstraintProcessor
from foredraft.engine.sampling.grammar import Grammar
from foredraft.engine.sampling.host_rules import LogitsProcessorFunction, PrefixAllowedTokens
from foredraft.engine.sampling.no_repeat_ngram import EncoderNoRepeatNgram, NoRepeatNgram
from foredraft.engine.sampling.penalties import (
    EncoderRepetitionPenalty,
    ExponentialDecayLengthPenalty,
    RepetitionPenalty,
)
from foredraft.engine.sampling.processor import Context, Processor
from foredraft.engine.sampling.recorder import Recorder
from foredraft.engine.sampling.sequence_bias import BadWords, SequenceBias
from foredraft.engine.sampling.token_rules import (
    ForceTokens,
    MinLength,
    RemoveInvalidValues,
    Renormalize,
    SuppressTokens,
    check_tokens,
)
from foredraft.engine.sampling.truncations import Truncations
from foredraft.engine.state import DecodeState, Draft
from foredraft.errors import UserError


def make_processors(params: SamplingParams, context: Context, index: int = 0) -> list[Processor]:
    """The processors of a request, in transformers' order.

    Parameters
    ----------
    params : SamplingParams
    context : Context
    index : int
        Of the request in its call, for `prefix_allowed_tokens_fn`.

    Raises
    ------
    UserError
        A token is outside the vocabulary.
    """
    p, built = params, {}
    if p.sequence_bias:
        built["SequenceBiasLogitsProcessor"] = SequenceBias(p.sequence_bias, context)
    if p.encoder_repetition_penalty != 1:
        built["EncoderRepetitionPenaltyLogitsProcessor"] = EncoderRepetitionPenalty(p.encoder_repetition_penalty, context)
    if p.repetition_penalty != 1:
        built["RepetitionPenaltyLogitsProcessor"] = RepetitionPenalty(p.repetition_penalty, context)
    if p.no_repeat_ngram_size:
        built["NoRepeatNGramLogitsProcessor"] = NoRepeatNgram(p.no_repeat_ngram_size, context)
    if p.encoder_no_repeat_ngram_size:
        built["EncoderNoRepeatNGramLogitsProcessor"] = EncoderNoRepeatNgram(p.encoder_no_repeat_ngram_size, context)
    if p.bad_words_ids:
        built["NoBadWordsLogitsProcessor"] = BadWords(p.bad_words_ids, context)
    if p.min_new_tokens and context.end_tokens:
        built["MinLengthLogitsProcessor"] = MinLength(p.min_new_tokens + 1, context)
    if p.prefix_allowed_tokens_fn is not None:
        built["PrefixConstrainedLogitsProcessor"] = PrefixAllowedTokens(p.prefix_allowed_tokens_fn, index, context)
    if p.forced_bos_token_id is not None:
        built["ForcedBOSTokenLogitsProcessor"] = ForceTokens("forced_bos_token_id", [p.forced_bos_token_id], context, 1)
    if p.forced_eos_token_id:
        built["ForcedEOSTokenLogitsProcessor"] = ForceTokens("forced_eos_token_id", p.forced_eos_token_id, context,
                                                             context.max_length - 1)
    if p.remove_invalid_values:
        built["InfNanRemoveLogitsProcessor"] = RemoveInvalidValues()
    if p.exponential_decay_length_penalty is not None and context.end_tokens:
        built["ExponentialDecayLengthPenalty"] = ExponentialDecayLengthPenalty(p.exponential_decay_length_penalty, context)
    if p.suppress_tokens:
        built["SuppressTokensLogitsProcessor"] = SuppressTokens(p.suppress_tokens, context)
    if p.begin_suppress_tokens:
        length = 1 if p.forced_bos_token_id is None else 2
        built["SuppressTokensAtBeginLogitsProcessor"] = SuppressTokens(p.begin_suppress_tokens, context, length)
    if p.constraints:
        built["constraint"] = ConstraintProcessor(make_constraint(params, context))
    ours = set(built)
    for number, function in enumerate(p.logits_processor):
        # as in transformers, a processor of its own classes replaces the built one of the same class
        name = type(function).__name__ if type(function).__module__.startswith("transformers.") else ""
        built[name if name in ours else f"{name} {number}"] = LogitsProcessorFunction(function)
        ours.discard(name)
    if p.has_truncations or (p.do_sample and (p.output_scores or p.num_beams > 1)):
        built["truncations"] = Truncations(p, context)
    if p.renormalize_logits and (p.output_scores or p.num_beams > 1):
        built["LogitNormalization"] = Renormalize(context)
    return list(built.values())


def make_constraint(params: SamplingParams, context: Context) -> Constraint:
    """The constraint of a request. UserError: it needs a tokenizer, an end token, or more tokens than allowed."""
    (name,) = params.constraints
    if name != "choices":
        if context.grammars is None:
            raise UserError(f"{name} needs a tokenizer; put tokenizer.json beside config.json")
        return Grammar(name, getattr(params, name), context.grammars, context)
    if context.encode is None and any(isinstance(choice, str) for choice in params.choices):
        raise UserError("choices as texts need a tokenizer; put tokenizer.json beside config.json, or give token ids")
    sequences = [context.encode(choice) if isinstance(choice, str) else check_tokens("choices", choice, context)
                 for choice in params.choices]
    for choice, sequence in zip(params.choices, sequences, strict=True):
        if isinstance(choice, str) and (written := context.decode(sequence)) != choice:
            raise UserError(f"choices holds {choice!r}, which this tokenizer writes as {written!r}; give a text that it "
                            "keeps")
    return Choices(sequences, context)


@dataclass
class Slot:
    """A sequence of the batch: its processors, whether they replace temperature, top-k and top-p, and its recorder.

    failed: the query positions of the current step where a processor failed.
    """

    processors: Sequence[Processor] = ()
    is_warped: bool = False
    recorder: Recorder | None = None
    constraint: Constraint | None = None
    failed: set[int] = field(default_factory=set)

    @property
    def is_active(self) -> bool:
        return bool(self.processors) or self.recorder is not None


@dataclass
class LogitsPipeline:
    """The processors of every sequence of a batch.

    Attributes
    ----------
    proposer : int
        The index in `registry.PROPOSERS` of tokens that a constraint forces.
    slots : dict of int to Slot
        By sequence; only those with a processor or a recorder.
    errors : dict of int to UserError
        By sequence: why its request ends. The others of the batch go on.
    """

    proposer: int = 0
    slots: dict[int, Slot] = field(default_factory=dict)
    errors: dict[int, UserError] = field(default_factory=dict)

    @property
    def is_active(self) -> bool:
        """Whether any sequence has processors or is recorded."""
        return bool(self.slots)

    def start(self, sequence: int, processors: Sequence[Processor], recorder: Recorder | None) -> None:
        """A request starts."""
        constraints = [one.constraint for one in processors if isinstance(one, ConstraintProcessor)]
        slot = Slot(processors, any(isinstance(one, Truncations) for one in processors), recorder,
                    constraints[0] if constraints else None)
        if slot.is_active:
            self.slots[sequence] = slot

    def stop(self, sequence: int) -> None:
        """A request has ended."""
        self.slots.pop(sequence, None)
        self.errors.pop(sequence, None)

    def force(self, state: DecodeState, draft: Draft) -> None:
        """Write the tokens that constraints force over those of a draft."""
        constrained = [sequence for sequence, slot in self.slots.items() if slot.constraint is not None]
        if not constrained:
            return
        room, width = state.allowed().numpy(), draft.tokens.shape[1]
        if draft.logits is None and draft.parents is None and width < room.max(initial=0):
            more = (0, int(room.max()) - width)
            draft.tokens, draft.proposer = (torch.nn.functional.pad(one, more) for one in (draft.tokens, draft.proposer))
        room = np.minimum(room, draft.tokens.shape[1])
        for sequence in constrained:
            written = state.host.tokens[sequence, 1 : state.host.lengths[sequence]].tolist()
            forced = self.slots[sequence].constraint.forced(written, int(room[sequence])) if room[sequence] else []
            n = len(forced)
            tokens, lengths = draft.tokens.numpy(), draft.lengths.numpy()
            if n == 0 or (draft.parents is None and lengths[sequence] >= n and tokens[sequence, :n].tolist() == forced):
                continue
            tokens[sequence, :n], lengths[sequence], draft.proposer.numpy()[sequence, :n] = forced, n, self.proposer
            draft.dense.numpy()[sequence] = False
            if draft.parents is not None:
                draft.parents.numpy()[sequence, :n] = np.arange(n)

    def process(self, state: DecodeState, draft: Draft, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Process the logits [B, R, V] of a step, in place.

        Returns
        -------
        temperature, top_k, top_p : ndarray [B]
            For verification; 1, 0 and 1 where processors have applied them already.
        """
        temperature, top_k, top_p = state.host.temperature, state.host.top_k, state.host.top_p
        warped = [sequence for sequence, slot in self.slots.items() if slot.is_warped]
        if warped:
            temperature, top_k, top_p = temperature.copy(), top_k.copy(), top_p.copy()
            temperature[warped], top_k[warped], top_p[warped] = 1, 0, 1
        finished, lengths = state.finished.tolist(), draft.lengths.tolist()
        for sequence, slot in self.slots.items():
            if finished[sequence]:
                continue
            scores = logits[sequence, : lengths[sequence] + 1]
            if slot.recorder is not None:
                slot.recorder.before(scores)
            slot.failed = self._process_sequence(state, draft, sequence, scores)
            if slot.recorder is not None:
                slot.recorder.after(scores)
        return temperature, top_k, top_p

    def _process_sequence(self, state: DecodeState, draft: Draft, sequence: int, scores: np.ndarray) -> set[int]:
        """Process the scores [n + 1, V] of a sequence at the positions that verification can reach.

        Scores at other positions are not read. A caller's function sees only outputs that decoding without drafts can have.

        Returns
        -------
        set of int
            The query positions where a processor failed. A failure at position 0 ends the request.
        """
        processors, failed = self.slots[sequence].processors, set()
        drafted = draft.tokens.numpy()[sequence].tolist()
        parents = state.chain_parents if draft.parents is None else draft.parents
        parents = parents.numpy()[sequence].tolist()
        is_greedy, ends = state.host.temperature[sequence] == 0, state.end_tokens[sequence].tolist()
        reached = np.zeros(len(scores), np.bool_)
        for r, tokens in enumerate(_prefixes(state, draft, sequence)):
            if r > 0:
                parent, token = parents[r - 1], drafted[r - 1]
                if not reached[parent] or token in ends or not _may_emit(scores[parent], token, is_greedy):
                    continue
            try:
                process_row(processors, tokens, scores[r])
                reached[r] = True
            except UserError as error:
                if r == 0:
                    self.errors[sequence] = error
                failed.add(r)
        return failed

    def record(self, tokens: np.ndarray, counts: np.ndarray, path: np.ndarray) -> None:
        """Record the tokens that verification emits; arguments as in kernels/verify/accept.py.

        No token is emitted from the first position on where a processor failed. If the output gets there, the next step
        fails.
        """
        for sequence, slot in self.slots.items():
            if slot.failed:
                failed = [i for i in range(1, counts[sequence]) if path[sequence, i] in slot.failed]
                counts[sequence] = min(failed, default=counts[sequence])
            if slot.recorder is not None:
                n = counts[sequence]
                slot.recorder.keep(tokens[sequence, :n], path[sequence, :n])


def _may_emit(scores: np.ndarray, token: int, is_greedy: bool) -> bool:
    """Whether a draft's token may be accepted, by the processed scores [V] of its position."""
    if is_greedy:
        return int(scores.argmax()) == token
    # where every token is forbidden, verification still emits one
    return scores[token] > -np.inf or not scores.max() > -np.inf


def process_row(processors: Sequence[Processor], tokens: np.ndarray, scores: np.ndarray) -> None:
    """Run the processors of a request on the scores [V] of one position. UserError: one failed."""
    for processor in processors:
        try:
            processor(tokens, scores)
        except Exception as error:  # noqa: BLE001  a caller's function may raise anything
            raise UserError(f"{_name(processor)} failed ({type(error).__name__}: {error})") from error


def _prefixes(state: DecodeState, draft: Draft, sequence: int):
    """The output before each query position, a view [t] int64 for each of 0..draft length."""
    n, length = int(draft.lengths[sequence]), int(state.host.lengths[sequence])
    written, drafted = state.host.tokens[sequence, :length], draft.tokens.numpy()[sequence, :n]
    if draft.parents is None:
        output = np.concatenate([written, drafted])
        for r in range(n + 1):
            yield output[: length + r]
        return
    parents, prefixes = draft.parents.numpy()[sequence, :n], [np.array(written)]
    for parent, token in zip(parents, drafted, strict=True):
        prefixes.append(np.append(prefixes[parent], token))
    yield from prefixes


def _name(processor: Processor) -> str:
    """What messages call a processor."""
    if isinstance(processor, LogitsProcessorFunction):
        function = processor.function
        return f"logits_processor {getattr(function, '__name__', type(function).__name__)}"
    return "prefix_allowed_tokens_fn" if isinstance(processor, PrefixAllowedTokens) else type(processor).__name__
