"""What a browser may do with the token of an answer: speak of that one as its user, for a while."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from kto_ray.feedback.tokens import BadToken, Claim, _mac, sign, verify

CLAIM = Claim("chatcmpl-1", "app/añn", "app", 100.0)


@pytest.mark.parametrize("claim", [CLAIM, Claim("c", None, None, 100.0), replace(CLAIM, key="0a1b")])
def test_a_token_says_what_was_signed_until_it_is_over(claim: Claim) -> None:
    token = sign("salt", claim)
    assert token.isascii() and verify("salt", token, now=99.9) == claim
    with pytest.raises(BadToken, match="over"):
        verify("salt", token, now=100.0)


def test_a_token_of_before_claims_had_keys_still_counts() -> None:
    payload = base64.urlsafe_b64encode(
        b'{"completion_id": "c", "expires_at": 100.0, "principal": "app", "user": "app/ann"}'
    ).decode()
    assert verify("salt", f"{payload}.{_mac('salt', payload)}", now=1.0) == Claim("c", "app/ann", "app", 100.0, None)


def test_no_other_token_passes() -> None:
    token = sign("salt", CLAIM)
    payload, _, mac = token.partition(".")
    forged = sign("other", replace(CLAIM, user="app/bob", expires_at=1e12))
    for bad in (
        *("", ".", "x", token[:-1], token + "0", payload, f"{payload}.", f".{mac}", forged, "é.é"),
        f"{sign('salt', replace(CLAIM, expires_at=1e12)).partition('.')[0]}.{mac}",
    ):
        with pytest.raises(BadToken):
            verify("salt", bad, now=1.0)


def test_the_salt_itself_is_no_key_of_it() -> None:
    assert sign("salt", CLAIM) != sign("salt2", CLAIM) and "salt" not in sign("salt", CLAIM)
