"""The methods of a comparison: foredraft's drafters, from their registry, and other engines.

A factory takes (model, settings, argument) and returns a Method, or raises Absent with the reason why it cannot run. The
argument is what follows a colon in the name, as in `ngram:PATH`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from foredraft.bench.harness.settings import Settings
from foredraft.engine.drafters.registry import ENTRIES
from foredraft.engine.params import AUTO
from foredraft.errors import UserError

REFERENCE = "plain"


@dataclass(frozen=True)
class Output:
    """One decoded batch.

    `token_ids`: a list for each sequence, without the start token; tokens after the end token are ignored. `seconds`: by
    phase, "encode" always. `stats`, `proposers`: of a foredraft model, else None. `wall`: seconds of decoding, if the call
    did more.
    """

    token_ids: list[list[int]]
    seconds: dict[str, float]
    stats: object | None = None
    wall: float | None = None
    proposers: list[list[int]] | None = None


@dataclass(frozen=True)
class Method:
    """`run(sources, seed)` decodes one batch of sources. `model`: the foredraft model, if there is one.

    `comparable`: its tokens must equal plain decoding's; false for a sampler with other random numbers. `lossless`: it
    samples from plain decoding's distribution, so that seconds per token compare. `speculates`: another engine whose steps
    may emit several tokens and are not reported.
    """

    run: Callable[[Sequence[Sequence[int]], int], Output]
    comparable: bool = True
    lossless: bool = False
    speculates: bool = False
    model: object | None = None


class Absent(Exception):
    """A method cannot run here; the message is the reason."""


def build(name: str, model, settings: Settings) -> Method:
    """The method `name`, a key of METHODS with an optional `:argument`. Raises Absent, or UserError for an unknown name."""
    key, _, argument = name.partition(":")
    if key not in METHODS and key in ENTRIES:
        # registered by the user
        return _foredraft(key)(model, settings, argument or None)
    if key not in METHODS:
        raise UserError(f"--methods: no method named {key!r}; choose from {', '.join(METHODS)}")
    return METHODS[key](model, settings, argument or None)


def _foredraft(drafter: str | None, draft_tokens: int | str | None = None):
    def factory(model, settings: Settings, argument: str | None) -> Method:
        spec = f"{drafter}:{argument}" if drafter and argument else drafter
        try:
            drafting = model.with_drafter(spec)
        except UserError as error:
            raise Absent(str(error)) from None

        return drafting_method(drafting, settings, settings.draft_tokens if draft_tokens is None else draft_tokens)

    return factory


def drafting_method(model, settings: Settings, draft_tokens: int | str, **options) -> Method:
    """A foredraft model with its drafter at K = draft_tokens; `options` go to generate."""
    def run(sources, seed: int) -> Output:
        out = model.generate(
            [list(source) for source in sources],
            max_new_tokens=settings.max_new_tokens,
            draft_tokens=draft_tokens,
            do_sample=settings.do_sample,
            temperature=settings.temperature if settings.do_sample else 1.0,
            seed=seed,
            batch_size=len(sources),
            **options,
        )
        return Output(out.token_ids, dict(out.stats.seconds), out.stats, proposers=out.proposers)

    # sampled drafts use random numbers of their own
    sampled = settings.do_sample and draft_tokens != 0 and not model.drafter.capabilities.point_masses
    return Method(run, comparable=not sampled, lossless=True, model=model)


def _transformers(options: Callable[[Settings], dict], speculates: bool = False, multiple: int = 1):
    """transformers' generate on the same tokens; the encoder is timed separately and its output is passed on.

    `options` adds arguments of generate; other defaults stay. Sources are padded to a `multiple`, so that a compiled model
    meets few lengths.
    """
    def factory(model, settings: Settings, argument: str | None) -> Method:
        if speculates and settings.batch_size > 1:
            raise Absent("transformers speculates at batch size 1 only")
        extra = options(settings)
        peer = load_peer(str(model.path), _torch_type(model), settings.device)
        if assistant := extra.pop("assistant", None):
            extra["assistant_model"] = load_peer(assistant, _torch_type(model), settings.device)
        return _generating(peer, peer.get_encoder(), settings, extra, multiple, speculates)

    return factory


def _generating(peer, encoder, settings: Settings, extra: dict, multiple: int = 1, speculates: bool = False) -> Method:
    """transformers' `generate` of a model, after a separate call of its encoder; `extra` are further arguments of it."""
    import torch

    if settings.do_sample:
        extra = extra | {"do_sample": True, "temperature": settings.temperature, "top_k": 0, "top_p": 1.0}

    @torch.inference_mode()
    def run(sources, seed: int) -> Output:
        ids, mask = _pad(sources, peer.device, multiple)
        torch.manual_seed(seed)
        start = time.perf_counter()
        encoded = encoder(input_ids=ids, attention_mask=mask)
        if ids.is_cuda:
            torch.cuda.synchronize()
        encode = time.perf_counter() - start
        out = peer.generate(input_ids=ids, attention_mask=mask, encoder_outputs=encoded,
                            max_new_tokens=settings.max_new_tokens, **extra)
        return Output(out[:, 1:].tolist(), {"encode": encode})

    return Method(run, comparable=not settings.do_sample, speculates=speculates)


def _ctranslate2(compute_type: str):
    """CTranslate2, converted from the same checkpoint. It does not report the encoder's time, so a second call that stops
    after one token measures it, one decode step included."""
    def factory(model, settings: Settings, argument: str | None) -> Method:
        from foredraft.bench.harness.peers.ctranslate2_peer import Translator

        translator = Translator(model.path, compute_type)
        extra = {"sampling_topk": 0, "sampling_temperature": settings.temperature} if settings.do_sample else {}

        def run(sources, seed: int) -> Output:
            start = time.perf_counter()
            token_ids = translator(sources, settings.max_new_tokens, **extra)
            middle = time.perf_counter()
            translator(sources, 1, **extra)
            return Output(token_ids, {"encode": time.perf_counter() - middle}, wall=middle - start)

        return Method(run, comparable=not settings.do_sample)

    return factory


def _torch_type(model) -> str:
    """The type of peers' weights: the model's, or float32 beside an encoder in int8."""
    return "float32" if model.dtype == "int8" else model.dtype


@lru_cache(maxsize=2)
def load_peer(path: str, dtype: str, device: str):
    """transformers' model with an empty generation config: no sampling or penalties from the checkpoint."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, GenerationConfig
    from transformers import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        peer = AutoModelForSeq2SeqLM.from_pretrained(path, dtype=getattr(torch, dtype)).to(device).eval()
    except (OSError, ValueError) as error:
        raise Absent(f"transformers cannot load {path}: {' '.join(str(error).split())[:200]}") from None
    config = peer.config
    peer.generation_config = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id, eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    return peer


def _pad(sources: Sequence[Sequence[int]], device, multiple: int = 1):
    """Sources padded with 0 on the right to a multiple of `multiple` [B, S] int64, and their mask [B, S]."""
    import torch

    longest = -(-max(map(len, sources)) // multiple) * multiple
    ids = torch.tensor([[*source, *[0] * (longest - len(source))] for source in sources], device=device)
    lengths = torch.tensor([len(source) for source in sources], device=device)
    return ids, (torch.arange(longest, device=device) < lengths[:, None]).long()


def _onnxruntime(model, settings: Settings, argument: str | None) -> Method:
    """ONNX Runtime through optimum, exported from the same checkpoint; the encoder is timed by a separate call."""
    try:
        from optimum.onnxruntime import ORTModelForSeq2SeqLM
    except ImportError as error:
        raise Absent(f"optimum's ONNX Runtime does not import ({error}); pip install 'optimum[onnxruntime]', which wants "
                     "transformers before 4.58 while foredraft wants 5") from None
    try:
        peer = ORTModelForSeq2SeqLM.from_pretrained(model.path, export=True)
    except Exception as error:  # the library may raise anything; it is reported
        raise Absent(f"the export fails: {type(error).__name__}: {' '.join(str(error).split())[:160]}") from None
    return _generating(peer, peer.encoder, settings, {})


def _trained(model, settings: Settings, argument: str | None) -> Method:
    if argument is None:
        raise Absent("no trained drafter; give drafter:FOLDER, or --drafters FOLDER")
    return drafting_method(model.with_drafter(argument), settings, settings.draft_tokens)


def static_compiled() -> dict:
    """Arguments of transformers' generate for a static cache and a compiled decoder."""
    from transformers import CompileConfig

    compiled = CompileConfig(mode="default", fullgraph=False)
    # by default transformers compiles only on accelerators
    compiled._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": compiled}


def _prompt_lookup(settings: Settings) -> dict:
    return {"prompt_lookup_num_tokens": settings.draft_tokens}


def _assisted(settings: Settings) -> dict:
    if settings.assistant is None:
        raise Absent("no assistant; give a small T5 of the same vocabulary with --assistant PATH")
    return {"assistant": settings.assistant, "num_assistant_tokens": settings.draft_tokens}


METHODS = {
    REFERENCE: _foredraft(None, draft_tokens=0),
    **{name: _foredraft(name) for name, entry in ENTRIES.items() if entry.is_spec and name not in ("none", AUTO)},
    AUTO: _foredraft(AUTO, AUTO),
    "drafter": _trained,
    "hf-greedy": _transformers(lambda settings: {}),
    "hf-static-compiled": _transformers(lambda settings: static_compiled(), multiple=256),
    "hf-prompt-lookup": _transformers(_prompt_lookup, speculates=True),
    "hf-assisted": _transformers(_assisted, speculates=True),
    "ctranslate2": _ctranslate2("float32"),
    "ctranslate2-int8": _ctranslate2("int8"),
    "onnxruntime": _onnxruntime,
}
# methods that need an argument, as in drafter:FOLDER, self:SKIP, tree:SHAPE:NAME
OF_ARGUMENT = ("drafter", *(name for name, entry in ENTRIES.items() if entry.needs_argument))
# methods that foredraft runs; the others need only the checkpoint's path
OURS = (REFERENCE, "drafter", *(name for name in ENTRIES if name in METHODS))
