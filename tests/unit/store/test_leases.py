"""Leases: who comes in waits for who acts, and the other way round."""

from __future__ import annotations

import threading
import time

from kto_ray.store import Store, leases


def test_nobody_acts_by_a_lease_while_another_wants_it_still(store: Store) -> None:
    with store.write() as tx:
        assert leases.take(tx, "acts", "ann", 1)
    done: list[str] = []

    def comes_in() -> None:
        with store.write() as tx:
            leases.stand_still(tx, "acts")
            done.append("came in")

    with store.write() as tx:
        assert leases.keep(tx, "acts", "ann")
        thread = threading.Thread(target=comes_in)
        thread.start()
        time.sleep(0.3)
        done.append("acted")
    thread.join(30)
    assert done == ["acted", "came in"]
