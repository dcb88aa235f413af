"""`Model`: generate, stream, score. load.py makes one. These two modules alone see every part of the engine."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch

from foredraft.engine.arguments import SamplingSettings, check_settings, known_settings, merge, override
from foredraft.engine.checks import listed
from foredraft.engine.clock import now
from foredraft.engine.draft_length.adaptive_drafter import MAX_DRAFT, AdaptiveDrafter
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.drafters.registry import CONSTRAINT, PROPOSERS, check_drafter_settings, make_drafter
from foredraft.engine.inputs import check_inputs, cut_source, tokens_of, unknown_share
from foredraft.engine.models.checkpoint import weights_hash
from foredraft.engine.models.kv_cache import pages_of
from foredraft.engine.models.t5 import T5
from foredraft.engine.output import Output
from foredraft.engine.params import AUTO, BatchConfig, SamplingParams
from foredraft.engine.protocols import Drafter
from foredraft.engine.runtime.beam_draft_length import BeamDraftLength
from foredraft.engine.runtime.continuous_batches import ContinuousBatches
from foredraft.engine.runtime.cuda_graphs import CapturedSteps
from foredraft.engine.runtime.ownership import Ownership
from foredraft.engine.runtime.requests import Job, Request, Result
from foredraft.engine.runtime.scheduler import Scheduler
from foredraft.engine.runtime.stream import Stream
from foredraft.engine.sampling.grammar import GrammarVocabulary
from foredraft.engine.sampling.logits_pipeline import make_processors
from foredraft.engine.sampling.processor import Context
from foredraft.engine.sampling.stop_rules import make_stop_rules
from foredraft.engine.score import Scores, score
from foredraft.errors import UserError
from foredraft.kernels.core.philox import request_seed

if TYPE_CHECKING:
    from foredraft.engine.models.t5_cuda import T5Cuda


class Model:
    """A target with a drafter. Calls from several threads wait for each other; so do models that share weights."""

    def __init__(self, target: T5 | T5Cuda, tokenizer: Any, drafter: str | Path | Drafter | None, path: Path, dtype: str,
                 ownership: Ownership | None = None, settings: Mapping[str, Any] | None = None,
                 warnings: Sequence[str] = ()):
        """settings, warnings: as arguments.checkpoint_settings returns them."""
        self.target, self.tokenizer, self.path, self.dtype = target, tokenizer, path, dtype
        self.settings, self.warnings, self._has_warned = dict(settings or {}), list(warnings), False
        self.ownership = ownership or Ownership()
        self.drafter = make_drafter(drafter, target, path, tokenizer, str(target.device))
        self.graphs = None if isinstance(target, T5) else CapturedSteps()

    @cached_property
    def adaptive(self) -> AdaptiveDrafter:
        """The drafter with adaptive draft lengths; it keeps what it has learned between calls."""
        return AdaptiveDrafter(self.drafter)

    @cached_property
    def beam_draft_length(self) -> BeamDraftLength:
        """How many tokens beams draft; the estimates are kept between calls."""
        return BeamDraftLength()

    @property
    def source_limit(self) -> int | None:
        """The most source tokens by config.json (n_positions), or None."""
        return self.target.config.source_limit

    def with_drafter(self, drafter: str | Path | Drafter | None) -> Model:
        """The same weights and caches with another drafter."""
        return Model(self.target, self.tokenizer, drafter, self.path, self.dtype, self.ownership, self.settings)

    def describe(self) -> dict:
        """The model in a record: name, hash, dtype, parameters, drafter, threads."""
        from foredraft.kernels.core.workers import get_num_threads

        return {"model": self.path.name, "hash": weights_hash(self.path) if self.path.is_dir() else None,
                "dtype": self.dtype, "weights": self.target.weights.stored,
                "parameters": self.target.weights.parameters(), "drafter": self.drafter.name,
                "threads": get_num_threads()}

    def generate(self, inputs: str | Sequence[str] | Sequence[Sequence[int]], *, seed: int | Sequence[int] | None = None,
                 generation_config: Any = None, streamer: Any = None, batch_size: int = 8, max_source: int | None = None,
                 kv_memory: int | None = None, verification: str = "token",
                 big_little: tuple[float, float] | None = None, **settings: Unpack[SamplingSettings]) -> Output:
        """Decode any number of inputs.

        Parameters
        ----------
        inputs : str, sequence of str, or sequence of token sequences
            Token sequences end as the model expects (T5: `</s>`).
        seed : int, sequence of int or None
            A sequence holds one int64 seed for each input, whatever the input's position in the call.
        generation_config : transformers.GenerationConfig, mapping or None
            Settings where no argument is given; what it leaves out, or None, is the checkpoint's.
        streamer
            Has transformers' put(token_ids) and end(); takes a single input.
        batch_size, max_source, kv_memory, verification, big_little
            See params.BatchConfig.
        **settings
            The fields of SamplingParams, with the names of transformers' arguments. Those not given are taken from
            generation_config, then from the checkpoint's generation_config.json. draft_tokens (K) is 5 by default, or "auto"
            with a drafter that adapts.

        Returns
        -------
        Output

        Raises
        ------
        UserError
            An argument or an input is wrong, or a function of the caller failed.
        """
        if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
            raise UserError(f"the streamer is of type {type(streamer).__name__}; give an object with put and end")
        try:
            own_seeds = None if seed is None or isinstance(seed, Integral) else listed("seed", seed)
            given = check_settings(settings | {"seed": None if own_seeds else seed})
            defaults = self._defaults(generation_config)
            config = BatchConfig(batch_size, max_source, kv_memory, verification, big_little)
            inputs = [inputs] if isinstance(inputs, str) else list(check_inputs(inputs))
            if streamer is not None and len(inputs) != 1:
                raise UserError(f"a streamer takes one input, not {len(inputs)}; call generate once for each")
            if own_seeds is not None and len(own_seeds) != len(inputs):
                raise UserError(f"{len(own_seeds)} seeds for {len(inputs)} inputs; give one seed, or one for each input")
            params = self._params(given, defaults, config)
            if streamer is not None and params.num_return_sequences * params.num_beams > 1:
                raise UserError("a streamer takes no beams and one output only; leave num_beams, num_return_sequences out")
            requests = [_request(item, index, sample, params.num_samples, own_seeds) for index, item in enumerate(inputs)
                        for sample in range(params.num_samples)]
            params.warn_ignored(given)
            # all inputs are checked before the first is decoded
            jobs = list(self._jobs(requests, given, defaults, params, config, truncation=True))
            for job in jobs:
                if isinstance(job, Result):
                    raise job.error
                job.listener = streamer and streamer.put
            began, output = now(), Output()
            if jobs:
                lengths, seeded = [len(job.source) for job in jobs], seed is not None
                stream = Stream(self.ownership, lambda: self._scheduler(params, config, lengths, seeded), iter(jobs),
                                self._text, in_order=True)
                try:
                    for result in stream:
                        if result.error is not None:
                            raise result.error
                        output.add(result)
                    output.stats = stream.stats
                finally:
                    try:
                        stream.close()
                    finally:
                        # an interrupt may have come before the first call did anything
                        stream.close()
            output.stats.close_seconds(now() - began)
            return output
        finally:
            # the reader of a streamer waits for its end, also after a failure
            if streamer is not None:
                streamer.end()

    def stream(self, requests: Iterable[Request | str | Sequence[int] | None], *, in_order: bool = False,
               truncation: bool = True, generation_config: Any = None, batch_size: int = 8, max_source: int | None = None,
               kv_memory: int | None = None, verification: str = "token", big_little: tuple[float, float] | None = None,
               **settings: Unpack[SamplingSettings]) -> Stream:
        """Decode requests as they come; until the stream ends or is closed, calls of other threads wait.

        Parameters
        ----------
        requests : iterable of Request, str, token sequences or None
            May be endless; read as sequences become free. None: no request is ready; the stream decodes those that it has,
            and reads on after the next step.
        in_order : bool
            Results in the order of the requests; otherwise as they end.
        truncation : bool
            Whether a source longer than max_source is cut; if not, it is an error of its request.
        generation_config, batch_size, max_source, kv_memory, verification, big_little, **settings
            As in `generate`, for requests without settings of their own.

        Returns
        -------
        Stream
            An iterator of Result.
        """
        given, defaults = check_settings(settings), self._defaults(generation_config)
        config = BatchConfig(batch_size, max_source, kv_memory, verification, big_little)
        params = self._params(given, defaults, config)
        params.warn_ignored(given)
        if params.num_return_sequences > params.num_beams:
            raise UserError("num_return_sequences goes with num_beams in a stream; submit a request for each sample")
        requests = [requests] if isinstance(requests, str) else check_inputs(requests)
        return Stream(self.ownership, lambda: self._scheduler(params, config, None, True),
                      self._jobs(requests, given, defaults, params, config, truncation), self._text, in_order)

    def score(self, sources: str | Sequence[str | Sequence[int]], targets: str | Sequence[Any], *, batch_size: int = 8,
              max_source: int | None = None) -> Scores:
        """Log-probabilities of given targets, by teacher forcing.

        Parameters
        ----------
        sources : str, or sequence of str or token sequences
        targets : for each source a target (str or token sequence) or a list of targets
            If sources is a str: one target or a list of targets. The tokenizer ends a text (T5: `</s>`); tokens are scored
            as they are. Targets of one source share its encoding.
        batch_size, max_source
            See params.BatchConfig. The batch size counts sources, and does not change the results.

        Returns
        -------
        Scores

        Raises
        ------
        UserError
            An argument, a source or a target is wrong; nothing was scored.
        """
        return score(self, sources, targets, BatchConfig(batch_size, max_source))

    def _defaults(self, generation_config: Any) -> dict[str, Any]:
        """The settings of generation_config, then those of the checkpoint."""
        if generation_config is None:
            return self.settings
        return override(self.settings, known_settings(generation_config))

    def _params(self, given: Mapping[str, Any], defaults: Mapping[str, Any], config: BatchConfig) -> SamplingParams:
        adaptive = {"draft_tokens": AUTO} if self.drafter.capabilities.adaptive else {}
        params = merge(given, adaptive | defaults)
        config.check(params)
        return params

    def _scheduler(self, params: SamplingParams, config: BatchConfig, lengths: list[int] | None, seeded: bool) -> Scheduler:
        """lengths: of all sources, if known. seeded: whether seeds may be given, so that outputs must repeat."""
        drafter, block = self.drafter, config.verification == "block"
        check_drafter_settings(drafter, params, config, self.graphs is not None)
        if self.graphs is not None:
            from foredraft.engine.runtime.static_batches import StaticBatches

            return StaticBatches(self.target, drafter, self.graphs, config.batch_size, block)
        width = self._width(params.draft_tokens)
        beam_drafter = drafter if width else NoDrafter()
        if width == 0:
            drafter = NoDrafter()
        elif params.draft_tokens == AUTO or drafter.capabilities.adaptive:
            drafter = self.adaptive
            drafter.repeatable = seeded
        batch_size, pages = config.batch_size, None
        if lengths is None:
            longest = config.max_source or self.source_limit
            pages = None if longest is None else batch_size * pages_of(longest)
        else:
            batch_size, longest = min(batch_size, len(lengths)), max(lengths)
            pages = sum(sorted(map(pages_of, lengths))[-batch_size:])
        return ContinuousBatches(
            self.target, drafter, batch_size=batch_size, max_new_tokens=params.max_new_tokens, draft_tokens=width,
            longest=longest or 1, pages=pages, kv_memory=config.kv_memory, block=block, big_little=config.big_little,
            constraint_proposer=PROPOSERS.index(CONSTRAINT), num_beams=params.num_beams,
            beam_drafter=beam_drafter, beam_draft_length=self.beam_draft_length)

    def _width(self, draft_tokens: int | str) -> int:
        """The longest draft, K of the state."""
        if isinstance(self.drafter, NoDrafter):
            return 0
        return MAX_DRAFT if draft_tokens == AUTO else draft_tokens

    def _jobs(self, requests: Iterable[Request | str | Sequence[int] | None], given: Mapping[str, Any],
              defaults: Mapping[str, Any], params: SamplingParams, config: BatchConfig,
              truncation: bool) -> Iterator[Job | Result | None]:
        """A Job for each request, a Result with the error if it cannot be decoded, or None for None.

        given, defaults: settings of the call; params: of a request without settings of its own.
        """
        call_seed = secrets.randbits(63) if params.seed is None else params.seed
        index = -1
        for request in requests:
            if request is None:
                yield None
                continue
            index += 1
            request = request if isinstance(request, Request) else Request(request)
            try:
                own = check_settings(request.settings)
                seed, of_request = own.pop("seed", request_seed(call_seed, index)), params
                if own.get("draft_tokens") == AUTO != params.draft_tokens:
                    raise UserError("draft_tokens 'auto' is a setting of a whole stream: open the stream with it; a number "
                                    "in a request is then its longest draft")
                if own:
                    of_request = self._params(override(given, own), defaults, config)
                yield self._job(index, request, of_request, config, seed, truncation)
            except UserError as error:
                yield Result(index, request.id, "error", error=error)

    def _job(self, index: int, request: Request, params: SamplingParams, config: BatchConfig, seed: int,
             truncation: bool) -> Job:
        if params.stop_strings and self.tokenizer is None:
            raise UserError(f"{self.path}: stop_strings need a tokenizer; put tokenizer.json beside config.json")
        name = f"input {index + 1}" if request.id is None else str(request.id)
        if not isinstance(seed, Integral) or not -(2**63) <= seed < 2**63:
            raise UserError(f"{name} has seed {seed!r}; give an int64")
        model, warnings = self.target.config, []
        tokens = tokens_of(name, request.input, self.tokenizer, model.vocab_size, self.path)
        if not self._has_warned:
            self._has_warned, warnings = True, list(self.warnings)
        limit = config.max_source or self.source_limit
        if limit is not None and len(tokens) > limit and not truncation:
            raise UserError(f"{name} has {len(tokens)} tokens, the limit is {limit}; shorten it, or raise max_source")
        warnings += unknown_share(name, request.input, tokens, self.tokenizer)
        tokens, cuts = cut_source(name, tokens, limit, self.target.end_token)
        warnings += cuts
        end_tokens = self.target.end_tokens if params.eos_token_id is None else params.eos_token_id
        start_token = self.target.start_token if params.decoder_start_token_id is None else params.decoder_start_token_id
        for argument, values in (("eos_token_id", end_tokens), ("decoder_start_token_id", [start_token])):
            if outside := [token for token in values if token >= model.vocab_size]:
                raise UserError(f"{argument} is {outside[0]}; the model's tokens are 0..{model.vocab_size - 1}")
        context = Context(np.array(tokens, np.int64), end_tokens, params.max_new_tokens + 1, model.vocab_size,
                          self.target.backend, self._encode if self.tokenizer is not None else None, self._grammars,
                          self._text)
        # prefix_allowed_tokens_fn counts inputs, and all samples of an input have one index
        processors = make_processors(params, context, index // params.num_samples)
        refused = params.beyond_temperature if self.graphs is not None else ()
        if config.big_little is not None and processors:
            refused = params.beyond_temperature
        if request.on_progress is not None and self.graphs is not None:
            refused = [*refused, "on_progress"]
        if refused:
            where = "on a CUDA device" if self.graphs is not None else "with big_little"
            raise UserError(f"{', '.join(refused)}: not supported {where}; leave it out")
        return Job(index, request.id, torch.tensor(tokens, dtype=torch.int64), params, self._width(params.draft_tokens),
                   int(seed), warnings, end_tokens, start_token, processors, make_stop_rules(params, self._text),
                   on_progress=request.on_progress)

    def _encode(self, text: str) -> list[int]:
        """The tokens of an output, without the end token."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    @cached_property
    def _grammars(self) -> GrammarVocabulary | None:
        """The tokenizer as regex and json_schema need it; None without a tokenizer."""
        end = self.target.config.end_token
        return None if self.tokenizer is None else GrammarVocabulary(self.tokenizer, self.target.config.vocab_size, end)

    def _text(self, tokens: list[int]) -> str | None:
        return None if self.tokenizer is None else self.tokenizer.decode(tokens, skip_special_tokens=True)


def _request(item: Any, index: int, sample: int, num_samples: int, seeds: Sequence[int] | None) -> Request:
    """The request for one sample of an input."""
    seed = None if seeds is None else seeds[index]
    if num_samples == 1:
        return Request(item, seed=seed)
    return Request(item, id=f"input {index + 1}, output {sample + 1}",
                   seed=None if seed is None else request_seed(seed, sample))
