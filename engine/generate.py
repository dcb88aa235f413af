"""The door for programs: load(...) a model, .generate(...) texts or ids."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from foredraft import embedded
from foredraft.engine.draft_length.adaptive_drafter import WIDEST, AdaptiveDrafter
from foredraft.engine.drafters.auto import AutoDrafter
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.drafters.registry import make_drafter
from foredraft.engine.models.checkpoint import find_checkpoint, weights_hash
from foredraft.engine.models.kv_cache import pages_of
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_cuda import T5Cuda
from foredraft.engine.models.t5_cuda_weights import load_cuda_weights
from foredraft.engine.models.t5_weights import load_weights
from foredraft.engine.models.tokenizer import load_tokenizer
from foredraft.engine.params import AUTO, DecodeConfig
from foredraft.engine.protocols import Drafter
from foredraft.engine.runtime.cuda_graphs import CapturedSteps
from foredraft.engine.runtime.requests import Job, Request, Result
from foredraft.engine.runtime.scheduler import Scheduler
from foredraft.engine.runtime.static_batches import FixedBatches
from foredraft.engine.runtime.stream import Stream
from foredraft.engine.sampling.stop_strings import StopStrings
from foredraft.engine.stats import DecodeStats
from foredraft.errors import UserError
from foredraft.kernels.core.backend import HAS_TRITON
from foredraft.kernels.core.philox import request_seed


@dataclass
class Output:
    """token_ids: without the start token, with the end token when it was emitted; proposers: who proposed each id (an
    index into state.PROPOSERS, 0 is the target); texts: decoded, None entries when the model has no tokenizer."""

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
    """A T5 checkpoint directory or hub id, ready to generate; without a path the embedded reference family.

    drafter: "lookup", "ngram" (the embedded table), "ngram:PATH", "self:SKIP" (the target's decoder without some sublayers,
    skip.py), the folder of a trained drafter (LSTM, CNN, T5), "tree:SHAPE:NAME" (draft_tree.py), "auto" (draft_auto.py),
    None for plain decoding, or a Drafter.
    device: "cpu", or "cuda" (compute capability 8.0 or more): rounds run there as captured graphs (graph.py).
    dtype: of the embedding and the encoder, float32 or bfloat16. weights: storage of the decoder's matrices, "fp32", "bf16"
    or "int8" (quantised at load); by default as the checkpoint holds them. Arithmetic accumulates in float32.
    """
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
    """A target with a drafter. Calls of one model, and of models that share its weights, take turns: not thread-safe."""

    def __init__(self, target: T5 | T5Cuda, tokenizer: Any, drafter: str | Path | Drafter | None, path: Path, dtype: str):
        self.target, self.tokenizer, self.path, self.dtype = target, tokenizer, path, dtype
        self.drafter = make_drafter(drafter, target, path, tokenizer, str(target.device))
        self.graphs = CapturedSteps() if isinstance(target, T5Cuda) else None

    @cached_property
    def adaptive(self) -> AdaptiveDrafter:
        """The drafter with lengths that adapt; what it has learned stays."""
        return AdaptiveDrafter(self.drafter)

    @property
    def source_limit(self) -> int | None:
        """Source ids that the checkpoint says it takes (config.json, n_positions), or None."""
        return self.target.config.source_limit

    def with_drafter(self, drafter: str | Path | Drafter | None) -> Model:
        """The same weights and caches with another drafter."""
        return Model(self.target, self.tokenizer, drafter, self.path, self.dtype)

    def describe(self) -> dict:
        """What records say of a model: path name, weights hash, dtype, parameters, drafter, threads."""
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
        """Any number of texts, or id lists that end as the model expects (T5: `</s>`), to an Output in the same order.

        The arguments are DecodeConfig's; draft_tokens None is 5, and "auto" of drafter "auto", which always adapts: a number
        is its longest draft. Seeds in a list, int64, are one for each input, whatever its place in the call.
        A streamer has transformers' put(ids) and end() and takes a single input.
        """
        own_seeds = None if seed is None or isinstance(seed, int) else list(seed)
        config = DecodeConfig(max_new_tokens, self._asked(draft_tokens), do_sample, temperature, top_k, top_p,
                              seed if own_seeds is None else None, _strings(stop_strings), batch_size, max_source, kv_memory,
                              verification, big_little)
        inputs = [inputs] if isinstance(inputs, str) else list(inputs)
        if streamer is not None and len(inputs) != 1:
            raise UserError(f"a streamer takes one input, not {len(inputs)}; call generate once for each")
        if own_seeds is not None and len(own_seeds) != len(inputs):
            raise UserError(f"{len(own_seeds)} seeds for {len(inputs)} inputs; give one seed, or one for each input")
        requests = [Request(item, seed=own_seeds and own_seeds[index]) for index, item in enumerate(inputs)]
        # all are checked before the first is decoded
        jobs = list(self._jobs(requests, config, truncation=True))
        for job in jobs:
            if isinstance(job, Result):
                raise job.error
            job.listener = streamer and streamer.put
        began, output = perf_counter(), Output()
        if jobs:
            lengths, seeded = [len(job.source) for job in jobs], seed is not None
            with Stream(lambda: self._scheduler(config, lengths, seeded), iter(jobs), self._text, in_order=True) as stream:
                for result in stream:
                    output.add(result)
                output.stats = stream.stats
        output.stats.close_seconds(perf_counter() - began)
        if streamer is not None:
            streamer.end()
        return output

    def stream(self, requests: Iterable[Request | str | Sequence[int]], *, in_order: bool = False, truncation: bool = True,
               max_new_tokens: int = 128, draft_tokens: int | str | None = None, do_sample: bool = False,
               temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int | None = None,
               stop_strings: str | Sequence[str] | None = None, batch_size: int = 8, max_source: int | None = None,
               kv_memory: int | None = None, verification: str = "token",
               big_little: tuple[float, float] | None = None) -> Stream:
        """Results of any number of requests, as they end or `in_order`; requests are read as room comes free.

        The arguments are generate's and hold for requests that do not say otherwise. Without `truncation` a source
        longer than max_source is an error of its request. Until the stream ends or is closed the model is its own.
        """
        config = DecodeConfig(max_new_tokens, self._asked(draft_tokens), do_sample, temperature, top_k, top_p, seed,
                              _strings(stop_strings), batch_size, max_source, kv_memory, verification, big_little)
        requests = [requests] if isinstance(requests, str) else requests
        return Stream(lambda: self._scheduler(config, None, True), self._jobs(requests, config, truncation), self._text,
                      in_order)

    def _scheduler(self, config: DecodeConfig, lengths: list[int] | None, seeded: bool) -> Scheduler | FixedBatches:
        """lengths: of all sources, where they are known. seeded: whether requests may have seeds of their own."""
        width, drafter = self._draft_tokens(config), self.drafter
        if self.graphs is not None:
            if config.draft_tokens == AUTO or config.big_little is not None or config.kv_memory is not None:
                raise UserError("draft_tokens 'auto', big_little and kv_memory are for the CPU only so far; on a device "
                                "leave them out")
            return FixedBatches(self.target, self.drafter, self.graphs, config.batch_size,
                                block=config.verification == "block")
        if drafter.capabilities.tree_drafts and (config.draft_tokens == AUTO or config.verification == "block"):
            raise UserError(f"draft_tokens 'auto' and verification 'block' are for chains; drafter {drafter.name!r} drafts "
                            "trees: give draft_tokens a number of nodes, and leave verification out")
        if config.big_little is not None and not drafter.capabilities.big_little:
            raise UserError(f"big_little with drafter {drafter.name!r}: its small model is a neural one that drafts alone; "
                            "give lstm, or the folder of a trained LSTM, CNN, head or T5")
        if width == 0:
            drafter = NoDrafter()
        elif config.draft_tokens == AUTO or isinstance(drafter, AutoDrafter):
            drafter = self.adaptive
            drafter.repeatable = seeded
        rows, pages = config.batch_size, None
        if lengths is None:
            longest = config.max_source or self.source_limit
            pages = None if longest is None else rows * pages_of(longest)
        else:
            rows, longest = min(rows, len(lengths)), max(lengths)
            pages = sum(sorted(map(pages_of, lengths))[-rows:])
        return Scheduler(self.target, drafter, rows=rows, max_new_tokens=config.max_new_tokens, draft_tokens=width,
                         longest=longest or 1, pages=pages, kv_memory=config.kv_memory, block=config.verification == "block",
                         big_little=config.big_little)

    def _asked(self, draft_tokens: int | str | None) -> int | str:
        if draft_tokens is not None:
            return draft_tokens
        return AUTO if isinstance(self.drafter, AutoDrafter) else DecodeConfig.draft_tokens

    def _draft_tokens(self, config: DecodeConfig) -> int:
        if self.drafter.name == "none":
            return 0
        return WIDEST if config.draft_tokens == AUTO else config.draft_tokens

    def _jobs(self, requests: Iterable[Request | str | Sequence[int]], config: DecodeConfig,
              truncation: bool) -> Iterator[Job | Result]:
        """Each request checked; a Result with the error of one that cannot be decoded."""
        call_seed = secrets.randbits(63) if config.seed is None else config.seed
        for index, request in enumerate(requests):
            request = request if isinstance(request, Request) else Request(request)
            try:
                yield self._job(index, request, config, request_seed(call_seed, index), truncation)
            except UserError as error:
                yield Result(index, request.id, "error", error=error)

    def _job(self, index: int, request: Request, config: DecodeConfig, seed: int, truncation: bool) -> Job:
        own = {name: getattr(request, name) for name in (
            "max_new_tokens", "draft_tokens", "do_sample", "temperature", "top_k", "top_p")}
        own = {name: value for name, value in own.items() if value is not None}
        if request.stop_strings is not None:
            own["stop_strings"] = _strings(request.stop_strings)
        if own.get("draft_tokens") == AUTO != config.draft_tokens:
            raise UserError("draft_tokens 'auto' is for a whole stream: open it so; a request's number is then its longest "
                            "draft")
        config = replace(config, **own) if own else config
        if config.stop_strings and self.tokenizer is None:
            raise UserError(f"{self.path}: stop_strings need a tokenizer; put tokenizer.json beside config.json")
        name = f"input {index + 1}" if request.id is None else str(request.id)
        seed = seed if request.seed is None else request.seed
        if not isinstance(seed, Integral) or not -(2**63) <= seed < 2**63:
            raise UserError(f"{name} has seed {seed!r}; give an int64")
        ids, warnings = self._ids(name, request.input), []
        limit = config.max_source or self.source_limit
        if limit is not None and len(ids) > limit:
            if not truncation:
                raise UserError(f"{name} has {len(ids)} tokens, the limit is {limit}; shorten it, or raise max_source")
            warnings.append(f"{name} has {len(ids)} tokens; the first {limit} were read, {len(ids) - limit} were cut (the "
                            f"limit is {limit})")
            ids = ids[: limit - 1] + [self.target.end_token]
        stops = StopStrings(config.stop_strings, self._text) if config.stop_strings else None
        return Job(index, request.id, torch.tensor(ids, dtype=torch.int64), config, self._draft_tokens(config), int(seed),
                   warnings, stops)

    def _text(self, ids: list[int]) -> str | None:
        return None if self.tokenizer is None else self.tokenizer.decode(ids, skip_special_tokens=True)

    def _ids(self, name: str, item: Any) -> list[int]:
        if isinstance(item, str):
            if not item.strip():
                raise UserError(f"{name} is empty; give some text")
            if self.tokenizer is None:
                raise UserError(f"{self.path}: tokenizer.json is missing, so texts cannot be read; add it or pass ids")
            return self.tokenizer.encode(item).ids
        try:
            ids = [int(token) for token in item]
        except (TypeError, ValueError):
            raise UserError(f"{name} is neither a text nor a list of ids; give one of the two") from None
        if not ids:
            raise UserError(f"{name} is empty; give at least one id")
        vocabulary = self.target.config.vocab_size
        if not all(0 <= token < vocabulary for token in ids):
            raise UserError(f"{name} holds an id outside 0..{vocabulary - 1}; use the model's own tokenizer")
        return ids


def _strings(stop_strings: str | Sequence[str] | None) -> tuple[str, ...]:
    return (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings or ())
