"""OpenAI's routes: completions, chat completions and models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from foredraft.engine.runtime.requests import Progress, Result
from foredraft.server import translate
from foredraft.server.answers import (
    Choice,
    event,
    event_stream,
    log_usage,
    timestamp,
    unless_disconnected,
    usage,
)
from foredraft.server.engine import Engine, Generation
from foredraft.server.errors import ApiError, json_response
from foredraft.server.outputs import Outputs, outputs_of, plan
from foredraft.server.schemas import ChatRequest, CompletionRequest, OpenAIFields
from foredraft.server.text import StopCutter, TextStream


class Completions:
    """The response format of /v1/completions."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def choice(self, index: int, choice: Choice, text: str) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": self.logprobs(choice.tokens) if choice.tokens else None,
                "finish_reason": choice.finish_reason}

    def first(self, index: int) -> dict[str, Any] | None:
        """A chunk that precedes the text of a stream; None is none."""
        return None

    def delta(self, index: int, text: str, tokens: list[dict[str, Any]], finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": self.logprobs(tokens) if tokens else None,
                "finish_reason": finish_reason}

    def logprobs(self, tokens: list[dict[str, Any]]) -> dict[str, Any]:
        return {"tokens": [token["token"] for token in tokens], "token_logprobs": [token["logprob"] for token in tokens],
                "top_logprobs": [{top["token"]: top["logprob"] for top in token["top"]} for token in tokens],
                "text_offset": [token["offset"] for token in tokens]}


class Chat:
    """The response format of /v1/chat/completions."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, index: int, choice: Choice, text: str) -> dict[str, Any]:
        return {"index": index, "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": self.logprobs(choice.tokens) if choice.tokens else None, "finish_reason": choice.finish_reason}

    def first(self, index: int) -> dict[str, Any] | None:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def delta(self, index: int, text: str, tokens: list[dict[str, Any]], finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta": {"content": text} if text or not finish_reason else {},
                "logprobs": self.logprobs(tokens) if tokens else None, "finish_reason": finish_reason}

    def logprobs(self, tokens: list[dict[str, Any]]) -> dict[str, Any]:
        def one(token: dict[str, Any]) -> dict[str, Any]:
            return {"token": token["token"], "logprob": token["logprob"], "bytes": list(token["token"].encode())}

        return {"content": [one(token) | {"top_logprobs": [one(top) for top in token["top"]]} for token in tokens],
                "refusal": None}


def routes(engine: Engine) -> APIRouter:
    """The routes of one engine."""
    router, settings, started = APIRouter(), engine.settings, timestamp()
    limit = engine.source_limit

    async def answer(request: Request, body: OpenAIFields, prompts: list, own: dict[str, Any], form: Any,
                     best_of: int | None = None) -> Response:
        translate.check_model(body.model, settings)
        outputs = plan(engine, own, body.n, best_of, body.stream)
        if (count := len(prompts) * max(outputs.samples, outputs.num_beams)) > settings.max_choices:
            raise ApiError(400, f"the request asks for {count} sequences, the server's limit is {settings.max_choices}; "
                           "send several requests", "n", "invalid_value")
        if body.stream_options is not None and not body.stream:
            raise ApiError(400, "stream_options needs stream=true", "stream_options", "invalid_value")
        translate.check_settings(engine, own)
        sources = [translate.source_of(engine.model, prompt, "the prompt" if index == 0 else f"prompt {index + 1}", limit,
                                       body.truncate_prompt_tokens) for index, prompt in enumerate(prompts)]
        copies = [source for source in sources for _ in range(outputs.samples)]
        each = [own | seed for seed in translate.seeds(body.seed, len(copies))]
        stops = [] if body.include_stop_str_in_output or body.stop is None else (
            [body.stop] if isinstance(body.stop, str) else body.stop)
        choices = [Choice(TextStream(engine.model.tokenizer), StopCutter(stops))
                   for _ in range(len(sources) * outputs.count)]
        head = {"id": f"{form.prefix}-{uuid4().hex}", "object": form.chunk_kind if body.stream else form.kind,
                "created": timestamp(), "model": settings.name}
        generation = Generation(engine, copies, each, body.stream)
        if body.stream:
            return await streamed(request, body, generation, outputs, sources, choices, head, form)
        try:
            results = await unless_disconnected(request, generation.results())
        finally:
            generation.close()
        found = []
        decoded, kept = outputs.choose(results)
        for index, (choice, result) in enumerate(zip(choices, kept, strict=True)):
            choice.complete(result)
            found.append(form.choice(index, choice, choice.text)
                         | ({"details": {"pieces": choice.pieces, "stats": choice.stats}} if body.details else {}))
        log_usage(request, sources, decoded)
        return json_response(head | {"choices": found, "usage": usage(sources, decoded), "system_fingerprint": None})

    async def streamed(request: Request, body: OpenAIFields, generation: Generation, outputs: Outputs, sources: list,
                       choices: list[Choice], head: dict[str, Any], form: Any) -> Response:
        begun: set[int] = set()
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        blank = {"usage": None} if with_usage else {}

        def chunk(choice: dict[str, Any]) -> dict[str, Any]:
            return head | {"choices": [choice]} | blank

        def begin(index: int) -> Iterator[dict[str, Any]]:
            if index not in begun:
                begun.add(index)
                if (first := form.first(index)) is not None:
                    yield chunk(first)

        def chunks(index: int, found: Progress | Result) -> Iterator[dict[str, Any]]:
            if isinstance(found, Progress):
                yield from begin(index)
                text, pieces, tokens = choices[index].add(found)
                if text or tokens or (body.details and pieces):
                    yield chunk(form.delta(index, text, tokens, None)
                                | ({"details": {"pieces": pieces}} if body.details else {}))
                return
            for number, output in enumerate(outputs_of(found), index * outputs.of_ticket):
                yield from begin(number)
                choice = choices[number]
                # a beam search has no progress: the whole text is in this chunk
                rest = choice.finish(output) if outputs.num_beams == 1 else choice.complete(output).text
                pieces = [] if outputs.num_beams == 1 else choice.pieces
                details = {"details": {"pieces": pieces, "stats": choice.stats}} if body.details else {}
                yield chunk(form.delta(number, rest, [], choice.finish_reason) | details)

        def end() -> Iterator[bytes]:
            decoded = [choice.result for choice in choices if choice.result is not None]
            log_usage(request, sources, decoded)
            if with_usage:
                yield event(head | {"choices": [], "usage": usage(sources, decoded)})
            yield b"data: [DONE]\n\n"

        return await event_stream(request, generation, chunks, end)

    @router.post("/v1/completions")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Complete one prompt or several; a prompt is the encoder's text."""
        return await answer(request, body, translate.prompts_of(body.prompt), translate.completion_settings(body),
                            Completions(), body.best_of)

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """Answer the user's last message."""
        text = translate.chat_text(body, settings.prefix)
        return await answer(request, body, [text], translate.chat_settings(body), Chat())

    def card() -> dict[str, Any]:
        model = engine.model
        return {"id": settings.name, "object": "model", "created": started, "owned_by": "foredraft", "max_model_len": limit,
                "foredraft": {"drafter": model.drafter.name, "prefix": settings.prefix, "max_tokens": settings.max_tokens,
                              "num_beams": engine.most_beams, "weights": model.target.weights.stored, "dtype": model.dtype}}

    @router.get("/v1/models")
    async def models() -> Response:
        """The list of models, which has one entry."""
        return json_response({"object": "list", "data": [card()]})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """The model, if it has this name."""
        translate.check_model(name, settings)
        return json_response(card())

    return router
