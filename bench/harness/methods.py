"""Who competes: a name, and how to build the function that decodes a batch.

`METHODS` is the one list. A factory takes (model, settings, argument) and returns a Method, or raises Absent with the
reason why it cannot run here; nothing is dropped silently. The argument is what follows a colon in the name that was
asked for, as in `ngram:PATH`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from foredraft.bench.harness.settings import Settings
from foredraft.engine.drafters.registry import ENTRIES
from foredraft.errors import UserError

REFERENCE = "plain"


@dataclass(frozen=True)
class Output:
    """One decoded batch: `token_ids` a list per row (without the start token; what follows the end is ignored),
    `seconds` by phase ("encode" always), `stats` and `proposers` the DecodeStats and proposers of a foredraft model, else
    None. `wall`: the seconds of the decoding, where the call did more than decode; else the whole call counts."""

    token_ids: list[list[int]]
    seconds: dict[str, float]
    stats: object | None = None
    wall: float | None = None
    proposers: list[list[int]] | None = None


@dataclass(frozen=True)
class Method:
    """`run(sources, seed)` decodes one batch of source ids. `model` is the foredraft model behind it, if there is one.

    `comparable`: its tokens must equal plain decoding's. False for a sampler with noise of its own; `lossless` if it draws
    from plain decoding's very distribution, so that the seconds of a token compare. `speculates`: a step of another's engine
    may emit several tokens, and it does not tell how many.
    """

    run: Callable[[Sequence[Sequence[int]], int], Output]
    comparable: bool = True
    lossless: bool = False
    speculates: bool = False
    model: object | None = None


class Absent(Exception):
    """A method that cannot run here; the message is the reason."""


def build(name: str, model, settings: Settings) -> Method:
    """The method called `name`, a key of METHODS with an optional `:argument`. UserError: no such method. Absent."""
    key, _, argument = name.partition(":")
    if key not in METHODS and key in ENTRIES:
        # registered by the user
        return _foredraft(key)(model, settings, argument or None)
    if key not in METHODS:
        raise UserError(f"--methods: no method called {key!r}; choose from {', '.join(METHODS)}")
    return METHODS[key](model, settings, argument or None)


def _foredraft(drafter: str | None, draft_tokens: int | None = None):
    def factory(model, settings: Settings, argument: str | None) -> Method:
        spec = f"{drafter}:{argument}" if drafter and argument else drafter
        try:
            drafting = model.with_drafter(spec)
        except UserError as error:
            raise Absent(str(error)) from None

        return drafting_method(drafting, settings, settings.draft_tokens if draft_tokens is None else draft_tokens)

    return factory


def drafting_method(model, settings: Settings, draft_tokens: int | str, **options) -> Method:
    """A foredraft model with its drafter, at K = draft_tokens; further options of generate."""
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

    # drafts that are drawn have noise of their own
    drawn = settings.do_sample and draft_tokens != 0 and not model.drafter.capabilities.point_masses
    return Method(run, comparable=not drawn, lossless=True, model=model)


def _transformers(options: Callable[[Settings], dict], speculates: bool = False, multiple: int = 1):
    """transformers' generate, given the same ids; its encoder is timed on its own and its output handed over.

    `options` adds arguments of generate; the rest of transformers' defaults stay as they are. Sources are padded to a
    `multiple`, so that a compiled model sees few lengths.
    """
    def factory(model, settings: Settings, argument: str | None) -> Method:
        if speculates and settings.batch_size > 1:
            raise Absent("transformers speculates at batch size 1 only")
        extra = options(settings)
        peer = _load_peer(str(model.path), model.dtype, settings.device)
        if assistant := extra.pop("assistant", None):
            extra["assistant_model"] = _load_peer(assistant, model.dtype, settings.device)
        if settings.do_sample:
            extra |= {"do_sample": True, "temperature": settings.temperature, "top_k": 0, "top_p": 1.0}

        import torch

        @torch.inference_mode()
        def run(sources, seed: int) -> Output:
            ids, mask = _pad(sources, peer.device, multiple)
            torch.manual_seed(seed)
            start = time.perf_counter()
            encoded = peer.get_encoder()(input_ids=ids, attention_mask=mask)
            if ids.is_cuda:
                torch.cuda.synchronize()
            encode = time.perf_counter() - start
            out = peer.generate(ids, attention_mask=mask, encoder_outputs=encoded,
                                max_new_tokens=settings.max_new_tokens, **extra)
            return Output(out[:, 1:].tolist(), {"encode": encode})

        return Method(run, comparable=not settings.do_sample, speculates=speculates)

    return factory


def _ctranslate2(compute_type: str):
    """CTranslate2, converted from the same checkpoint. It does not tell its encoder's time, so a second call that stops
    after one token stands for it, one decode step included."""
    def factory(model, settings: Settings, argument: str | None) -> Method:
        from foredraft.bench.harness.ctranslate2_peer import Translator

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


@lru_cache(maxsize=2)
def _load_peer(path: str, dtype: str, device: str):
    """transformers' own model, with a bare generation config: no sampling or penalties of the checkpoint's own."""
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
    """Sources as ids [B, S] int64, padded with 0 on the right to a multiple of `multiple`, and their mask [B, S]."""
    import torch

    longest = -(-max(map(len, sources)) // multiple) * multiple
    ids = torch.tensor([[*source, *[0] * (longest - len(source))] for source in sources], device=device)
    lengths = torch.tensor([len(source) for source in sources], device=device)
    return ids, (torch.arange(longest, device=device) < lengths[:, None]).long()


def _onnxruntime(model, settings: Settings, argument: str | None) -> Method:
    """ONNX Runtime through optimum, exported from the same checkpoint; the encoder is timed by a call of its own."""
    try:
        from optimum.onnxruntime import ORTModelForSeq2SeqLM
    except ImportError as error:
        raise Absent(f"optimum's ONNX Runtime does not import ({error}); pip install 'optimum[onnxruntime]', which wants "
                     "transformers before 4.58 while foredraft wants 5") from None
    import torch

    try:
        peer = ORTModelForSeq2SeqLM.from_pretrained(model.path, export=True)
    except Exception as error:  # whatever the library raises is the reason to report
        raise Absent(f"the export fails: {type(error).__name__}: {' '.join(str(error).split())[:160]}") from None
    extra = {"do_sample": True, "temperature": settings.temperature, "top_k": 0} if settings.do_sample else {}

    @torch.inference_mode()
    def run(sources, seed: int) -> Output:
        ids, mask = _pad(sources, "cpu")
        torch.manual_seed(seed)
        start = time.perf_counter()
        encoded = peer.encoder(input_ids=ids, attention_mask=mask)
        encode = time.perf_counter() - start
        out = peer.generate(input_ids=ids, attention_mask=mask, encoder_outputs=encoded,
                            max_new_tokens=settings.max_new_tokens, **extra)
        return Output(out[:, 1:].tolist(), {"encode": encode})

    return Method(run, comparable=not settings.do_sample)


def _trained(model, settings: Settings, argument: str | None) -> Method:
    if argument is None:
        raise Absent("no trained drafter; name its folder, drafter:PATH, or use --drafters")
    return drafting_method(model.with_drafter(argument), settings, settings.draft_tokens)


def static_compiled() -> dict:
    """Arguments of transformers' generate for a static cache and a compiled decoder."""
    from transformers import CompileConfig

    compiled = CompileConfig(mode="default", fullgraph=False)
    # transformers compiles only on accelerators unless told that this device was meant
    compiled._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": compiled}


def _prompt_lookup(settings: Settings) -> dict:
    return {"prompt_lookup_num_tokens": settings.draft_tokens}


def _assisted(settings: Settings) -> dict:
    if settings.assistant is None:
        raise Absent("no assistant; name a small T5 of the same vocabulary with --assistant PATH")
    return {"assistant": settings.assistant, "num_assistant_tokens": settings.draft_tokens}


METHODS = {
    REFERENCE: _foredraft(None, draft_tokens=0),
    **{name: _foredraft(name) for name, entry in ENTRIES.items() if entry.is_spec and name != "none"},
    "drafter": _trained,
    "hf-greedy": _transformers(lambda settings: {}),
    "hf-static-compiled": _transformers(lambda settings: static_compiled(), multiple=256),
    "hf-prompt-lookup": _transformers(_prompt_lookup, speculates=True),
    "hf-assisted": _transformers(_assisted, speculates=True),
    "ctranslate2": _ctranslate2("float32"),
    "ctranslate2-int8": _ctranslate2("int8"),
    "onnxruntime": _onnxruntime,
}
# Those that say nothing without an argument: drafter:PATH, self:SKIP, tree:SHAPE:NAME.
OF_ARGUMENT = ("drafter", *(name for name, entry in ENTRIES.items() if entry.needs_argument))
# Those that foredraft's own model runs; the others need no more of it than its path.
OURS = (REFERENCE, "drafter", *(name for name in ENTRIES if name in METHODS))
