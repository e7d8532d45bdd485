"""The state that the HTTP API, the CLI and the metrics show: all of it read from the store."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily

from kto_ray.config import Config
from kto_ray.store import Store, adapters, completions, feedback, rollouts, rounds
from kto_ray.types import CHAMPION, RolloutState, Round, Stage

NEXT = {
    Stage.SNAPSHOT: "freeze the feedback into a snapshot, then train",
    Stage.TRAIN: "train the candidate with KTO, then load it into the replicas",
    Stage.LOAD: "every replica loads and probes the candidate, then the gate",
    Stage.GATE: "judge the candidate on held-out feedback and the guard prompts, then the A/B test",
    Stage.ROLLOUT: "the A/B test decides on users' thumbs",
}


def aliases(tx: sa.Connection, config: Config) -> dict[str, str]:
    """alias -> adapter name; the champion is the base model before the first promotion."""
    return {CHAMPION: config.base_name, **adapters.get_aliases(tx)}


def labels_since_last_round(tx: sa.Connection) -> int:
    """Labels that no round has seen: those recorded since the newest round began."""
    last = rounds.every(tx)
    return feedback.counts(tx, since=last[-1].started_at if last else 0.0).labels


def loop(tx: sa.Connection, config: Config) -> dict[str, Any]:
    """GET /v1/loop."""
    every = rounds.every(tx)
    current = every[-1] if every and every[-1].stage is not Stage.DONE else None
    counts = feedback.counts(tx)
    new = labels_since_last_round(tx)
    if current:
        following = NEXT[current.stage]
    elif not config.loop.enabled:
        following = "the loop is off (loop.enabled: false); POST /v1/loop/run starts a round"
    else:
        following = f"a round starts at {config.loop.min_labels} new labels; {new} so far"
    return {
        "round": asdict(current) if current else None,
        "rounds": [asdict(r) for r in every],
        "labels": {"desirable": counts.up + counts.edits, "undesirable": counts.down + counts.edits, "new": new},
        "feedback": {"stored": counts.stored, "pending": counts.pending, "withdrawn": counts.withdrawn},
        "completions": completions.count(tx),
        "min_labels": config.loop.min_labels,
        "next": following,
    }


def adapter_list(tx: sa.Connection, config: Config) -> dict[str, Any]:
    """GET /v1/adapters."""
    listed = []
    for version in adapters.every(tx):
        gate = adapters.get_gate(tx, version.name)
        listed.append({**asdict(version), "gate": asdict(gate) if gate else None})
    return {"aliases": aliases(tx, config), "adapters": listed}


def rollout(tx: sa.Connection, config: Config) -> dict[str, Any]:
    """GET /v1/rollout: the newest rollout, running or ended."""
    every = rollouts.every(tx)
    return {
        "rollout": _rollout(tx, config, every[-1]) if every else None,
        "rollouts": [asdict(state) for state in every],
    }


def _rollout(tx: sa.Connection, config: Config, state: RolloutState) -> dict[str, Any]:
    history = rollouts.points(tx, state.id)
    names = [stage.name for stage in config.rollout.stages]
    counts = {}
    for point in history:  # the last point of a stage holds its final counts
        stage = names[point["stage"]] if point["stage"] < len(names) else str(point["stage"])
        counts[stage] = {
            "champion": {"users": point["n_champion"], "up": point["up_champion"]},
            "challenger": {"users": point["n_challenger"], "up": point["up_challenger"]},
        }
    stage_name = names[state.stage] if state.stage < len(names) else str(state.stage)
    interval = [history[-1]["low"], history[-1]["high"]] if history else [-1.0, 1.0]
    return {**asdict(state), "stage_name": stage_name, "counts": counts, "interval": interval, "history": history}


def readiness(tx: sa.Connection, config: Config) -> dict[str, Any]:
    """GET /readyz: ready when at least one live replica holds the champion."""
    live = rollouts.live_replicas(tx, time.time() - config.serve.heartbeat_timeout_s)
    champion = aliases(tx, config)[CHAMPION]
    holding = [r for r in live if champion == config.base_name or champion in r.held]
    return {"ready": bool(holding), "replicas": [asdict(r) for r in live], "champion": champion}


def metrics(store: Store, config: Config) -> bytes:
    """GET /metrics in Prometheus' text format. Read from the store, so every gateway tells the same."""
    with store.read() as tx:
        counts = feedback.counts(tx)
        new = labels_since_last_round(tx)
        current = rounds.current(tx)
        trained = [r for r in rounds.every(tx) if r.train_metrics][-1:]
        live = rollouts.live_replicas(tx, time.time() - config.serve.heartbeat_timeout_s)
        test = rollouts.live(tx)
        total, known = completions.count(tx), len(adapters.every(tx))
    gauges = {
        "kto_ray_completions": ("Completions logged", total),
        "kto_ray_feedback_events": ("Feedback events stored", counts.stored),
        "kto_ray_feedback_pending": ("Feedback events whose completion is not known yet", counts.pending),
        "kto_ray_labels_desirable": ("Labels that are desirable", counts.up + counts.edits),
        "kto_ray_labels_undesirable": ("Labels that are undesirable", counts.down + counts.edits),
        "kto_ray_labels_new": ("Labels since the last round began", new),
        "kto_ray_adapters": ("Adapter versions trained", known),
        "kto_ray_replicas_live": ("Policy replicas heard of lately", len(live)),
        "kto_ray_round": ("Number of the round in progress, 0 if none", current.id if current else 0),
        "kto_ray_rollout_weight": ("The challenger's share of users, 0 if no rollout", test.weight if test else 0),
    }
    for last in trained:
        gauges |= _training(last)
    registry = CollectorRegistry()
    registry.register(_Gauges(gauges))
    return generate_latest(registry)


def _training(last: Round) -> dict[str, tuple[str, float]]:
    """The figures of the newest round that trains or has trained: its newest step while it does, then the result's."""
    shown = last.train_metrics
    figures = {"kto_ray_train_round": ("Number of the newest round that has trained a step", float(last.id))}
    step = shown["history"][-1] if "history" in shown else shown
    for name, text, value in (
        ("step", "Optimizer steps that it has taken", step["step"]),
        ("steps", "Optimizer steps that it takes in all", shown["steps"]),
        ("loss", "Loss of its newest step", step["loss"]),
        ("kl_nats", "KL estimate of its newest step, in nats an answer", step["kl"]),
        ("reward_margin", "Desirable minus undesirable reward of its newest step", step["margin"]),
        ("tokens_per_second", "Real tokens a second: of its newest step, then of the run", shown["tokens_per_s"]),
        ("seconds", "Seconds spent in its steps so far", shown["train_s"]),
    ):
        if value is not None:  # a step may hold rows of one class only
            figures[f"kto_ray_train_{name}"] = (text, float(value))
    return figures


class _Gauges:
    def __init__(self, gauges: dict[str, tuple[str, float]]) -> None:
        self._gauges = gauges

    def collect(self) -> list[GaugeMetricFamily]:
        return [GaugeMetricFamily(name, text, value) for name, (text, value) in self._gauges.items()]
