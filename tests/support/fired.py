"""What tests of swaps under fire share: the settings of their service, and what they wait for of it."""

from __future__ import annotations

import time
from typing import Any

from kto_ray.records.adapters import CHAMPION, AdapterVersion
from kto_ray.store import adapters
from tests.support.callers import Callers
from tests.support.steered import Steered
from tests.support.swaps import aliases, newest

COME_S = 240.0  # that a replica may take to come: it loads the model, beside others on the same cores
OLD, NEW = "the-old-key-of-more-than-32-characters", "the-new-key-of-more-than-32-characters"
KEYS = f"adapters.signing_keys={OLD}"
SETTINGS = (
    "serve.replicas=2",
    "serve.threads=1",
    "serve.kv_cache_gb=1",
    "serve.heartbeat_timeout_s=10",
    "model.max_model_len=1024",
    "ray.num_cpus=12",
    "loop.enabled=false",
    KEYS,
)


def of_alias(run: Steered, alias: str) -> AdapterVersion:
    with run.store.read() as tx:
        found = adapters.get(tx, adapters.aliases(tx, run.config.base_name)[alias])
    assert found is not None
    return found


def settled(run: Steered, number: int = 2, without: tuple[str, ...] = (), timeout_s: float = COME_S) -> None:
    """Wait until so many replicas are live, none of them `without`, each with the champion, and it answers."""
    began = time.monotonic()

    def is_so() -> bool | None:
        told, champion = run.client.get("/readyz").json(), aliases(run)[CHAMPION]
        live = told["replicas"]
        well = len(live) == number and told["answers"] == told["champion"] == champion
        return True if well and all(_well(one, champion, without) for one in live) else None

    run.wait(f"{number} replicas that hold the champion", is_so, timeout_s)
    print(f"{number} replicas hold the champion after {time.monotonic() - began:.0f} s")


def _well(replica: dict[str, Any], champion: str, without: tuple[str, ...]) -> bool:
    return champion in replica["held"] and champion not in replica["errors"] and replica["replica"] not in without


def ended(run: Steered, number: int, timeout_s: float = 120.0) -> Any:
    def is_over() -> Any:
        last = newest(run)
        assert last["id"] == number
        return last if last["stage"] == "done" else None

    return run.wait(f"the end of round {number}", is_over, timeout_s)


def past_load(run: Steered, number: int, timeout_s: float = COME_S) -> None:
    """Wait until every replica holds the round's candidate, and end it there: what the gate says is not asked here."""

    def is_past() -> bool | None:
        last = newest(run)
        assert last["id"] == number and last["outcome"] is None, last
        return True if last["stage"] == "gate" else None

    run.wait(f"round {number} loaded", is_past, timeout_s)
    assert run.client.post("/v1/loop/abort").status_code == 200


def held(run: Steered, name: str) -> bool | None:
    live = run.live
    return True if len(live) == 2 and all(name in one["held"] for one in live) else None


def answers_come(run: Steered, asking: Callers, version: AdapterVersion) -> None:
    """What is asked from now on, as soon as the gateways know, is answered, and by this version."""
    since = time.monotonic() + 1
    run.wait("answers", lambda: asking.answered_by(since) or None, 120)
    time.sleep(3)
    assert asking.answered_by(since) == {version.name}
