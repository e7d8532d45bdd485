"""POST /v1/responses: what it takes, and the chat that it asks for. Pure.

It is served without a memory: an input holds the whole conversation, and what would refer to an earlier one is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from kto_ray.config import Config
from kto_ray.serve.gateway.bodies import limits
from kto_ray.serve.gateway.bodies.chat import ChatAsk, parse_chat
from kto_ray.serve.gateway.bodies.messages import NOTES, of_refusal
from kto_ray.serve.gateway.bodies.parameters import Tokens, TopP
from kto_ray.serve.gateway.bodies.schema import Body, Name, NameOrEmpty, checked
from kto_ray.serve.gateway.errors import ApiError

STATELESS = "refers to an earlier answer, and none is kept for that here; send the whole conversation as input"
REFUSED = {
    **dict.fromkeys(("previous_response_id", "conversation"), STATELESS),
    "background": "asks for an answer later, and answers are given at once here; leave it out",
    "prompt": "names a stored prompt, and none are stored here; use instructions and input",
    "top_logprobs": "is told of chats only; use POST /v1/chat/completions",
    "max_tool_calls": "counts tools that the service calls itself, and it calls none; leave it out",
}
# A chat's names of what goes by another name here.
RENAMED = {
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "messages": "input",
}


class InputText(Body):
    ignored: ClassVar[frozenset[str]] = NOTES
    type: Literal["input_text", "output_text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _text(cls, data: Any) -> Any:
        data = of_refusal(data, "output_text")
        told = isinstance(data, dict) and data.get("type") in ("input_text", "output_text")
        if not told or not isinstance(data.get("text"), str):
            words = 'must be {"type": "input_text", "text": "..."} (or output_text): no other part is read here'
            raise PydanticCustomError("part", words)
        return data


Words = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[InputText], Field(min_length=1), Tag("<parts>")],
    Discriminator(
        lambda value: "<text>" if isinstance(value, str) else "<parts>" if isinstance(value, list) else None,
        custom_error_type="content",
        custom_error_message="must be a text or a list of text parts",
    ),
]


class InputMessage(Body):
    ignored: ClassVar[frozenset[str]] = NOTES
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Words


class FunctionCall(Body):
    ignored: ClassVar[frozenset[str]] = NOTES
    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: str


class FunctionCallOutput(Body):
    ignored: ClassVar[frozenset[str]] = NOTES
    type: Literal["function_call_output"]
    call_id: Name
    output: Words


class Reasoning(Body):
    """What a model thought before; it is not read again."""

    ignored: ClassVar[frozenset[str]] = NOTES | {"summary", "content", "encrypted_content"}
    type: Literal["reasoning"]


def _kind(item: Any) -> str | None:
    kind = item.get("type") or "message" if isinstance(item, dict) else getattr(item, "type", None)
    return f"<{kind}>"


Item = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[FunctionCall, Tag("<function_call>")]
    | Annotated[FunctionCallOutput, Tag("<function_call_output>")]
    | Annotated[Reasoning, Tag("<reasoning>")],
    Discriminator(
        _kind,
        custom_error_type="item",
        custom_error_message="must be an item of type message, function_call, function_call_output or reasoning",
    ),
]
Input = Annotated[
    Annotated[str, Field(min_length=1), Tag("<text>")]
    | Annotated[list[Item], Field(min_length=1, max_length=limits.MESSAGES), Tag("<items>")],
    Discriminator(
        lambda value: "<text>" if isinstance(value, str) else "<items>" if isinstance(value, list) else None,
        custom_error_type="input",
        custom_error_message="must be a text or a list of items",
    ),
]


class FunctionTool(Body):
    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(Body):
    type: Literal["function"]
    name: Name


class Format(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class Text(Body):
    ignored: ClassVar[frozenset[str]] = frozenset({"verbosity"})
    format: Format | None = None


class Effort(Body):
    ignored: ClassVar[frozenset[str]] = frozenset({"summary", "generate_summary"})
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class ResponsesBody(Body):
    """POST /v1/responses: OpenAI's request, of which what needs no memory is served."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        {"store", "metadata", "service_tier", "include", "truncation", "stream_options"}
        | {"prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"}
    )
    refused: ClassVar[Mapping[str, str]] = REFUSED
    input: Input
    instructions: str | None = None
    model: NameOrEmpty | None = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: TopP | None = None
    max_output_tokens: Tokens | None = None
    tools: list[FunctionTool] | None = Field(None, max_length=limits.TOOLS)
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("<word>")] | Annotated[NamedFunction, Tag("<tool>")],
            Discriminator(lambda value: "<tool>" if isinstance(value, dict | NamedFunction) else "<word>"),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Effort | None = None
    user: NameOrEmpty | None = None
    safety_identifier: NameOrEmpty | None = None


@dataclass(frozen=True, slots=True)
class ResponsesAsk:
    chat: ChatAsk
    said: dict[str, Any]  # what of the request its answer repeats


def parse_responses(body: dict[str, Any], headers: Mapping[str, str], config: Config) -> ResponsesAsk:
    """Check a request whole, before anything is generated.

    Raises:
        ApiError: 400 that names the field.
    """
    parsed = checked(ResponsesBody, body)
    turns = _turns(parsed)
    messages = [turn.message for turn in turns]
    try:
        chat = parse_chat({**_parameters(parsed), "messages": messages}, headers, config)
    except ApiError as error:
        raise _renamed(error, turns) from None
    return ResponsesAsk(chat, parsed.model_dump(exclude={"input", "stream"}, exclude_none=True, by_alias=True))


@dataclass(frozen=True, slots=True)
class _Turn:
    """A chat's message, and which fields of the request it and its calls are of."""

    message: dict[str, Any]
    origin: str
    calls: list[str] = field(default_factory=list)


def _turns(parsed: ResponsesBody) -> list[_Turn]:
    if isinstance(parsed.input, str):
        turns = [_Turn({"role": "user", "content": parsed.input}, "input")]
    else:
        turns = _of_items(parsed.input)
    if parsed.instructions:
        turns.insert(0, _Turn({"role": "system", "content": parsed.instructions}, "instructions"))
    return turns


def _of_items(items: list[Item]) -> list[_Turn]:
    turns: list[_Turn] = []
    for number, item in enumerate(items):
        origin = f"input[{number}]"
        if isinstance(item, FunctionCall):
            if not turns or turns[-1].message["role"] != "assistant":
                turns.append(_Turn({"role": "assistant", "content": None}, origin))
            turns[-1].message.setdefault("tool_calls", []).append(_call(item))  # what it did in one turn
            turns[-1].calls.append(origin)
        elif not isinstance(item, Reasoning):
            turns.append(_Turn(_message(item), origin))
    if not turns:
        words = "input holds nothing but reasoning, which is not read again; send the messages that it belongs to"
        raise ApiError(400, words, "input")
    return turns


def _message(item: InputMessage | FunctionCallOutput) -> dict[str, Any]:
    if isinstance(item, FunctionCallOutput):
        return {"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)}
    return {"role": item.role, "content": _content(item.content)}


def _content(words: str | list[InputText]) -> str | list[dict[str, str]]:
    return words if isinstance(words, str) else [{"type": "text", "text": part.text} for part in words]


def _call(item: FunctionCall) -> dict[str, Any]:
    return {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}


def _parameters(parsed: ResponsesBody) -> dict[str, Any]:
    alike = {"model", "stream", "temperature", "top_p", "parallel_tool_calls", "user", "safety_identifier"}
    said = parsed.model_dump(include=alike, exclude_none=True)
    said["max_completion_tokens"] = parsed.max_output_tokens
    said["reasoning_effort"] = parsed.reasoning and parsed.reasoning.effort
    said["tools"] = [
        {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
        for tool in parsed.tools or ()
    ]
    choice = parsed.tool_choice
    if isinstance(choice, NamedFunction):
        said["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        said["tool_choice"] = choice
    shape = parsed.text.format if parsed.text else None
    if shape is not None:
        schema = shape.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)
        said["response_format"] = {"type": shape.type, "json_schema": schema or None}
    return said


def _renamed(error: ApiError, turns: list[_Turn]) -> ApiError:
    param = error.param or ""
    places = {
        f"messages[{number}].tool_calls[{nth}].function": origin
        for number, turn in enumerate(turns)
        for nth, origin in enumerate(turn.calls)
    }
    places |= {f"messages[{number}]": turn.origin for number, turn in enumerate(turns)}
    for chats, ours in {**places, **RENAMED}.items():
        if param.startswith(chats):
            renamed = param.replace(chats, ours, 1)
            return ApiError(error.status, str(error).replace(param, renamed), renamed, error.code)
    return error
