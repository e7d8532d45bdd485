"""What swaps need of a store that a service runs on: adapters of the embedded model, and rounds that have come to load
or to test one, as a round that trained it would have."""

from __future__ import annotations

import secrets
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kto_ray.adapters import files
from kto_ray.adapters.publish import publish
from kto_ray.config import Config
from kto_ray.records.adapters import CHALLENGER, CHAMPION, AdapterVersion
from kto_ray.records.rollouts import RolloutState
from kto_ray.records.rounds import Loading, OnTrial, Round, State
from kto_ray.rollout import machine
from kto_ray.store import adapters, rollouts, rounds, snapshots
from tests.support.adapters import LAYER, write
from tests.support.rows import manifest
from tests.support.service import Service

WIDTH, RANK = 576, 4  # of SmolLM2's q_proj


def published(run: Service, config: Config | None = None) -> AdapterVersion:
    """One with weights of its own, too small to garble an answer."""
    with run.store.read() as tx:
        number = adapters.next_number(tx)
    noise = torch.Generator().manual_seed(number)
    weights = {
        f"{LAYER}.lora_A.weight": 0.02 * torch.randn(RANK, WIDTH, generator=noise),
        f"{LAYER}.lora_B.weight": 0.02 * torch.randn(WIDTH, RANK, generator=noise),
    }
    folder = write(Path(run.config.home) / "checkpoints" / str(number), weights)
    return publish(config or run.config, folder, number, manifest(), None, time.time())


def known(run: Service, version: AdapterVersion) -> AdapterVersion:
    """The store knows it."""
    with run.store.write() as tx:
        snapshots.insert(tx, manifest(), str(Path(run.config.home) / "nowhere"))
        adapters.insert(tx, version)
    return version


def aliases(run: Service) -> dict[str, str]:
    told: dict[str, str] = run.get("/v1/adapters")["aliases"]
    return told


def point(run: Service, alias: str, version: AdapterVersion | None) -> None:
    with run.store.write() as tx:
        adapters.set_alias(tx, alias, version.name if version else None, time.time())


def loading(run: Service, version: AdapterVersion) -> Round:
    """A round whose candidate the replicas are to load."""
    return _begin(run, version, Loading(manifest().id, version.name))


def on_trial(run: Service, version: AdapterVersion) -> Round:
    """A round whose candidate meets users as soon as all replicas hold it."""
    with run.store.read() as tx:
        champion = adapters.aliases(tx, run.config.base_name)[CHAMPION]
    name = f"rollout-{secrets.token_hex(4)}"
    test = machine.start(run.config.rollout, champion, version.name, name, secrets.token_hex(8), 0.01, time.time())
    return _begin(run, version, OnTrial(manifest().id, version.name, name), test)


def _begin(run: Service, version: AdapterVersion, state: State, test: RolloutState | None = None) -> Round:
    with run.store.write() as tx:
        begun = replace(rounds.insert(tx, time.time()), state=state)
        rounds.update(tx, begun)
        adapters.set_alias(tx, CHALLENGER, version.name, time.time())
        if test is not None:
            rollouts.put(tx, test)
    return begun


def promote(run: Service, version: AdapterVersion, timeout_s: float = 120.0) -> None:
    """An operator promotes it as soon as the loop lets them."""

    def asked() -> bool | None:
        run.client.post("/v1/rollout/promote")
        return True if aliases(run)[CHAMPION] == version.name else None

    run.wait(f"{version.name} promoted", asked, timeout_s)


def swap(run: Service, timeout_s: float = 120.0) -> AdapterVersion:
    """A new champion."""
    made = known(run, published(run))
    on_trial(run, made)
    promote(run, made, timeout_s)
    return made


def newest(run: Service) -> Any:
    return run.get("/v1/loop")["rounds"][-1]


def copy_of(version: AdapterVersion) -> Path:
    """The private copy of this user's replicas."""
    return files._copies() / files._name_of_copy(version)


def take_away(version: AdapterVersion) -> Path:
    """Its files, published and private; where they are now."""
    shutil.rmtree(copy_of(version), ignore_errors=True)
    return Path(version.uri).rename(Path(version.uri).parent.parent / "taken-away")


def put_back(version: AdapterVersion, taken: Path) -> None:
    taken.rename(version.uri)
