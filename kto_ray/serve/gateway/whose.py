"""Whose judgement a request brings: its principal's user, a reviewer's, or that of who holds the token of an answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from fastapi import Request

from kto_ray.config import Config
from kto_ray.feedback import tokens
from kto_ray.feedback.quarantine import DAY_S
from kto_ray.feedback.tokens import BadToken, Claim
from kto_ray.records.feedback import Feedback, FeedbackKind
from kto_ray.records.keys import Key, Principal, Scope
from kto_ray.serve.gateway.errors import ApiError

HOUR_S = DAY_S / 24


def principal_of(request: Request) -> Principal:
    """As the guard left it."""
    found: Principal = request.state.principal
    return found


def token_headers(
    config: Config, completion_id: str, user: str | None, principal: str | None, key: str | None = None
) -> Mapping[str, str]:
    """What an answer carries, for a browser to judge it by."""
    expires_at = time.time() + config.feedback.token_hours * HOUR_S
    claim = Claim(completion_id, user, principal, expires_at, key)
    return {tokens.HEADER: tokens.sign(config.salt, claim)}


def claim_of(config: Config, known: Mapping[str, Key], request: Request) -> Claim | None:
    """What the token of a request lets it do; None without one.

    Args:
        known: every key by its public id: what a key handed out ends with it.

    Raises:
        ApiError: 401, the token is none of ours, or over.
    """
    token = request.headers.get(tokens.HEADER)
    if token is None:
        return None
    try:
        claim = tokens.verify(config.salt, token, time.time())
    except BadToken as error:
        raise _bad_token(str(error)) from None
    if claim.key is not None and (claim.key not in known or known[claim.key].revoked_at is not None):
        raise _bad_token("the key by which this answer was asked for was revoked; judge by the application")
    return claim


def carried_at(config: Config, claim: Claim) -> float:
    """When its answer carried a token, in seconds since the epoch."""
    return claim.expires_at - config.feedback.token_hours * HOUR_S


def holder(claim: Claim) -> str:
    """Whom a token is counted as: its user, or where the answer went to nobody in particular, that answer's."""
    return claim.user or claim.completion_id


def by_token(claim: Claim, body: dict[str, object]) -> dict[str, object]:
    """A body that speaks of the token's answer, and of no other, as its user.

    Raises:
        ApiError: 403, it names another.
    """
    mine = {
        "completion_id": body.get("completion_id") in (None, claim.completion_id),
        "user": _is_holder(claim, body.get("user")),
        "external": body.get("external") in (None, {}),
    }
    for field, right in mine.items():
        if not right:
            words = f"{field}: the feedback token is of one answer and its user; leave {field} out"
            raise ApiError(403, words, param=field, code="not_of_this_token")
    return {**body, "completion_id": claim.completion_id, "user": None, "external": None}


def _is_holder(claim: Claim, user: object) -> bool:
    """Whether a body names the token's user: as the store does, or as the application does that vouches for them. What
    the users of one that does not are called counts for nothing, with a token as with its key."""
    if user in (None, "", claim.user):
        return True
    if claim.principal is None or not isinstance(user, str):
        return False
    return claim.user in (claim.principal, f"{claim.principal}/{user}")


def signed(config: Config, event: Feedback, principal: Principal, claim: Claim | None) -> Feedback:
    """An event as its sender may say it. What a signal comes to is decided when it is recorded, by the config."""
    if claim is not None:
        event = replace(event, user=claim.user, principal=claim.principal)
    else:
        reviewer = Scope.REVIEWER in principal.scopes
        event = replace(event, user=principal.user(event.user), principal=principal.name, reviewer=reviewer)
    if event.kind is FeedbackKind.SIGNAL:
        means = config.feedback.signals.get(event.signal.value) if event.signal is not None else None
        event = replace(event, value=None if means is None else means == "up")
    return replace(event, key_owner=_owner(event))


def may_withdraw(principal: Principal, event: Feedback) -> bool:
    """Who sent an event, or an operator. A key that vouches for nobody sent what bears its name."""
    return Scope.ADMIN in principal.scopes or event.principal == principal.name


def _bad_token(words: str) -> ApiError:
    return ApiError(401, words, tokens.HEADER, "invalid_feedback_token")


def _owner(event: Feedback) -> str:
    """Whose an Idempotency-Key is. Who names nobody has it on one answer: others without a name must not meet them."""
    owner = f"{event.principal or ''}/{event.user or ''}"
    if event.user is not None:
        return owner
    ref = event.external
    return f"{owner}/{event.completion_id or (ref and f'{ref.conversation}/{ref.message}')}"[:511]
