"""The messages of a chat: their schema, and the one form in which they are sent to the engine and logged. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from kto_ray.records.completions import Message
from kto_ray.serve.gateway.bodies import limits
from kto_ray.serve.gateway.bodies.reading import inspect
from kto_ray.serve.gateway.bodies.schema import Body, Name
from kto_ray.serve.gateway.errors import ApiError, short

# Notes that SDKs and proxies keep with an answer (ours, or OpenAI's) and send back with the history: what they parsed
# of it, where it came from, what may be cached. They are in neither the prompt nor the log.
NOTES = frozenset(
    {"id", "index", "status", "phase", "annotations", "logprobs", "cache_control", "prompt_cache_breakpoint"}
    | {"parsed", "parsed_arguments", "reasoning_details", "thinking_blocks"}
    | {"provider_specific_fields", "provider_data", "extra_content"}
    | {"namespace", "async", "caller", "created_by"}
)


class TextPart(Body):
    ignored: ClassVar[frozenset[str]] = NOTES
    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _text(cls, data: Any) -> Any:
        """An unknown part is told as a whole: which of its fields is wrong depends on what it was meant to be."""
        data = of_refusal(data, "text")
        if not isinstance(data, dict) or data.get("type") != "text" or not isinstance(data.get("text"), str):
            raise PydanticCustomError("part", 'must be {"type": "text", "text": "..."}: no other part is read here')
        return data


def of_refusal(part: Any, kind: str) -> Any:
    """A part in which OpenAI's model refused, as the text that it is; any other part as it is."""
    if isinstance(part, dict) and part.get("type") == "refusal" and isinstance(part.get("refusal"), str):
        return {"type": kind, "text": part["refusal"]}
    return part


def _branch(content: Any) -> str | None:
    return "<text>" if isinstance(content, str) else "<parts>" if isinstance(content, list) else None


Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[TextPart], Field(min_length=1), Tag("<parts>")],
    Discriminator(
        _branch,
        custom_error_type="content",
        custom_error_message="must be a text or a list of text parts",
    ),
]


class Function(Body):
    ignored: ClassVar[frozenset[str]] = NOTES
    name: Name
    arguments: str = Field(description="JSON text, as the model wrote it")


class ToolCall(Body):
    ignored: ClassVar[frozenset[str]] = NOTES - {"id"}
    id: Name
    type: Literal["function"] = "function"
    function: Function


class Turn(Body):
    """What all messages have."""

    ignored: ClassVar[frozenset[str]] = NOTES
    name: Name | None = None


class Told(Turn):
    role: Literal["system", "developer", "user"]
    content: Content

    @field_validator("role", mode="before")
    @classmethod
    def _known(cls, role: Any) -> Any:
        if role == "function":
            words = "role function is OpenAI's old one; use role tool with the tool_call_id of the call"
            raise PydanticCustomError("role", words)
        if role not in ("system", "developer", "user"):
            raise PydanticCustomError("role", "must be system, developer, user, assistant or tool")
        return role


class Answered(Turn):
    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: str | None = Field(
        None, description="what it said in place of a content: taken as one where there is none"
    )
    reasoning: str | None = Field(None, description="what it thought; some templates show it")
    reasoning_content: str | None = Field(None, description="an older name of reasoning")


class ToolResult(Turn):
    role: Literal["tool"]
    content: Content
    tool_call_id: Name = Field(description="the call that it answers")


def _speaker(message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else getattr(message, "role", None)
    return "<answered>" if role == "assistant" else "<result>" if role == "tool" else "<told>"


ChatMessage = Annotated[
    Annotated[Told, Tag("<told>")] | Annotated[Answered, Tag("<answered>")] | Annotated[ToolResult, Tag("<result>")],
    Discriminator(_speaker),
]


def normalised(messages: list[ChatMessage]) -> tuple[Message, ...]:
    """The messages as they are sent and logged.

    Raises:
        ApiError: 400 that names the message's field.
    """
    told = tuple(_normal(message, f"messages[{number}]") for number, message in enumerate(messages))
    characters = sum(_characters(message) for message in told)
    if characters > limits.CHARACTERS:
        words = f"messages must hold at most {limits.CHARACTERS} characters together, got {characters}; shorten them"
        raise ApiError(400, words, "messages")
    return told


def _normal(message: ChatMessage, where: str) -> Message:
    said = message.model_dump(exclude_none=True)
    for number, call in enumerate(said.get("tool_calls", ())):
        _readable(call["function"]["arguments"], f"{where}.tool_calls[{number}].function.arguments")
    if not said.get("tool_calls"):
        said.pop("tool_calls", None)
    if (refusal := said.pop("refusal", None)) and not said.get("content"):
        said["content"] = refusal
    if reasoning := said.pop("reasoning_content", None):
        said.setdefault("reasoning", reasoning)
    return said


def _readable(arguments: str, where: str) -> None:
    """The engine reads them before it renders them. What is no JSON it takes as {}; what is too much ends it."""
    try:
        read = json.loads(arguments)
    except json.JSONDecodeError:
        return
    except (ValueError, RecursionError):
        words = f"{where} holds a number of too many digits, or is nested too deep; got {short(arguments)}"
        raise ApiError(400, words, where) from None
    inspect(read, where)


def _characters(message: Mapping[str, Any]) -> int:
    content = message.get("content") or ""
    texts = [content] if isinstance(content, str) else [part["text"] for part in content]
    texts += [call["function"]["arguments"] for call in message.get("tool_calls", ())]
    return sum(map(len, texts)) + len(message.get("reasoning", ""))
