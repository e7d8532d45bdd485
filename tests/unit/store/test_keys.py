"""Keys in the store: made once, listed, revoked for good."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kto_ray.records.keys import Scope
from kto_ray.store import Store, keys, open_store


def test_a_key_is_kept_without_what_opens_it(store: Store) -> None:
    with store.write() as tx:
        key, token = keys.create(tx, "web", [Scope.CHAT, Scope.FEEDBACK], True, "salt", 1.0)
        other, _ = keys.create(tx, "web", [Scope.ADMIN], False, "salt", 2.0)
    with store.read() as tx:
        assert keys.every(tx) == [key, other]
    assert key.opens("salt", token) and not other.opens("salt", token)
    assert token.split("_")[2] not in repr(key)


def test_a_revoked_key_stays_revoked(store: Store) -> None:
    with store.write() as tx:
        key, token = keys.create(tx, "web", [Scope.CHAT], False, "salt", 1.0)
        assert keys.revoke(tx, key.id, 5.0) and keys.revoke(tx, key.id, 9.0)
        assert not keys.revoke(tx, "none", 5.0)
        (found,) = keys.every(tx)
    assert found.revoked_at == 5.0 and not found.opens("salt", token)


def test_a_store_is_for_its_user_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        opened = open_store(f"sqlite:///{tmp_path}/home/kto.db")
    finally:
        os.umask(before)
    with opened.write() as tx:
        keys.create(tx, "web", [Scope.CHAT], False, "salt", 1.0)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "home").iterdir()}
    opened.close()
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
    assert modes["kto.db"] == 0o600 and set(modes.values()) == {0o600}
