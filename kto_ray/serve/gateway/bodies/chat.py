"""POST /v1/chat/completions: what it takes, and what the gateway makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from kto_ray.config import Config
from kto_ray.records.completions import ExternalRef, Message
from kto_ray.serve.gateway.bodies import headers as named
from kto_ray.serve.gateway.bodies import limits
from kto_ray.serve.gateway.bodies.headers import header
from kto_ray.serve.gateway.bodies.messages import ChatMessage, normalised
from kto_ray.serve.gateway.bodies.parameters import Parameters, forces, sent
from kto_ray.serve.gateway.bodies.schema import Body, NameOrEmpty, checked
from kto_ray.serve.gateway.errors import ApiError, short

DEFAULT_SYSTEM = "default"


@dataclass(frozen=True, slots=True)
class ChatAsk:
    """A chat request as the engine is asked and as it is logged."""

    model: str
    messages: tuple[Message, ...]
    stream: bool
    wants_usage: bool  # the client asked for the usage chunk of a stream
    user: str | None  # as claimed
    task: str | None
    external: ExternalRef | None
    params: dict[str, Any]  # the engine's, logged with the completion
    forced: bool = False  # the client forced or biased the words

    def upstream(self, name: str) -> dict[str, Any]:
        """The engine's request of this name. The row needs the token ids, and of a stream the usage at its end."""
        asked = {**self.params, "messages": list(self.messages), "request_id": name, "return_token_ids": True}
        return {**asked, "stream": True, "stream_options": {"include_usage": True}} if self.stream else asked


class StreamOptions(Body):
    ignored: ClassVar[frozenset[str]] = frozenset({"include_obfuscation", "continuous_usage_stats"})
    include_usage: bool | None = None


class ChatBody(Parameters):
    """POST /v1/chat/completions: OpenAI's request, and what of vLLM's is served."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=limits.MESSAGES)
    model: NameOrEmpty | None = Field(
        None, description="policy (A/B-routed, the default), policy@champion, policy@base or a version"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: NameOrEmpty | None = Field(None, description="a stable, opaque id: makes the A/B test sticky")
    safety_identifier: NameOrEmpty | None = Field(None, description="comes before user")


def parse_chat(body: dict[str, Any], headers: Mapping[str, str], config: Config) -> ChatAsk:
    """Check a chat request whole, before anything is generated.

    Raises:
        ApiError: 400 that names the field.
    """
    if (n := body.get("n")) is not None and (n is True or n != 1):
        raise ApiError(400, f"n must be 1: each completion is judged by itself, got {short(n)}", param="n")
    parsed = checked(ChatBody, body)
    params = sent(parsed, min(config.serve.max_output_tokens, config.model.max_model_len))
    messages = normalised(parsed.messages)
    if params.get("continue_final_message") and messages[-1]["role"] != "assistant":
        words = "continue_final_message needs a last message of role assistant: the begun answer"
        raise ApiError(400, words, "continue_final_message")
    return ChatAsk(
        model=parsed.model or config.model.served_name,
        messages=messages,
        stream=bool(parsed.stream),
        wants_usage=parsed.stream_options is not None and bool(parsed.stream_options.include_usage),
        user=parsed.safety_identifier or parsed.user or header(headers, named.USER),
        task=header(headers, named.TASK),
        external=external(headers),
        params=params,
        forced=forces(params),
    )


def external(headers: Mapping[str, str]) -> ExternalRef | None:
    """How another system names this answer.

    Raises:
        ApiError: 400 that names the header.
    """
    conversation, message = header(headers, named.CONVERSATION), header(headers, named.MESSAGE)
    system = header(headers, named.SYSTEM) or DEFAULT_SYSTEM
    return ExternalRef(system, conversation, message) if conversation and message else None
