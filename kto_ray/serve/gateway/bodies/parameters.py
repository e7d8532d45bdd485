"""What a client may ask of the engine: every parameter that passes, with its type and range; no other does. Pure.

An answer whose words the client forced or biased is no judgement on the policy: `forces` says so of a request, and such
a completion is kept apart for good (it never trains and counts in no arm). What only sharpens or flattens the policy's
own distribution (temperature, top_p, top_k, min_p, of which 0 and 1 give its likeliest words) is free; a penalty moves
the tokens that are in the prompt or the answer already, so it is free only as far as it keeps off repetition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from kto_ray.serve.gateway.bodies import limits
from kto_ray.serve.gateway.bodies.schema import Body, Name, NameOrEmpty
from kto_ray.serve.gateway.errors import ApiError, short

Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
# As small as this it is the likeliest word alone, and much below it is 0 in the samplers' fp32; 0 the engine refuses.
TopP = Annotated[float, Field(ge=1e-6, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stop = Annotated[str, Field(min_length=1, max_length=limits.NAME)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,7}$")]

# Beyond these a penalty forces words: below, the tokens of the prompt are said again and again; above, none of them is.
REPETITION = (1.0, 1.5)

BEAMS = "is of beam search, which answers with words that the policy would not have chosen; leave it out"
FORCED = "forces the words of an answer in ways that are not served here; use response_format"
INSIDE = "is of the engine's inside; leave it out"
MEDIA = "is of images, sound or files, and only text is served here; leave it out"
TEMPLATE = "would change how the policy reads a chat; use messages, or chat_template_kwargs"
OLD_TOOLS = "is OpenAI's old way; use tools and tool_choice"
IDS = "is the gateway's own: what was read and said is kept with the completion; leave it out"

REFUSED: dict[str, str] = {
    **dict.fromkeys(("best_of", "use_beam_search", "length_penalty", "early_stopping"), BEAMS),
    **dict.fromkeys(("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"), FORCED),
    **dict.fromkeys(("guided_decoding_backend", "guided_whitespace_pattern", "structural_tag", "grammar"), FORCED),
    **dict.fromkeys(("allowed_token_ids", "bad_words", "thinking_token_budget", "watermarking"), FORCED),
    **dict.fromkeys(("priority", "kv_transfer_params", "ec_transfer_params", "vllm_xargs", "cache_salt"), INSIDE),
    **dict.fromkeys(("request_id", "session_id", "stream_interval", "repetition_detection"), INSIDE),
    **dict.fromkeys(("routed_experts_prompt_start", "prompt_logprobs", "logprob_token_ids"), INSIDE),
    **dict.fromkeys(("mm_processor_kwargs", "media_io_kwargs", "mm_payload", "return_mm_kwargs", "audio"), MEDIA),
    **dict.fromkeys(("chat_template", "documents", "add_special_tokens", "echo"), TEMPLATE),
    **dict.fromkeys(("truncate_prompt_tokens", "truncation_side"), TEMPLATE),
    **dict.fromkeys(("return_token_ids", "return_tokens_as_token_ids", "return_prompt_text"), IDS),
    "return_token_offsets": IDS,
    **dict.fromkeys(("functions", "function_call"), OLD_TOOLS),
    "web_search_options": "asks for a search of the web, which this service does not do; leave it out",
}


class JsonSchema(Body):
    name: Name
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class FunctionOf(Body):
    ignored: ClassVar[frozenset[str]] = frozenset({"cache_control"})
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    ignored: ClassVar[frozenset[str]] = frozenset({"cache_control"})
    type: Literal["function"]
    function: FunctionOf


class Chosen(Body):
    name: Name


class NamedTool(Body):
    type: Literal["function"]
    function: Chosen


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")] | Annotated[NamedTool, Tag("<tool>")],
    Discriminator(lambda value: "<tool>" if isinstance(value, dict | NamedTool) else "<word>"),
]
StopStrings = Annotated[
    Annotated[NameOrEmpty, Tag("<one>")] | Annotated[list[Stop], Field(max_length=limits.STOPS), Tag("<several>")],
    Discriminator(lambda value: "<several>" if isinstance(value, list) else "<one>"),
]
Argument = Annotated[
    Annotated[bool, Tag("<flag>")] | Annotated[int | float, Tag("<number>")] | Annotated[NameOrEmpty, Tag("<text>")],
    Discriminator(lambda value: {bool: "<flag>", int: "<number>", float: "<number>"}.get(type(value), "<text>")),
]


class Parameters(Body):
    """Of OpenAI's parameters and vLLM's, those that are served."""

    # What changes nothing here: how OpenAI bills, stores, caches or routes. `n` and `best_of` have their own words.
    ignored: ClassVar[frozenset[str]] = frozenset(
        {
            "store",
            "metadata",
            "service_tier",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "prediction",
            "verbosity",
            "spaces_between_special_tokens",
        }
    )
    refused: ClassVar[Mapping[str, str]] = REFUSED

    # How the policy's own distribution is sampled: free.
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: TopP | None = None
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: Penalty | None = Field(None, description="below 0 it forces words")
    frequency_penalty: Penalty | None = Field(None, description="below 0 it forces words")
    repetition_penalty: float | None = Field(None, gt=0, le=10, description="1 to 1.5; beyond, it forces words")
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)

    # Where it ends. The row keeps the reason, and an end that the policy did not choose is not taught.
    max_tokens: Tokens | None = Field(None, description="max_completion_tokens comes before it")
    max_completion_tokens: Tokens | None = Field(None, description="serve.max_output_tokens where none is given")
    stop: StopStrings | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] | None = Field(None, max_length=limits.STOPS)
    include_stop_str_in_output: bool | None = None

    # What it is asked with: part of the prompt.
    tools: list[Tool] | None = Field(None, max_length=limits.TOOLS)
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    chat_template_kwargs: dict[Name, Argument] | None = Field(None, max_length=limits.TEMPLATE_ARGUMENTS)

    # What is told of it.
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include_reasoning: Literal[True] | None = Field(None, description="token ids are kept of all that was said")
    skip_special_tokens: Literal[True] | None = Field(None, description="special tokens are no text")
    n: Literal[1] | None = Field(None, description="each completion is judged by itself")
    modalities: list[Literal["text"]] | None = None

    # What forces or biases its words: served, and `forces` says so.
    logit_bias: dict[TokenId, Bias] | None = Field(None, max_length=limits.BIASES)
    response_format: ResponseFormat | None = None
    tool_choice: ToolChoice | None = None
    min_tokens: int | None = Field(None, ge=0, le=2**31 - 1)
    ignore_eos: bool | None = None
    continue_final_message: bool | None = Field(None, description="the last message is the begun answer")
    add_generation_prompt: bool | None = Field(None, description="false only with continue_final_message")


# Arguments of the template's renderer: they would do what REFUSED keeps out.
RESERVED = frozenset(
    {"chat_template", "tokenize", "tools", "documents", "messages", "conversation", "add_generation_prompt"}
    | {"continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"}
    | {"return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs", "load_audio_from_video"}
)
NOT_SENT = ("n", "modalities", "skip_special_tokens", "include_reasoning")  # they only say what is the case anyway


def sent(parameters: Parameters, limit: int) -> dict[str, Any]:
    """What the engine is sent, and the log keeps.

    Args:
        limit: tokens of an answer whose client names none.

    Raises:
        ApiError: 400 that names the field, where two do not go together.
    """
    said = parameters.model_dump(include=set(Parameters.model_fields), exclude_none=True, by_alias=True)
    for name in NOT_SENT:
        said.pop(name, None)
    if not {"max_tokens", "max_completion_tokens"} & said.keys():
        said["max_completion_tokens"] = limit
    for name in ("logit_bias", "chat_template_kwargs", "stop", "stop_token_ids", "min_tokens"):
        if not said.get(name, True):
            del said[name]  # an empty one says nothing
    _template_arguments(said)
    _tools(said)
    _logprobs(said)
    _begun_answer(said)
    if said.get("min_tokens", 0) > (most := said.get("max_completion_tokens") or said["max_tokens"]):
        raise _wrong("min_tokens", f"must be at most the limit of {most} tokens, got {said['min_tokens']}")
    schema = said.get("response_format", {}).get("json_schema", {})
    if (length := len(repr(schema))) > limits.SCHEMA_CHARACTERS:
        words = f"must have at most {limits.SCHEMA_CHARACTERS} characters, got {length}"
        raise _wrong("response_format.json_schema", words)
    if said.get("response_format", {}).get("type") == "json_schema" and not schema.get("schema"):
        raise _wrong("response_format.json_schema", "must hold a schema where type is json_schema")
    return said


def forces(said: Mapping[str, Any]) -> bool:
    """Whether the client forced or biased the words of the answer, by what `sent` made of its request."""
    least, most = REPETITION
    return bool(
        said.get("logit_bias")
        or not least <= said.get("repetition_penalty", least) <= most
        or min(said.get("presence_penalty", 0), said.get("frequency_penalty", 0)) < 0
        or said.get("ignore_eos")
        or said.get("min_tokens")
        or said.get("continue_final_message")
        or said.get("response_format", {}).get("type", "text") != "text"
        or said.get("tool_choice", "auto") not in ("auto", "none")
    )


def _tools(said: dict[str, Any]) -> None:
    """Agents send an empty list, or a choice among none: both say that there are no tools."""
    if not said.get("tools"):
        said.pop("tools", None)
        said.pop("parallel_tool_calls", None)
        if said.get("tool_choice", "none") not in ("auto", "none"):
            raise _wrong("tool_choice", f"needs tools to choose from, got {short(said['tool_choice'])}")
        said.pop("tool_choice", None)
    elif isinstance(choice := said.get("tool_choice"), dict):
        names = [tool["function"]["name"] for tool in said["tools"]]
        if choice["function"]["name"] not in names:
            raise _wrong("tool_choice", f"names {short(choice['function']['name'])}, which is none of tools")


def _logprobs(said: dict[str, Any]) -> None:
    if said.get("top_logprobs") and not said.get("logprobs"):
        raise _wrong("top_logprobs", "needs logprobs: true")


def _begun_answer(said: dict[str, Any]) -> None:
    prompted = said.pop("add_generation_prompt", None)
    if said.get("continue_final_message"):
        if prompted:
            raise _wrong("add_generation_prompt", "must be false where continue_final_message is true")
        said["add_generation_prompt"] = False
    elif prompted is False:
        raise _wrong("add_generation_prompt", "can be false only where continue_final_message is true")
    else:
        said.pop("continue_final_message", None)


def _template_arguments(said: dict[str, Any]) -> None:
    for name in said.get("chat_template_kwargs", ()):
        if name in RESERVED or name.startswith("return_"):
            raise _wrong(f"chat_template_kwargs.{name}", "is of the renderer, not of the template; leave it out")


def _wrong(param: str, words: str) -> ApiError:
    return ApiError(400, f"{param} {words}", param)
