"""Who asks, and what they may do: scopes, the principal of a request, API keys as the store keeps them. Pure."""

from __future__ import annotations

import enum
import hashlib
import hmac
import secrets
from dataclasses import dataclass


class Scope(enum.StrEnum):
    CHAT = "chat"
    FEEDBACK = "feedback"  # of users, on what they received
    REVIEWER = "reviewer"  # feedback on anybody's answers, kept apart from users'
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sent a request. `name` is None where no keys are: then whoever is at this machine asks."""

    name: str | None
    scopes: frozenset[Scope]
    vouches: bool = False  # an application that knows its users, and says who asks

    def user(self, claimed: str | None) -> str | None:
        """The user of a request that claims one: never one of another principal."""
        if self.name is None:
            return claimed
        if not self.vouches:
            return self.name
        return None if claimed is None else f"{self.name}/{claimed}"


# No reviewer: what a person here says of an answer is a user's word, and counts as one.
HERE = Principal(None, frozenset({Scope.CHAT, Scope.FEEDBACK, Scope.ADMIN}))
STRANGER = Principal("", frozenset())


@dataclass(frozen=True, slots=True)
class Key:
    """An API key without its secret, which is nowhere but with its owner. Several keys may be of one principal."""

    id: str
    name: str  # of the principal
    scopes: tuple[Scope, ...]
    vouches: bool
    hash: str  # hex
    created_at: float
    revoked_at: float | None = None

    @property
    def principal(self) -> Principal:
        return Principal(self.name, frozenset(self.scopes), self.vouches)

    def opens(self, salt: str, token: str) -> bool:
        """Whether a token is this very key, compared in constant time, and the key still stands."""
        return hmac.compare_digest(self.hash, token_hash(salt, token)) and self.revoked_at is None


def new_token() -> tuple[str, str]:
    """A key's public id, and the token that its owner gets: `kto_ID_SECRET`."""
    name = secrets.token_hex(6)
    return name, f"kto_{name}_{secrets.token_hex(32)}"


def id_of(token: str) -> str | None:
    """The public id in a token; None: it is no token of ours."""
    mark, _, rest = token.partition("_")
    name, _, secret = rest.partition("_")
    return name if mark == "kto" and name and secret else None


def token_hash(salt: str, token: str) -> str:
    """HMAC-SHA256 of a token.

    Its key is drawn from the config's salt: one secret less to keep, and as that salt may never change (users' hashes
    hang on it), keys outlive restarts and moves. The label keeps the two uses apart. A store that leaks without the
    config gives nothing to try tokens against; with it, 256 random bits stay out of reach, whatever the salt.
    """
    key = hmac.new(salt.encode(), b"kto_ray: API keys", hashlib.sha256).digest()
    return hmac.new(key, token.encode(), hashlib.sha256).hexdigest()
