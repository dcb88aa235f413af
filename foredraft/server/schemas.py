"""The bodies of requests, as pydantic models. Unknown fields are refused, and types are not converted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foredraft.engine.params import MAX_BEAMS, MAX_LENGTH_PENALTY

INT64 = 2**63 - 1
Token = Annotated[int, Field(ge=0, le=INT64)]
Tokens = list[Token]
Count = Annotated[int, Field(ge=0, le=INT64)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Outputs = Annotated[int, Field(ge=1, le=128)]
# every stop string is looked for after every step
Stops = str | Annotated[list[str], Field(max_length=256)]
# JSON has no tuples: their lists are converted, but not the values in them
Biases = list[Annotated[tuple[Tokens, float], Field(strict=False)]]
Decay = Annotated[tuple[Annotated[int, Field(ge=-INT64 - 1, le=INT64)], float], Field(strict=False)]


class Strict(BaseModel):
    """Refuses unknown fields, and values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class EngineFields(Strict):
    """Fields of SamplingParams that are not in OpenAI's requests, with the same names and meanings."""

    max_new_tokens: Annotated[int, Field(ge=1, le=INT64)] | None = None
    draft_tokens: Annotated[int, Field(ge=0, le=64)] | None = None
    do_sample: bool | None = None
    top_k: Count | None = None
    stop_strings: Stops | None = None
    max_length: Count | None = None
    min_length: Count | None = None
    min_new_tokens: Count | None = None
    max_time: Positive | None = None
    eos_token_id: Token | Tokens | None = None
    decoder_start_token_id: Token | None = None
    repetition_penalty: Positive | None = None
    encoder_repetition_penalty: Positive | None = None
    no_repeat_ngram_size: Count | None = None
    encoder_no_repeat_ngram_size: Count | None = None
    bad_words_ids: list[Tokens] | None = None
    suppress_tokens: Tokens | None = None
    begin_suppress_tokens: Tokens | None = None
    forced_bos_token_id: Token | None = None
    forced_eos_token_id: Token | Tokens | None = None
    sequence_bias: Biases | None = None
    exponential_decay_length_penalty: Decay | None = None
    remove_invalid_values: bool | None = None
    renormalize_logits: bool | None = None
    top_h: Share | None = None
    min_p: Share | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    epsilon_cutoff: Share | None = None
    eta_cutoff: Share | None = None
    choices: list[str] | list[Tokens] | None = None
    regex: str | None = None
    json_schema: str | dict[str, Any] | None = None
    num_beams: Annotated[int, Field(ge=1, le=MAX_BEAMS)] | None = None
    length_penalty: Annotated[float, Field(ge=-MAX_LENGTH_PENALTY, le=MAX_LENGTH_PENALTY)] | None = None
    early_stopping: bool | Literal["never"] | None = None
    num_return_sequences: Outputs | None = None


ENGINE_FIELDS = tuple(EngineFields.model_fields)


class StreamOptions(Strict):
    """OpenAI's stream_options."""

    include_usage: bool = False


class OpenAIFields(EngineFields):
    """Fields that completions and chat completions share."""

    model: str | None = None
    n: Outputs | None = None
    seed: Annotated[int, Field(ge=-INT64 - 1, le=INT64)] | None = None
    stop: Stops | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=INT64)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    user: str | None = None
    # extensions of this server; the last two have vLLM's names
    speculative: bool = Field(True, description="False decodes without drafts.")
    details: bool = Field(False, description="Add the proposer of each piece of the text, rejected drafts, and counts.")
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=INT64)] | None = Field(
        None, description="Truncate longer prompts to this many tokens; -1: to the model's limit.")
    include_stop_str_in_output: bool = False


class CompletionRequest(OpenAIFields):
    """POST /v1/completions; the prompt is the encoder's text."""

    prompt: str | list[str] | Tokens | list[Tokens]
    best_of: Outputs | None = None
    echo: bool = False
    suffix: str | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class TextPart(Strict):
    """A text part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class JsonSchema(Strict):
    """OpenAI's named JSON schema."""

    model_config = ConfigDict(populate_by_name=True)
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """The format of the output: text, any JSON object, or JSON of a schema (`value` is TGI's name of the schema)."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    value: dict[str, Any] | None = None


class ChatRequest(OpenAIFields):
    """POST /v1/chat/completions; the encoder reads the system message, or else the prefix, and the user's last message."""

    messages: Annotated[list[Message], Field(min_length=1)]
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT64)] | None = None
    response_format: ResponseFormat | None = None


class Grammar(Strict):
    """TGI's constraint of an output."""

    type: Literal["json", "regex"]
    value: str | dict[str, Any]


class GenerateParameters(Strict):
    """TGI's parameters."""

    adapter_id: str | None = None
    best_of: Outputs | None = None
    decoder_input_details: bool | None = None
    details: bool | None = None
    do_sample: bool | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    grammar: Grammar | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=INT64)] | None = None
    repetition_penalty: Positive | None = None
    return_full_text: bool | None = None
    seed: Annotated[int, Field(ge=0, le=INT64)] | None = None
    stop: Annotated[list[str], Field(max_length=256)] | None = None
    temperature: Annotated[float, Field(gt=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=1, le=INT64)] | None = None
    top_n_tokens: Annotated[int, Field(ge=0, le=20)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    truncate: Annotated[int, Field(ge=1, le=INT64)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    watermark: bool | None = None


class GenerateRequest(Strict):
    """POST /generate, in TGI's shape."""

    inputs: str
    parameters: GenerateParameters | None = None
    stream: bool = False
