"""Whose a request's user is, and what opens a key."""

from __future__ import annotations

import dataclasses

import pytest

from kto_ray.records.keys import HERE, Key, Principal, Scope, id_of, new_token, token_hash


@pytest.mark.parametrize(
    ("principal", "claimed", "user"),
    [
        (HERE, "ann", "ann"),
        (HERE, None, None),
        (Principal("web", frozenset(), vouches=True), "ann", "web/ann"),
        (Principal("web", frozenset(), vouches=True), "other/ann", "web/other/ann"),
        (Principal("web", frozenset(), vouches=True), None, None),
        (Principal("bot", frozenset()), "ann", "bot"),
        (Principal("bot", frozenset()), None, "bot"),
    ],
)
def test_no_body_claims_another_principals_user(principal: Principal, claimed: str | None, user: str | None) -> None:
    assert principal.user(claimed) == user


def test_a_person_here_is_no_reviewer() -> None:
    assert HERE.scopes == {Scope.CHAT, Scope.FEEDBACK, Scope.ADMIN}


def test_a_token_opens_its_own_key_under_its_own_salt() -> None:
    (public, token), (_, other) = new_token(), new_token()
    key = Key(public, "web", (Scope.CHAT,), False, token_hash("salt", token), 1.0)
    assert token.startswith(f"kto_{public}_") and len(token.removeprefix(f"kto_{public}_")) == 64
    assert id_of(token) == public and token not in repr(key)
    assert key.opens("salt", token)
    assert not key.opens("another", token) and not key.opens("salt", other) and not key.opens("salt", token[:-1])
    assert not dataclasses.replace(key, revoked_at=2.0).opens("salt", token)


@pytest.mark.parametrize("text", ["", "none", "sk-123", "kto_", "kto_ab", "kto_ab_", "kto__x", "KTO_ab_x"])
def test_what_is_no_token_has_no_id(text: str) -> None:
    assert id_of(text) is None


def test_hashes_outlive_this_version() -> None:
    assert token_hash("kto-ray", "kto_ab_x") == "abf6aa63f9cfbb58f488865a95d151be956028d74bae17d02ad68567cced6888"
