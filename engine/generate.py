"""The door for programs: load(...) a model, .generate(...) texts or ids."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from foredraft.engine.checkpoint import find_checkpoint, weights_hash
from foredraft.engine.config import DecodeConfig
from foredraft.engine.cuda_weights import load_cuda_weights
from foredraft.engine.decode import Drafter, decode
from foredraft.engine.drafters import make_drafter
from foredraft.engine.graph import GraphRounds
from foredraft.engine.state import DecodeState
from foredraft.engine.stats import DecodeStats
from foredraft.engine.stops import StopStrings
from foredraft.engine.stopwatch import Stopwatch
from foredraft.engine.t5 import T5
from foredraft.engine.t5_cuda import T5Cuda
from foredraft.engine.t5_weights import load_tokenizer, load_weights
from foredraft.errors import UserError
from foredraft.kernels.backend import HAS_TRITON
from foredraft.kernels.philox import row_seed

EMBEDDED_TARGET = Path(__file__).resolve().parent.parent / "assets" / "target"


@dataclass
class Output:
    """token_ids: without the start token, with the end token when it was emitted; origins: who proposed each id (an
    index into state.ORIGINS, 0 is the target); texts: decoded, None entries when the model has no tokenizer."""

    texts: list[str | None] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    origins: list[list[int]] = field(default_factory=list)
    stats: DecodeStats = field(default_factory=DecodeStats)
    warnings: list[str] = field(default_factory=list)


def load(path: str | Path | None = None, drafter: str | Path | Drafter | None = "lookup", device: str = "cpu",
         dtype: str = "float32", weights: str | None = None) -> Model:
    """A T5 checkpoint directory or hub id, ready to generate; without a path the embedded reference family.

    drafter: "lookup", "ngram" (the embedded table), "ngram:PATH", the folder of a trained drafter (LSTM, CNN, T5), None for
    plain decoding, or a Drafter.
    device: "cpu", or "cuda" (compute capability 8.0 or more): rounds run there as captured graphs (graph.py).
    dtype: of the embedding and the encoder, float32 or bfloat16. weights: storage of the decoder's matrices, "fp32", "bf16"
    or "int8" (quantised at load); by default as the checkpoint holds them. Arithmetic accumulates in float32.
    """
    check_device(device)
    folder = find_checkpoint(EMBEDDED_TARGET if path is None else path)
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
        self.drafter = make_drafter(drafter, target.weights, path, tokenizer, str(target.device))
        self.graphs = GraphRounds() if isinstance(target, T5Cuda) else None

    @property
    def source_limit(self) -> int | None:
        """Source ids that the checkpoint says it takes (config.json, n_positions), or None."""
        return self.target.config.source_limit

    def with_drafter(self, drafter: str | Path | Drafter | None) -> Model:
        """The same weights and caches with another drafter."""
        return Model(self.target, self.tokenizer, drafter, self.path, self.dtype)

    def describe(self) -> dict:
        """What records say of a model: path name, weights hash, dtype, parameters, drafter, threads."""
        from foredraft.kernels.backend import get_num_threads

        return {"model": self.path.name, "hash": weights_hash(self.path), "dtype": self.dtype,
                "weights": self.target.weights.stored,
                "parameters": self.target.weights.parameters(), "drafter": self.drafter.name,
                "threads": get_num_threads()}

    def generate(self, inputs: str | Sequence[str] | Sequence[Sequence[int]], *, max_new_tokens: int = 128,
                 draft_tokens: int = 5, do_sample: bool = False, temperature: float = 1.0, top_k: int = 0,
                 top_p: float = 1.0, seed: int | Sequence[int] | None = None,
                 stop_strings: str | Sequence[str] | None = None, streamer: Any = None, batch_size: int = 8,
                 max_source: int | None = None) -> Output:
        """Texts, or id lists that end as the model expects (T5: `</s>`), to an Output in the same order.

        The arguments are DecodeConfig's; seeds in a list, int64, are one for each input, whatever its place in the call.
        A streamer has transformers' put(ids) and end() and takes a single input.
        """
        stops = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings or ())
        own_seeds = None if seed is None or isinstance(seed, int) else list(seed)
        config = DecodeConfig(max_new_tokens, draft_tokens, do_sample, temperature, top_k, top_p,
                              seed if own_seeds is None else None, stops, batch_size, max_source)
        output = Output()
        sources = self._sources([inputs] if isinstance(inputs, str) else list(inputs), config, output.warnings)
        if streamer is not None and len(sources) != 1:
            raise UserError(f"a streamer takes one input, not {len(sources)}; call generate once for each")
        if config.stop_strings and self.tokenizer is None:
            raise UserError(f"{self.path}: stop_strings need a tokenizer; put tokenizer.json beside config.json")
        if own_seeds is None:
            call_seed = secrets.randbits(63) if seed is None else seed
            own_seeds = [row_seed(call_seed, row) for row in range(len(sources))]
        if len(own_seeds) != len(sources):
            raise UserError(f"{len(own_seeds)} seeds for {len(sources)} inputs; give one seed, or one for each input")
        device = self.target.device
        with torch.inference_mode(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            for start in range(0, len(sources), batch_size):
                part = slice(start, start + batch_size)
                self._batch(sources[part], own_seeds[part], config, streamer, output)
        if streamer is not None:
            streamer.end()
        return output

    def _batch(self, sources: list[Tensor], seeds: list[int], config: DecodeConfig, streamer: Any, output: Output) -> None:
        """Decode some rows of a call together and append them to the output."""
        began = perf_counter()
        clock = Stopwatch()
        B, rows, device = len(sources), range(len(sources)), self.target.device
        limit = config.max_new_tokens + 1
        width = 0 if self.drafter.name == "none" else config.draft_tokens
        self.target.reserve(B, limit, width, max(len(source) for source in sources))
        encoded = self.target.admit(rows, sources)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        clock.add("encode", began)
        self.drafter.admit(rows, sources, encoded)

        def column(value: float) -> Tensor:
            return torch.full((B,), value, device=device)

        state = DecodeState(
            limits=column(limit), draft_tokens=column(width),
            temperature=column(config.temperature if config.do_sample else 0.0), top_k=column(config.top_k),
            top_p=column(config.top_p),
            seeds=torch.tensor(seeds, dtype=torch.int64, device=device),
            start_token=self.target.start_token, end_token=self.target.end_token, width=self.target.config.d_model)
        look = self._after_round(state, config, streamer)
        if self.graphs is not None:
            state = self.graphs.decode(state, self.target, self.drafter, look, in_step=bool(config.stop_strings))
        else:
            decode(state, clock.watch(self.target, {"decode": "verify", "choose": "verify", "logits": "verify"}),
                   clock.watch(self.drafter, {"draft": "draft"}), look)
        self.target.release(rows)
        self.drafter.release(rows)
        seconds = {part: clock.seconds.get(part, 0.0) for part in ("encode", "draft", "verify")}
        seconds["total"] = perf_counter() - began
        seconds["other"] = seconds["total"] - sum(seconds[part] for part in ("encode", "draft", "verify"))
        output.stats.add(state, seconds)
        tokens, origins = state.tokens.cpu(), state.origin.cpu()
        for row, length in enumerate(state.lengths.tolist()):
            output.token_ids.append(tokens[row, 1:length].tolist())
            output.origins.append(origins[row, 1:length].tolist())
            output.texts.append(self._text(output.token_ids[-1]))

    def _after_round(self, state: DecodeState, config: DecodeConfig, streamer: Any):
        """The host's look between rounds, or None when nobody asks for it."""
        stops = StopStrings(config.stop_strings, self._text) if config.stop_strings else None
        if stops is None and streamer is None:
            return None
        sent = 0

        def look(state: DecodeState) -> None:
            nonlocal sent
            if stops is not None:
                stops.cut(state)
            if streamer is not None:
                length = int(state.lengths[0])
                streamer.put(state.tokens[0, sent:length].cpu().clone())
                sent = length

        if streamer is not None:
            # transformers sends the prompt first; for an encoder-decoder that is the start token
            look(state)
        return look

    def _text(self, ids: list[int]) -> str | None:
        return None if self.tokenizer is None else self.tokenizer.decode(ids, skip_special_tokens=True)

    def _sources(self, inputs: list, config: DecodeConfig, warnings: list[str]) -> list[Tensor]:
        """Checked and cut id vectors [S_i]."""
        limit = config.max_source or self.source_limit
        sources = []
        for index, item in enumerate(inputs):
            ids = self._ids(index, item)
            if limit is not None and len(ids) > limit:
                warnings.append(f"input {index + 1} has {len(ids)} tokens; the first {limit} were read, "
                                f"{len(ids) - limit} were cut (the limit is {limit})")
                ids = ids[: limit - 1] + [self.target.end_token]
            sources.append(torch.tensor(ids, dtype=torch.int64))
        return sources

    def _ids(self, index: int, item: Any) -> list[int]:
        if isinstance(item, str):
            if not item.strip():
                raise UserError(f"input {index + 1} is empty; give some text")
            if self.tokenizer is None:
                raise UserError(f"{self.path}: tokenizer.json is missing, so texts cannot be read; add it or pass ids")
            return self.tokenizer.encode(item).ids
        ids = [int(token) for token in item]
        if not ids:
            raise UserError(f"input {index + 1} is empty; give at least one id")
        vocabulary = self.target.config.vocab_size
        if not all(0 <= token < vocabulary for token in ids):
            raise UserError(f"input {index + 1} holds an id outside 0..{vocabulary - 1}; use the model's own tokenizer")
        return ids
