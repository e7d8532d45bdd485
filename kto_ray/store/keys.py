"""API keys: made, listed, revoked. Revoked ones stay: a service that ever had a key is not open again without."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from kto_ray.records.keys import Key, Scope, new_token, token_hash
from kto_ray.store.schema import keys


def create(
    tx: sa.Connection, name: str, scopes: Sequence[Scope], vouches: bool, salt: str, now: float
) -> tuple[Key, str]:
    """A new key of a principal, and the token that opens it, which nothing keeps."""
    public, token = new_token()
    key = Key(public, name, tuple(scopes), vouches, token_hash(salt, token), now)
    row = {column: getattr(key, column) for column in Key.__slots__} | {"scopes": [scope.value for scope in scopes]}
    tx.execute(keys.insert().values(**row))
    return key, token


def every(tx: sa.Connection) -> list[Key]:
    """Oldest first, the revoked ones too."""
    rows = tx.execute(sa.select(keys).order_by(keys.c.created_at, keys.c.id)).mappings()
    return [Key(**{**row, "scopes": tuple(Scope(scope) for scope in row["scopes"])}) for row in rows]


def revoke(tx: sa.Connection, key: str, now: float) -> bool:
    """Whether there is such a key. One that was revoked before stays as it was."""
    tx.execute(keys.update().where(keys.c.id == key, keys.c.revoked_at.is_(None)).values(revoked_at=now))
    return tx.execute(sa.select(keys.c.id).where(keys.c.id == key)).first() is not None
