"""Translates the fields of a request to source tokens and to fields of SamplingParams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foredraft.engine.arguments import merge
from foredraft.engine.generate import Model
from foredraft.engine.inputs import tokens_of
from foredraft.engine.params import SamplingParams
from foredraft.errors import UserError
from foredraft.kernels.core.philox import request_seed
from foredraft.server.engine import Engine
from foredraft.server.errors import ApiError
from foredraft.server.schemas import ENGINE_FIELDS, ChatRequest, CompletionRequest, GenerateParameters, OpenAIFields
from foredraft.server.settings import ServerSettings

# names that clients send without knowing the model: "tgi" in TGI's documentation, "dummy" in huggingface_hub
PLACEHOLDERS = ("tgi", "dummy")


def refuse(param: str, message: str) -> ApiError:
    return ApiError(400, f"{param} {message}", param, "unsupported_parameter")


def check_model(name: str | None, settings: ServerSettings) -> None:
    """ApiError 404: the request names another model."""
    if name is not None and name not in (settings.name, *PLACEHOLDERS):
        raise ApiError(404, f"this server has no such model; it serves {settings.name!r}", "model", "model_not_found")


def prompts_of(prompt: str | list) -> list[str | list[int]]:
    """The prompts of a completion, each a text or a list of tokens."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    if not prompt:
        raise ApiError(400, "prompt is empty; give a text", "prompt", "invalid_value")
    return prompt


def source_of(model: Model, item: str | Sequence[int], name: str, limit: int | None, truncate: int | None) -> list[int]:
    """The tokens of a prompt. truncate: the length to truncate to; -1 is `limit`, None refuses a longer prompt."""
    try:
        tokens = tokens_of(name, item, model.tokenizer, model.target.config.vocab_size, model.path)
    except UserError as error:
        # clients do not receive messages that name a file
        message = str(error) if str(error).startswith(name) else f"{name} cannot be read; this model has no tokenizer"
        raise ApiError(400, message, "prompt", "invalid_value") from None
    most = limit
    if truncate is not None and truncate >= 0:
        most = truncate if limit is None else min(truncate, limit)
        if most < 2:
            raise ApiError(400, f"truncate_prompt_tokens is {truncate}; give at least 2", "truncate_prompt_tokens",
                           "invalid_value")
    if most is None or len(tokens) <= most:
        return tokens
    if truncate is None:
        raise ApiError(400, f"{name} has {len(tokens)} tokens, the limit is {most}; shorten it, or set "
                       "truncate_prompt_tokens", "prompt", "context_length_exceeded")
    end = model.target.end_token
    return tokens[:most] if end < 0 else [*tokens[: most - 1], end]


def common_settings(body: OpenAIFields) -> dict[str, Any]:
    """Settings from the fields that completions and chat completions share."""
    settings = {name: value for name in ENGINE_FIELDS if (value := getattr(body, name)) is not None}
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(body, name):
            raise refuse(name, "is not supported; use repetition_penalty")
    for name, other, value in (("max_tokens", "max_new_tokens", body.max_tokens), ("stop", "stop_strings", body.stop)):
        if value is None:
            continue
        if other in settings:
            raise ApiError(400, f"{name} and {other} are given; give one of them", name, "invalid_value")
        settings[other] = value
    if body.logit_bias:
        if "sequence_bias" in settings:
            raise ApiError(400, "logit_bias and sequence_bias are given; give one of them", "logit_bias", "invalid_value")
        settings["sequence_bias"] = [([_token(name)], bias) for name, bias in body.logit_bias.items()]
    if not body.speculative:
        if settings.get("draft_tokens"):
            raise ApiError(400, "draft_tokens and speculative=false contradict each other; give one of them", "speculative",
                           "invalid_value")
        settings["draft_tokens"] = 0
    settings |= sampling(body.temperature, body.top_p, settings)
    return settings


def _token(name: str) -> int:
    if not (name.isascii() and name.isdigit()) or len(name) > 18:
        raise ApiError(400, "logit_bias has a key that is not a token id; give whole numbers", "logit_bias", "invalid_value")
    return int(name)


def sampling(temperature: float | None, top_p: float | None, settings: dict[str, Any]) -> dict[str, Any]:
    """do_sample, temperature and top_p. A temperature above 0 or a sampling filter turns sampling on."""
    found = {} if top_p is None else {"top_p": top_p}
    if temperature == 0:
        if settings.get("do_sample"):
            raise ApiError(400, "do_sample and temperature 0 contradict each other; give one of them", "temperature",
                           "invalid_value")
        return found | {"do_sample": False}
    if temperature is not None:
        found["temperature"] = temperature
    filters = ("top_k", "typical_p", "min_p", "top_h", "epsilon_cutoff", "eta_cutoff")
    if "do_sample" not in settings and (found or any(settings.get(name) for name in filters)):
        found["do_sample"] = True
    return found


def completion_settings(body: CompletionRequest) -> dict[str, Any]:
    """Settings of a completion, without the seed."""
    if body.echo:
        raise refuse("echo", "is not supported, because the output of an encoder-decoder has no prompt; leave it out")
    if body.suffix:
        raise refuse("suffix", "is not supported; leave it out")
    return common_settings(body) | ({} if body.logprobs is None else {"logprobs": body.logprobs})


def chat_settings(body: ChatRequest) -> dict[str, Any]:
    """Settings of a chat completion, without the seed."""
    if body.max_completion_tokens is not None:
        if body.max_tokens is not None:
            raise ApiError(400, "max_tokens and max_completion_tokens are given; give one of them",
                           "max_completion_tokens", "invalid_value")
        body = body.model_copy(update={"max_tokens": body.max_completion_tokens})
    settings = common_settings(body)
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs=true", "top_logprobs", "invalid_value")
    if body.logprobs:
        settings["logprobs"] = body.top_logprobs or 0
    if (form := body.response_format) is not None and form.type != "text":
        schema = form.json_schema.schema_ if form.json_schema is not None else form.value
        if schema is None and form.type == "json_schema":
            raise ApiError(400, "response_format has type json_schema and no json_schema; give one", "response_format",
                           "invalid_value")
        if {"json_schema", "regex", "choices"} & settings.keys():
            raise ApiError(400, "response_format and another constraint are given; give one of them", "response_format",
                           "invalid_value")
        settings["json_schema"] = {"type": "object"} if schema is None else schema
    return settings


def chat_text(body: ChatRequest, prefix: str) -> str:
    """The encoder's text of a chat: the system message, or else `prefix`, followed by the user's last message."""
    users = [message for message in body.messages if message.role == "user"]
    if not users:
        raise ApiError(400, "messages has no message of the role user; add one", "messages", "invalid_value")
    system = " ".join(message.text for message in body.messages if message.role in ("system", "developer"))
    return (f"{system} " if system.strip() else prefix) + users[-1].text


def generate_settings(p: GenerateParameters) -> dict[str, Any]:
    """Settings from TGI's parameters, without the seed."""
    for name in ("watermark", "return_full_text", "decoder_input_details", "frequency_penalty", "adapter_id"):
        if getattr(p, name):
            raise refuse(name, "is not supported; leave it out")
    names = ("do_sample", "max_new_tokens", "repetition_penalty", "top_k", "typical_p")
    settings = {name: value for name in names if (value := getattr(p, name)) is not None}
    if p.stop:
        settings["stop_strings"] = p.stop
    if p.grammar is not None:
        if p.grammar.type == "regex" and not isinstance(p.grammar.value, str):
            raise ApiError(400, "grammar of type regex needs a string as value; give a regular expression", "grammar",
                           "invalid_value")
        settings["json_schema" if p.grammar.type == "json" else "regex"] = p.grammar.value
    return settings | sampling(p.temperature, p.top_p, settings)


def merged(engine: Engine, settings: dict[str, Any]) -> SamplingParams:
    """The settings of a sequence with the checkpoint's defaults. ApiError 400: SamplingParams refuses them."""
    try:
        return merge(settings, engine.model.settings)
    except UserError as error:
        raise ApiError(400, str(error), code="invalid_value") from None


def check_settings(engine: Engine, settings: dict[str, Any]) -> None:
    """Set max_new_tokens. ApiError 400: SamplingParams refuses the settings, or one is above the server's limit."""
    limit, drafted = engine.settings.max_tokens, settings.get("draft_tokens", 0)
    if drafted > engine.most_drafted:
        raise ApiError(400, f"draft_tokens is {drafted}, the server's limit is {engine.most_drafted}; give less",
                       "draft_tokens", "invalid_value")
    params = merged(engine, settings)
    is_given = {"max_new_tokens", "max_length"} & settings.keys()
    if params.max_new_tokens > limit and is_given:
        raise ApiError(400, f"max_tokens is {params.max_new_tokens}, the server's limit is {limit}; give less", "max_tokens",
                       "invalid_value")
    # always set: otherwise the stream's default, which is the server's limit, would apply
    settings.pop("max_length", None)
    settings["max_new_tokens"] = min(params.max_new_tokens, limit)


def seeds(seed: int | None, count: int) -> list[dict[str, int]]:
    """The seed of each sequence, derived from one seed as in Model.generate; without a seed they are random."""
    return [{} if seed is None else {"seed": request_seed(seed, index)} for index in range(count)]
