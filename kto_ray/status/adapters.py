"""What is shown of adapter versions: GET /v1/adapters and `kto-ray adapters`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from kto_ray.config import Config
from kto_ray.paths import without_passwords
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.evaluation import GateReport
from kto_ray.store import adapters, evaluation


@dataclass(frozen=True, slots=True)
class ShownAdapter(AdapterVersion):
    """A version and the gate's verdict on it, None where it has not been judged."""

    gate: GateReport | None = None


@dataclass(frozen=True, slots=True)
class AdapterPage:
    aliases: Mapping[str, str]
    adapters: tuple[ShownAdapter, ...]  # oldest first


def page(tx: sa.Connection, config: Config) -> AdapterPage:
    gates = evaluation.every(tx)
    every = tuple(_shown(version, gates.get(version.name)) for version in adapters.every(tx))
    return AdapterPage(adapters.aliases(tx, config.base_name), every)


def one(tx: sa.Connection, name: str) -> ShownAdapter | None:
    version = adapters.get(tx, name)
    return _shown(version, evaluation.get(tx, name)) if version else None


def _shown(version: AdapterVersion, gate: GateReport | None) -> ShownAdapter:
    own = {name: _hidden(getattr(version, name)) for name in AdapterVersion.__slots__}
    return ShownAdapter(**own, gate=gate)


def _hidden(value: Any) -> Any:
    """What a manifest holds of settings may name servers with their passwords."""
    if isinstance(value, str):
        return without_passwords(value)
    if isinstance(value, Mapping):
        return {key: _hidden(held) for key, held in value.items()}
    return [_hidden(held) for held in value] if isinstance(value, list) else value
