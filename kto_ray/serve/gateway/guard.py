"""Who may pass: one table of routes and scopes, in front of them all."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from fastapi import Request
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Asked

from kto_ray.feedback import tokens
from kto_ray.records.keys import STRANGER, Principal, Scope
from kto_ray.serve.gateway.arriving import Arrivals
from kto_ray.serve.gateway.door import Door
from kto_ray.serve.gateway.errors import ApiError, answer, later, request_line, short
from kto_ray.serve.gateway.limits import Full, Limits, Meter
from kto_ray.serve.gateway.principals import who_asks

TOKEN_HEADER = tokens.HEADER
ACT_HEADER = "x-kto-act"  # a page of another origin sends none of its own without asking first


@dataclass(frozen=True, slots=True)
class Rule:
    """What a route demands: one of the scopes, and what shows that no page sent the request behind a person's back."""

    scopes: frozenset[Scope]
    open: bool = False  # to everybody
    token: bool = False  # TOKEN_HEADER in place of a key: the route looks whether it is good
    json: bool = False  # its body is application/json, which no form sends
    act: bool = False  # it changes something and has no body: ACT_HEADER, or a key
    meters: tuple[Meter, Meter] | None = None  # what counts it, of a key and of a user


CHATS, FEEDBACK = (Meter.CHATS, Meter.CHATS_OF_USER), (Meter.FEEDBACK, Meter.FEEDBACK_OF_USER)
_judges = frozenset({Scope.FEEDBACK, Scope.REVIEWER})
_open = Rule(frozenset(), open=True)
_names = Rule(frozenset({Scope.CHAT}))
_chat = Rule(frozenset({Scope.CHAT}), json=True, meters=CHATS)
_judge = Rule(_judges, json=True, meters=FEEDBACK)
_judge_own = Rule(_judges, json=True, token=True, meters=FEEDBACK)
_withdraw = Rule(_judges, act=True, meters=FEEDBACK)
_see = Rule(frozenset({Scope.ADMIN}))
_act = Rule(frozenset({Scope.ADMIN}), act=True)

TABLE: Mapping[str, Rule] = {
    "POST /v1/chat/completions": _chat,
    "POST /v1/completions": _chat,
    "POST /v1/responses": _chat,
    "GET /v1/models": _names,
    "GET /v1/models/{}": _names,
    "POST /v1/feedback": _judge_own,
    "DELETE /v1/feedback/{}": _withdraw,
    "GET /v1/feedback/held": _see,
    "POST /v1/feedback/{}/{}": _act,
    "POST /feedback": _judge,
    "POST /api/public/ingestion": _judge,
    "POST /api/public/scores": _judge,
    "DELETE /api/public/scores/{}": Rule(_judges, meters=FEEDBACK),  # Langfuse's clients send no header of ours
    "GET /v1/completions/{}": _see,
    "DELETE /v1/completions/{}": _act,
    "GET /v1/lineage/{}": _see,
    "GET /v1/loop": _see,
    "GET /v1/loop/rounds/{}": _see,
    "POST /v1/loop/run": _act,
    "POST /v1/loop/abort": _act,
    "GET /v1/adapters": _see,
    "GET /v1/rollout": _see,
    "POST /v1/rollout/{}": _act,
    "DELETE /v1/users/{}": _act,
    "GET /metrics": _see,
    "GET /openapi.json": _see,
    "GET /healthz": _open,
    "GET /readyz": _open,
}
NOBODY = Rule(frozenset())  # of a route that is not in the table
ABSENT = Rule(frozenset(Scope))  # no route answers; whoever has a key may learn that


class Guard:
    """Stands in front of all routes, leaves `request.state.principal` and `key` to them, and counts."""

    def __init__(self, app: ASGIApp, door: Door, limits: Limits) -> None:
        self._app, self._door, self._limits = app, door, limits
        self._arrivals = Arrivals(limits.config)

    async def __call__(self, scope: Asked, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        try:
            rule = rule_of(scope["app"].routes, scope)
            who, key = self._admit(request, rule)
            chats = rule.meters is CHATS
            request.state.principal, request.state.key, request.state.rule = who, key, rule
            request.state.limits = self._limits
            request.state.arrivals = self._arrivals
            if rule.meters is not None:
                self._count(who, rule.meters)
            if chats:  # before its body is read, which is much for a chat that cannot begin
                _refuse(self._limits, self._limits.full(who.name), who)
        except ApiError as error:
            await answer(error)(scope, receive, send)
            return
        if chats:
            await self._chat(request, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _chat(self, request: Request, scope: Asked, receive: Receive, send: Send) -> None:
        with ExitStack() as under_way:
            request.state.under_way = under_way

            async def watched(message: Message) -> None:
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    under_way.close()  # before the client can know, who may ask again at once
                await send(message)

            await self._app(scope, receive, watched)

    def _admit(self, request: Request, rule: Rule) -> tuple[Principal, str | None]:
        """Who asks, where they may, and the public id of their key.

        Raises:
            ApiError: 401, 403 and 415, with what is missing.
        """
        by_token = rule.token and TOKEN_HEADER in request.headers
        try:
            who, key = who_asks(self._door.config, self._door.view.keys, request)
        except ApiError:
            if not rule.open and not by_token:
                raise
            who, key = STRANGER, None
        if rule.open:
            return who, key
        if not by_token and not rule.scopes & who.scopes:
            words = f"needs a key with the scope {' or '.join(sorted(rule.scopes)) or 'that no key has'}"
            raise ApiError(403, f"{short(request_line(request.scope))} {words}", code="insufficient_scope")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if rule.json and kind != "application/json":
            words = f"Content-Type must be application/json, got {short(kind)}"
            raise ApiError(415, words, "Content-Type", "unsupported_media_type")
        if rule.act and key is None and ACT_HEADER not in request.headers:
            words = "send the header X-Kto-Act: 1, which shows that no other page asks"
            raise ApiError(403, words, "X-Kto-Act", "act_header_missing")
        return who, key

    def _count(self, who: Principal, meters: tuple[Meter, Meter]) -> None:
        if who.name:  # neither this machine's own nor a stranger
            _measure(self._limits, meters[1] if _of_proxy(who.name) else meters[0], who.name)


def begin_chat(request: Request) -> None:
    """Count a chat as under way until its answer has ended: one that is valid, for a body on its way costs no engine.

    Raises:
        ApiError: 429 and 503, too many are.
    """
    who: Principal = request.state.principal
    limits: Limits = request.state.limits
    _refuse(limits, limits.begin(who.name), who)
    request.state.under_way.callback(limits.end, who.name)


def user_of(request: Request, claimed: str | None) -> str | None:
    """The user of a request that claims one, counted.

    Raises:
        ApiError: 429, this user's requests are too many; 401, it came by a feedback token, whose user is the token's.
    """
    who: Principal = request.state.principal
    if who is STRANGER:
        raise ApiError(401, "the feedback token is not valid", TOKEN_HEADER, "invalid_feedback_token")
    user, meters = who.user(claimed), request.state.rule.meters
    if who.vouches and user is not None and meters is not None:
        _measure(request.state.limits, meters[1], user)
    return user


def count_holder(request: Request, holder: str, principal: str | None) -> None:
    """Count a request by a feedback token: of whoever holds it, and of the principal that asked for its answer, whose
    limit is not dodged by handing tokens out. Where that sends the request itself, it is counted already.

    Raises:
        ApiError: 429.
    """
    limits: Limits = request.state.limits
    _measure(limits, Meter.FEEDBACK_OF_USER, holder)
    if principal is not None and principal != request.state.principal.name and not _of_proxy(principal):
        _measure(limits, Meter.FEEDBACK, principal)


def named(method: str, path: str) -> str:
    """A route's name in the table; `path` is its pattern."""
    return f"{'GET' if method == 'HEAD' else method} {re.sub(r'{[^}]*}', '{}', path)}"


def rule_of(routes: list[BaseRoute], asked: Asked) -> Rule:
    """The rule of the route that will answer."""
    for route in routes:
        if route.matches(asked)[0] is Match.FULL:
            return TABLE.get(named(asked["method"], getattr(route, "path", "")), NOBODY)
    return ABSENT


def _of_proxy(principal: str) -> bool:
    """Whether it is a user whom a proxy names; keys are of names without "/"."""
    return "/" in principal


def _measure(limits: Limits, meter: Meter, name: str) -> None:
    wait_s = limits.wait_s(meter, name, time.monotonic())
    if wait_s > 0:
        most = getattr(limits.config, meter.value)
        raise later(429, math.ceil(wait_s), f"{short(name)} may send {most} a minute (limits.{meter.value})")


def _refuse(limits: Limits, full: Full | None, who: Principal) -> None:
    match full:
        case Full.PRINCIPAL:
            most = limits.config.chats_at_once
            raise later(429, 1, f"{most} chats of {short(who.name)} are under way (limits.chats_at_once)")
        case Full.GATEWAY:
            raise later(503, 1, "too many chats wait for the model")
