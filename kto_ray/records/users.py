"""How a user is hashed: the name that snapshots know them by, and their place among the arms of an A/B test. Pure."""

from __future__ import annotations

import functools
import hashlib
import hmac


def digest(*parts: str) -> str:
    """32 hex digits; the lengths keep ("ab", "c") and ("a", "bc") apart."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode()
        sha.update(len(data).to_bytes(8, "big") + data)
    return sha.hexdigest()[:32]


@functools.lru_cache(maxsize=100_000)
def user_hash(salt: str, user: str) -> str:
    """How a user is named in snapshots: 32 hex digits."""
    return digest(salt, user)


def unit_interval(salt: str, user: str) -> float:
    """A user's fixed place in [0, 1): the first 53 bits of HMAC-SHA256(salt, user), uniform over users.

    A new salt draws anew, so that a user's luck in one rollout says nothing about the next.
    """
    mac = hmac.new(salt.encode(), user.encode(), hashlib.sha256).digest()
    return (int.from_bytes(mac[:8], "big") >> 11) / 2.0**53
