"""`load` a model, then `generate` or `stream`. This module alone sees every part of the engine."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from foredraft import embedded
from foredraft.engine.clock import now
from foredraft.engine.draft_length.adaptive_drafter import MAX_DRAFT, AdaptiveDrafter
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.drafters.registry import check_settings, make_drafter
from foredraft.engine.models.checkpoint import find_checkpoint, weights_hash
from foredraft.engine.models.kv_cache import pages_of
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_cuda import T5Cuda
from foredraft.engine.models.t5_cuda_weights import load_cuda_weights
from foredraft.engine.models.t5_weights import load_weights
from foredraft.engine.models.tokenizer import load_tokenizer
from foredraft.engine.params import AUTO, BatchConfig, SamplingParams
from foredraft.engine.protocols import Drafter
from foredraft.engine.runtime.continuous_batches import ContinuousBatches
from foredraft.engine.runtime.cuda_graphs import CapturedSteps
from foredraft.engine.runtime.ownership import Ownership, check_process
from foredraft.engine.runtime.requests import Job, Request, Result
from foredraft.engine.runtime.scheduler import Scheduler
from foredraft.engine.runtime.static_batches import StaticBatches
from foredraft.engine.runtime.stream import Stream
from foredraft.engine.sampling.stop_strings import StopStrings
from foredraft.engine.stats import DecodeStats
from foredraft.errors import UserError
from foredraft.kernels.core.backend import HAS_TRITON
from foredraft.kernels.core.philox import request_seed


@dataclass
class Output:
    """The results of `Model.generate`, in the order of its inputs.

    Attributes
    ----------
    texts : list of (str or None)
        None without a tokenizer.
    token_ids : list of list of int
        Without the start token, with the end token where it was emitted.
    proposers : list of list of int
        Who proposed each token, an index into `registry.PROPOSERS`; 0 is the target.
    stats : DecodeStats
    warnings : list of str
    """

    texts: list[str | None] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    proposers: list[list[int]] = field(default_factory=list)
    stats: DecodeStats = field(default_factory=DecodeStats)
    warnings: list[str] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Append a request's result; its stats are summed elsewhere."""
        self.texts.append(result.text)
        self.token_ids.append(result.token_ids)
        self.proposers.append(result.proposers)
        self.warnings += result.warnings


def load(path: str | Path | None = None, drafter: str | Path | Drafter | None = "lookup", device: str = "cpu",
         dtype: str = "float32", weights: str | None = None) -> Model:
    """Load a T5 checkpoint and a drafter.

    Parameters
    ----------
    path : str, Path or None
        A checkpoint's folder or Hugging Face name; None is the embedded model.
    drafter : str, Path, Drafter or None
        "lookup", "ngram" (the embedded table), "ngram:TABLE", "lookup+ngram", "lstm" (embedded), the folder of a trained
        drafter, "self:SKIP" (the target without some layers), "tree:SHAPE:NAME", "cascade:A,B", "staged:A,FOLDER", "auto"
        (chosen by what is decoded), None for plain decoding, or an object with the methods of `Drafter`.
    device : str
        "cpu", or "cuda" or "cuda:N" (compute capability 8.0 or more).
    dtype : str
        Of the embedding and the encoder: "float32" or "bfloat16".
    weights : str or None
        Storage of the decoder's matrices: "fp32", "bf16" or "int8"; None is as the checkpoint holds them. Sums are float32.

    Returns
    -------
    Model

    Raises
    ------
    UserError
        No such checkpoint, drafter or device.
    """
    check_process()
    check_device(device)
    folder = find_checkpoint(embedded.TARGET if path is None else path)
    if device == "cpu":
        target = T5(load_weights(folder, dtype, weights))
    else:
        target = T5Cuda(load_cuda_weights(folder, device, dtype, weights))
    return Model(target, load_tokenizer(folder), drafter, folder, dtype)


def check_device(device: str) -> None:
    """UserError unless `device` is "cpu", or "cuda" or "cuda:N" and there, with what our kernels need."""
    if device == "cpu":
        return
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number.isdigit() or device == "cuda"):
        raise UserError(f"device {device!r} is not known; use 'cpu' or 'cuda'")
    if not torch.cuda.is_available():
        raise UserError(f"device {device!r}: no CUDA device is present here; use device 'cpu'")
    if int(number or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device!r}: there are {torch.cuda.device_count()}; count from cuda:0")
    if not HAS_TRITON:
        raise UserError(f"device {device!r} needs triton: pip install triton")
    major, minor = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and major < 8:
        raise UserError(f"device {device!r}: compute capability {major}.{minor} has no bfloat16 tensor cores; 8.0 or more "
                        "is needed, use device 'cpu'")


class Model:
    """A target with a drafter. Calls from several threads wait for each other; so do models that share weights."""

    def __init__(self, target: T5 | T5Cuda, tokenizer: Any, drafter: str | Path | Drafter | None, path: Path, dtype: str,
                 ownership: Ownership | None = None):
        self.target, self.tokenizer, self.path, self.dtype = target, tokenizer, path, dtype
        self.ownership = ownership or Ownership()
        self.drafter = make_drafter(drafter, target, path, tokenizer, str(target.device))
        self.graphs = CapturedSteps() if isinstance(target, T5Cuda) else None

    @cached_property
    def adaptive(self) -> AdaptiveDrafter:
        """The drafter with adaptive draft lengths; it keeps what it has learned between calls."""
        return AdaptiveDrafter(self.drafter)

    @property
    def source_limit(self) -> int | None:
        """The most source tokens by config.json (n_positions), or None."""
        return self.target.config.source_limit

    def with_drafter(self, drafter: str | Path | Drafter | None) -> Model:
        """The same weights and caches with another drafter."""
        return Model(self.target, self.tokenizer, drafter, self.path, self.dtype, self.ownership)

    def describe(self) -> dict:
        """What records say of a model: name, hash, dtype, parameters, drafter, threads."""
        from foredraft.kernels.core.backend import get_num_threads

        return {"model": self.path.name, "hash": weights_hash(self.path), "dtype": self.dtype,
                "weights": self.target.weights.stored,
                "parameters": self.target.weights.parameters(), "drafter": self.drafter.name,
                "threads": get_num_threads()}

    def generate(self, inputs: str | Sequence[str] | Sequence[Sequence[int]], *, max_new_tokens: int = 128,
                 draft_tokens: int | str | None = None, do_sample: bool = False, temperature: float = 1.0, top_k: int = 0,
                 top_p: float = 1.0, seed: int | Sequence[int] | None = None,
                 stop_strings: str | Sequence[str] | None = None, streamer: Any = None, batch_size: int = 8,
                 max_source: int | None = None, kv_memory: int | None = None, verification: str = "token",
                 big_little: tuple[float, float] | None = None) -> Output:
        """Decode any number of inputs.

        Parameters
        ----------
        inputs : str, sequence of str, or sequence of token sequences
            Token sequences end as the model expects (T5: `</s>`).
        draft_tokens : int, "auto" or None
            K; None is 5. Drafter "auto" always adapts its draft lengths: a number is its longest draft.
        seed : int, sequence of int or None
            A sequence holds one int64 seed for each input, whatever the input's position in the call.
        streamer
            Has transformers' put(token_ids) and end(); takes a single input.
        max_new_tokens, do_sample, temperature, top_k, top_p, stop_strings
            See SamplingParams.
        batch_size, max_source, kv_memory, verification, big_little
            See params.BatchConfig.

        Returns
        -------
        Output

        Raises
        ------
        UserError
            An argument or an input is wrong; nothing was decoded.
        """
        try:
            own_seeds = None if seed is None or isinstance(seed, int) else list(seed)
            params = SamplingParams(max_new_tokens, self._draft_tokens(draft_tokens), do_sample, temperature, top_k, top_p,
                                    seed if own_seeds is None else None, _strings(stop_strings))
            params.warn_ignored()
            config = BatchConfig(batch_size, max_source, kv_memory, verification, big_little)
            inputs = [inputs] if isinstance(inputs, str) else list(_checked_inputs(inputs))
            if streamer is not None and len(inputs) != 1:
                raise UserError(f"a streamer takes one input, not {len(inputs)}; call generate once for each")
            if own_seeds is not None and len(own_seeds) != len(inputs):
                raise UserError(f"{len(own_seeds)} seeds for {len(inputs)} inputs; give one seed, or one for each input")
            config.check(params)
            requests = [Request(item, seed=own_seeds and own_seeds[index]) for index, item in enumerate(inputs)]
            # all inputs are checked before the first is decoded
            jobs = list(self._jobs(requests, params, config, truncation=True))
            for job in jobs:
                if isinstance(job, Result):
                    raise job.error
                job.listener = streamer and streamer.put
            began, output = now(), Output()
            if jobs:
                lengths, seeded = [len(job.source) for job in jobs], seed is not None
                with Stream(self.ownership, lambda: self._scheduler(params, config, lengths, seeded), iter(jobs), self._text,
                            in_order=True) as stream:
                    for result in stream:
                        output.add(result)
                    output.stats = stream.stats
            output.stats.close_seconds(now() - began)
            return output
        finally:
            # whoever reads a streamer waits for its end, after a failure too
            if streamer is not None:
                streamer.end()

    def stream(self, requests: Iterable[Request | str | Sequence[int]], *, in_order: bool = False, truncation: bool = True,
               max_new_tokens: int = 128, draft_tokens: int | str | None = None, do_sample: bool = False,
               temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int | None = None,
               stop_strings: str | Sequence[str] | None = None, batch_size: int = 8, max_source: int | None = None,
               kv_memory: int | None = None, verification: str = "token",
               big_little: tuple[float, float] | None = None) -> Stream:
        """Decode requests as they come; until the stream ends or is closed, calls of other threads wait.

        Parameters
        ----------
        requests : iterable of Request, str or token sequences
            May be endless; read as sequences become free.
        in_order : bool
            Results in the order of the requests; otherwise as they end.
        truncation : bool
            Cut a source longer than max_source; otherwise it is an error of its request.
        max_new_tokens, ...
            As in `generate`, for requests without settings of their own.

        Returns
        -------
        Stream
            An iterator of Result.
        """
        params = SamplingParams(max_new_tokens, self._draft_tokens(draft_tokens), do_sample, temperature, top_k, top_p, seed,
                                _strings(stop_strings))
        params.warn_ignored()
        config = BatchConfig(batch_size, max_source, kv_memory, verification, big_little)
        config.check(params)
        requests = [requests] if isinstance(requests, str) else _checked_inputs(requests)
        return Stream(self.ownership, lambda: self._scheduler(params, config, None, True),
                      self._jobs(requests, params, config, truncation), self._text, in_order)

    def _scheduler(self, params: SamplingParams, config: BatchConfig, lengths: list[int] | None, seeded: bool) -> Scheduler:
        """lengths: of all sources, where they are known. seeded: whether requests may have seeds of their own."""
        drafter, block = self.drafter, config.verification == "block"
        check_settings(drafter, params, config, self.graphs is not None)
        if self.graphs is not None:
            return StaticBatches(self.target, drafter, self.graphs, config.batch_size, block)
        width = self._width(params.draft_tokens)
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
            longest=longest or 1, pages=pages, kv_memory=config.kv_memory, block=block, big_little=config.big_little)

    def _draft_tokens(self, given: int | str | None) -> int | str:
        """The argument, or this drafter's default."""
        if given is not None:
            return given
        return AUTO if self.drafter.capabilities.adaptive else SamplingParams.draft_tokens

    def _width(self, draft_tokens: int | str) -> int:
        """The longest draft, K of the state."""
        if isinstance(self.drafter, NoDrafter):
            return 0
        return MAX_DRAFT if draft_tokens == AUTO else draft_tokens

    def _jobs(self, requests: Iterable[Request | str | Sequence[int]], params: SamplingParams, config: BatchConfig,
              truncation: bool) -> Iterator[Job | Result]:
        """Each request checked; a Result with the error of one that cannot be decoded."""
        call_seed = secrets.randbits(63) if params.seed is None else params.seed
        for index, request in enumerate(requests):
            request = request if isinstance(request, Request) else Request(request)
            try:
                yield self._job(index, request, params, config, request_seed(call_seed, index), truncation)
            except UserError as error:
                yield Result(index, request.id, "error", error=error)

    def _job(self, index: int, request: Request, params: SamplingParams, config: BatchConfig, seed: int,
             truncation: bool) -> Job:
        own = {name: getattr(request, name) for name in (
            "max_new_tokens", "draft_tokens", "do_sample", "temperature", "top_k", "top_p")}
        own = {name: value for name, value in own.items() if value is not None}
        if request.stop_strings is not None:
            own["stop_strings"] = _strings(request.stop_strings)
        if own.get("draft_tokens") == AUTO != params.draft_tokens:
            raise UserError("draft_tokens 'auto' is a setting of a whole stream: open the stream with it; a number in a "
                            "request is then its longest draft")
        if own:
            params = replace(params, **own)
            config.check(params)
        if params.stop_strings and self.tokenizer is None:
            raise UserError(f"{self.path}: stop_strings need a tokenizer; put tokenizer.json beside config.json")
        name = f"input {index + 1}" if request.id is None else str(request.id)
        seed = seed if request.seed is None else request.seed
        if not isinstance(seed, Integral) or not -(2**63) <= seed < 2**63:
            raise UserError(f"{name} has seed {seed!r}; give an int64")
        tokens, warnings = self._tokens(name, request.input), []
        limit = config.max_source or self.source_limit
        if limit is not None and len(tokens) > limit:
            if not truncation:
                raise UserError(f"{name} has {len(tokens)} tokens, the limit is {limit}; shorten it, or raise max_source")
            warnings.append(f"{name} has {len(tokens)} tokens; the first {limit} were read, {len(tokens) - limit} were cut "
                            f"(the limit is {limit})")
            # a source ends as the tokenizer ends it, unless the model has no end token
            end = self.target.end_token
            tokens = tokens[:limit] if end < 0 else [*tokens[: limit - 1], end]
        stops = StopStrings(params.stop_strings, self._text) if params.stop_strings else None
        return Job(index, request.id, torch.tensor(tokens, dtype=torch.int64), params, self._width(params.draft_tokens),
                   int(seed), warnings, stops)

    def _text(self, tokens: list[int]) -> str | None:
        return None if self.tokenizer is None else self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _tokens(self, name: str, item: Any) -> list[int]:
        if isinstance(item, str):
            if not item.strip():
                raise UserError(f"{name} is empty; give some text")
            if not item.isascii() and (bad := _half_pair(item)) is not None:
                raise UserError(f"{name} has half of a surrogate pair, {item[bad]!a}, at character {bad}; remove it")
            if self.tokenizer is None:
                raise UserError(f"{self.path}: tokenizer.json is missing, so texts cannot be read; add it or pass token ids")
            return self.tokenizer.encode(item).ids
        try:
            tokens = [operator.index(token) for token in _checked_inputs(item)]
        except (TypeError, ValueError):
            raise UserError(f"{name} is neither a text nor a list of token ids; give one of the two") from None
        if not tokens:
            raise UserError(f"{name} is empty; give at least one token id")
        vocabulary = self.target.config.vocab_size
        if not all(0 <= token < vocabulary for token in tokens):
            raise UserError(f"{name} holds a token id outside 0..{vocabulary - 1}; use the model's own tokenizer")
        return tokens


def _checked_inputs(inputs: Any) -> Iterable:
    """UserError: no list of inputs. Bytes and mappings are iterable, but never meant."""
    if isinstance(inputs, (bytes, bytearray, Mapping)) or not isinstance(inputs, Iterable):
        raise UserError(f"the input is of type {type(inputs).__name__}; give a text, a list of texts, or a list of lists of "
                        "token ids")
    return inputs


def _half_pair(text: str) -> int | None:
    """Where a text has half of a surrogate pair, which no encoding can write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _strings(stop_strings: str | Sequence[str] | None) -> tuple[str, ...]:
    return (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings or ())
