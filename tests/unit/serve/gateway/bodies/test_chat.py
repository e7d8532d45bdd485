"""A chat request: who asks, and where."""

from __future__ import annotations

from typing import Any

from kto_ray.config import Config
from kto_ray.records.completions import ExternalRef
from kto_ray.serve.gateway.bodies import parse_chat


def chat(**body: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}], **body}


def test_who_and_where() -> None:
    headers = {"x-kto-user-id": "h", "x-kto-task": "title", "x-kto-chat-id": "c", "x-kto-message-id": "m"}
    ask = parse_chat(chat(model="policy@base", stream=True, temperature=0.5), headers, Config())
    assert (ask.user, ask.task, ask.external) == ("h", "title", ExternalRef("default", "c", "m"))
    assert (
        ask.stream and ask.model == "policy@base" and ask.params == {"temperature": 0.5, "max_completion_tokens": 256}
    )
    assert parse_chat(chat(user="u"), headers, Config()).user == "u"
    assert parse_chat(chat(user="u", safety_identifier="s"), headers, Config()).user == "s"
    anonymous = parse_chat(chat(), {}, Config())
    assert anonymous.user is None and anonymous.external is None and anonymous.model == "policy"


def test_no_name_is_the_default_of_the_config() -> None:
    config = Config.model_validate({"model": {"served_name": "tutor"}})
    for body in (chat(), chat(model=None), chat(model=""), chat(user=None), chat(user="")):
        ask = parse_chat(body, {"x-kto-user-id": "", "x-kto-chat-id": "c"}, config)
        assert (ask.model, ask.user, ask.external) == ("tutor", None, None)


def test_a_stream_always_ends_with_its_usage() -> None:
    ask = parse_chat(chat(stream=True, stream_options={"include_usage": False}), {}, Config())
    assert not ask.wants_usage and ask.upstream("r")["stream_options"] == {"include_usage": True}
    assert "stream_options" not in parse_chat(chat(), {}, Config()).upstream("r")
