"""Feedback tokens: what lets a browser judge the one answer that carried it, as its user and for a while. Pure.

A token is its claim in plain sight (base64url of JSON) and an HMAC-SHA256 over it. The key is drawn from the config's
salt, with a label that keeps this use apart from the others.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import asdict, dataclass

HEADER = "x-kto-feedback-token"  # of an answer, and of the feedback on it


@dataclass(frozen=True, slots=True)
class Claim:
    """What a token lets its bearer do: speak of one completion as its user."""

    completion_id: str
    user: str | None
    principal: str | None  # whose key asked for the answer
    expires_at: float  # seconds since the epoch
    key: str | None = None  # public id of the key that asked, with which the token ends; None: a proxy, or no keys


class BadToken(ValueError):
    """A token that is none of ours, was changed, or is over."""


def sign(salt: str, claim: Claim) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(asdict(claim), sort_keys=True).encode()).rstrip(b"=").decode()
    return f"{payload}.{_mac(salt, payload)}"


def verify(salt: str, token: str, now: float) -> Claim:
    """The claim of a token of ours that still lasts; compared in constant time before anything of it is read.

    Raises:
        BadToken: it is none, or over.
    """
    payload, _, mac = token.partition(".")
    if not hmac.compare_digest(mac.encode(), _mac(salt, payload).encode()):
        raise BadToken("the feedback token is not of this service, or was changed; send it as the answer carried it")
    claim = Claim(**json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))))
    if now >= claim.expires_at:
        raise BadToken(f"the feedback token is over since {now - claim.expires_at:.0f} s; judge by the application")
    return claim


def _mac(salt: str, payload: str) -> str:
    key = hmac.new(salt.encode(), b"kto_ray: feedback tokens", hashlib.sha256).digest()
    return hmac.new(key, payload.encode(), hashlib.sha256).hexdigest()
