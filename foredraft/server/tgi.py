"""The routes of Hugging Face's text-generation-inference: /generate, /generate_stream and /."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from foredraft.engine.runtime.requests import Progress, Result
from foredraft.server import translate
from foredraft.server.answers import Choice, event_stream, log_usage, unless_disconnected
from foredraft.server.engine import Engine, Generation
from foredraft.server.errors import ApiError, json_response
from foredraft.server.outputs import plan
from foredraft.server.schemas import GenerateParameters, GenerateRequest
from foredraft.server.text import StopCutter, TextStream

ROUTES = ("/", "/generate", "/generate_stream")
# TGI's default of max_new_tokens
NEW_TOKENS = 100


def finish_reason(result: Result, end_token: int) -> str:
    """TGI's finish_reason."""
    if result.finish_reason != "stop":
        return "length"
    return "eos_token" if result.token_ids and result.token_ids[-1] == end_token else "stop_sequence"


def routes(engine: Engine) -> APIRouter:
    """The routes of one engine."""
    router, settings = APIRouter(), engine.settings
    limit = engine.source_limit
    tokenizer, end_token = engine.model.tokenizer, engine.model.target.end_token
    special = set(tokenizer.get_added_tokens_decoder()) if tokenizer is not None else set()

    def new_choice() -> Choice:
        # TGI's texts include the stop string
        return Choice(TextStream(tokenizer), StopCutter([]))

    def token(entry: dict[str, Any]) -> dict[str, Any]:
        return {"id": entry["id"], "text": entry.get("piece", entry["token"]), "logprob": entry["logprob"],
                "special": entry["id"] in special}

    def details(choice: Choice, p: GenerateParameters) -> dict[str, Any]:
        found = {"finish_reason": finish_reason(choice.result, end_token), "generated_tokens": len(choice.result.token_ids),
                 "seed": p.seed, "prefill": [], "tokens": [token(entry) for entry in choice.tokens]}
        if p.top_n_tokens:
            found["top_tokens"] = [[token(top) for top in entry["top"]] for entry in choice.tokens]
        return found

    async def answer(request: Request, body: GenerateRequest, is_streamed: bool) -> Response:
        p = body.parameters or GenerateParameters()
        own = translate.generate_settings(p)
        own.setdefault("max_new_tokens", min(NEW_TOKENS, settings.max_tokens))
        if p.details or is_streamed or p.top_n_tokens:
            own["logprobs"] = p.top_n_tokens or 0
        if (p.best_of or 1) == 1:
            # TGI has no beams, whatever the checkpoint's own settings are
            own["num_beams"] = 1
        outputs = plan(engine, own, 1, p.best_of, is_streamed)
        translate.check_settings(engine, own)
        # like TGI, truncate a long input only if the request sets `truncate`
        source = translate.source_of(engine.model, body.inputs, "inputs", limit, p.truncate)
        generation = Generation(engine, [source] * outputs.samples,
                                [own | seed for seed in translate.seeds(p.seed, outputs.samples)], is_streamed)
        if is_streamed:
            return await streamed(request, generation, p, source, new_choice())
        try:
            results = await unless_disconnected(request, generation.results())
        finally:
            generation.close()
        decoded, (best,) = outputs.choose(results)
        choice = new_choice().complete(best)
        log_usage(request, [source], decoded)
        found: dict[str, Any] = {"generated_text": choice.text}
        if p.details:
            found["details"] = details(choice, p)
            others = [new_choice().complete(one) for one in decoded if one is not best]
            if others:
                found["details"]["best_of_sequences"] = [{"generated_text": one.text} | details(one, p) for one in others]
        return json_response(found)

    async def streamed(request: Request, generation: Generation, p: GenerateParameters, source: list[int],
                       choice: Choice) -> Response:
        count = 0
        last: dict[str, Any] | None = None

        def events(_index: int, found: Progress | Result) -> Iterator[dict[str, Any]]:
            # the event of the last token also has the complete text, so each event is sent one token later
            nonlocal count, last
            if isinstance(found, Progress):
                _text, _pieces, tokens = choice.add(found)
                for entry in tokens:
                    if last is not None:
                        yield last
                    count += 1
                    last = {"index": count, "token": token(entry), "generated_text": None, "details": None}
                    if p.top_n_tokens:
                        last["top_tokens"] = [token(top) for top in entry["top"]]
                return
            choice.finish(found)
            log_usage(request, [source], [found])
            if last is not None:
                yield last | {"generated_text": choice.text, "details": {
                    "finish_reason": finish_reason(found, end_token), "generated_tokens": len(found.token_ids),
                    "input_length": len(source), "seed": p.seed}}

        return await event_stream(request, generation, events, lambda: iter(()), ApiError.tgi_body)

    @router.post("/generate")
    async def generate(request: Request, body: GenerateRequest) -> Response:
        """Generate a text; `stream=true` returns server-sent events."""
        return await answer(request, body, body.stream)

    @router.post("/generate_stream")
    async def generate_stream(request: Request, body: GenerateRequest) -> Response:
        """Generate a text as server-sent events."""
        return await answer(request, body, True)

    @router.post("/")
    async def root(request: Request, body: GenerateRequest) -> Response:
        """As /generate; huggingface_hub's client posts to the root."""
        return await answer(request, body, body.stream)

    return router
