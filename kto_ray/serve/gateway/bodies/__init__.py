"""What requests bring: read within limits, held to schemas of our own, told by the field that is wrong."""

from kto_ray.serve.gateway.bodies.chat import ChatAsk, ChatBody, parse_chat
from kto_ray.serve.gateway.bodies.feedback import FeedbackBody, parse_feedback
from kto_ray.serve.gateway.bodies.reading import parse_json, read_json
from kto_ray.serve.gateway.bodies.responses import ResponsesAsk, ResponsesBody, parse_responses

__all__ = [
    "ChatAsk",
    "ChatBody",
    "FeedbackBody",
    "ResponsesAsk",
    "ResponsesBody",
    "parse_chat",
    "parse_feedback",
    "parse_json",
    "parse_responses",
    "read_json",
]
