"""Who serves: GET /readyz."""

from __future__ import annotations

from dataclasses import dataclass, replace

import sqlalchemy as sa

from kto_ray.config import Config
from kto_ray.records.adapters import CHAMPION, PREVIOUS
from kto_ray.records.replicas import ReplicaReport, champions_answer
from kto_ray.store import adapters, replicas


@dataclass(frozen=True, slots=True)
class Readiness:
    """Ready when at least one live replica holds who `answers` for the champion, as the store said `view_age_s` ago:
    chat goes on while the store is away, and `spooled` entries then wait in the gateway that answers. The champion
    answers for itself, unless a replica cannot load it, which then tells why."""

    ready: bool
    replicas: tuple[ReplicaReport, ...]
    champion: str
    answers: str
    view_age_s: float = 0.0
    spooled: int = 0


def to_strangers(told: Readiness) -> Readiness:
    """Without the replicas, whose names, hosts and errors say how the service is made."""
    return replace(told, replicas=())


def readiness(tx: sa.Connection, config: Config) -> Readiness:
    live = replicas.live(tx, config.serve.heartbeat_timeout_s)
    aliases = adapters.aliases(tx, config.base_name)
    champion, previous = aliases[CHAMPION], aliases.get(PREVIOUS)
    if previous is not None and adapters.was_left(tx, previous, champion):
        previous = None
    answers = champions_answer(champion, previous, config.base_name, live)
    holding = [replica for replica in live if answers in (config.base_name, *replica.held)]
    return Readiness(bool(holding), tuple(live), champion, answers)
