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
from kto_ray.serve.gateway.bodies.schema import Body, Name, short
from kto_ray.serve.gateway.errors import ApiError


class TextPart(Body):
    ignored: ClassVar[frozenset[str]] = frozenset({"annotations", "cache_control", "logprobs"})
    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _text(cls, data: Any) -> Any:
        """An unknown part is told as a whole: which of its fields is wrong depends on what it was meant to be."""
        if not isinstance(data, dict) or data.get("type") != "text" or not isinstance(data.get("text"), str):
            raise PydanticCustomError("part", 'must be {"type": "text", "text": "..."}: no other part is read here')
        return data


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
    name: Name
    arguments: str = Field(description="JSON text, as the model wrote it")


class ToolCall(Body):
    ignored: ClassVar[frozenset[str]] = frozenset({"index"})
    id: Name
    type: Literal["function"] = "function"
    function: Function


class ChatMessage(Body):
    """One message. What SDKs dump with it (nulls, annotations) is left out, of the prompt and of the log."""

    ignored: ClassVar[frozenset[str]] = frozenset({"annotations", "cache_control", "id", "parsed"})
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Name | None = None
    tool_calls: list[ToolCall] | None = Field(None, description="of role assistant")
    tool_call_id: Name | None = Field(None, description="of role tool: the call that it answers")
    reasoning: str | None = Field(None, description="of role assistant; some templates show it")
    reasoning_content: str | None = Field(None, description="an older name of reasoning")

    @field_validator("role", mode="before")
    @classmethod
    def _current(cls, role: Any) -> Any:
        if role == "function":
            words = "role function is OpenAI's old one; use role tool with the tool_call_id of the call"
            raise PydanticCustomError("role", words)
        return role


OF_ROLES = {
    "tool_calls": "assistant",
    "reasoning": "assistant",
    "reasoning_content": "assistant",
    "tool_call_id": "tool",
}


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
    for field, role in OF_ROLES.items():
        if getattr(message, field) and message.role != role:
            words = f"{where}.{field} belongs to a message of role {role}, not {message.role}"
            raise ApiError(400, words, f"{where}.{field}")
    if message.role == "tool" and message.tool_call_id is None:
        words = f"{where}.tool_call_id is missing; a message of role tool names the call that it answers"
        raise ApiError(400, words, f"{where}.tool_call_id")
    if message.content is None and message.role != "assistant":
        raise ApiError(400, f"{where}.content must be a text or a list of text parts, got none", f"{where}.content")
    for number, call in enumerate(message.tool_calls or []):
        _readable(call.function.arguments, f"{where}.tool_calls[{number}].function.arguments")
    said = message.model_dump(exclude_none=True)
    if not said.get("tool_calls"):
        said.pop("tool_calls", None)
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
