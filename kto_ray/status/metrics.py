"""The figures that Prometheus gets, as text. Those of the store every gateway tells; a few are a gateway's own."""

from __future__ import annotations

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily

from kto_ray.config import Config
from kto_ray.records.rollouts import RolloutKind
from kto_ray.records.rounds import Stage
from kto_ray.records.trainings import TrainingRun
from kto_ray.rollout.holdback import waits
from kto_ray.status.readiness import readiness
from kto_ray.status.rollouts import loop_gain
from kto_ray.status.rounds import controller
from kto_ray.store import adapters, rollouts, rounds, tallies, trainings

Gauges = dict[str, tuple[str, float]]  # name -> (help, value)


def metrics(tx: sa.Connection, config: Config) -> Gauges:
    return _loop(tx, config) | _gain(tx) | _training(trainings.newest_of_a_round(tx))


def of_gateway(spooled: int, waiting: int, view_age_s: float, store_up: bool) -> Gauges:
    """What the gateway that is asked knows by itself, also while the store is away."""
    return {
        "kto_ray_store_up": ("Whether the store answered", float(store_up)),
        "kto_ray_spool_entries": ("Answers and events in this gateway's spool, which the store does not have", spooled),
        "kto_ray_writer_waiting": ("Changes that wait for this gateway's writer", waiting),
        "kto_ray_view_age_seconds": ("How long ago this gateway read what it routes by", view_age_s),
    }


def as_text(gauges: Gauges) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Collector(gauges))
    return generate_latest(registry)


def _loop(tx: sa.Connection, config: Config) -> Gauges:
    tally, current, test = tallies.total(tx), rounds.current(tx), rollouts.live(tx)
    ready, back = readiness(tx, config), rollouts.live(tx, RolloutKind.HOLDBACK)
    return {
        "kto_ray_completions": ("Completions logged", tally.completions),
        "kto_ray_feedback_events": ("Feedback events stored", tally.stored),
        "kto_ray_feedback_pending": ("Feedback events whose completion is not known yet", tally.pending),
        "kto_ray_feedback_held": ("Feedback events that wait for an operator", tally.held),
        "kto_ray_feedback_strangers": ("Feedback events of neither the answer's user nor a reviewer", tally.strangers),
        "kto_ray_labels_desirable": ("Labels that are desirable", tally.desirable),
        "kto_ray_labels_undesirable": ("Labels that are undesirable", tally.undesirable),
        "kto_ray_labels_new": ("Labels since the last round began", rounds.new_labels(tx)),
        "kto_ray_adapters": ("Adapter versions trained", adapters.count(tx)),
        "kto_ray_replicas_live": ("Policy replicas heard of lately", len(ready.replicas)),
        "kto_ray_replicas_failing": (
            "Live policy replicas that cannot load an adapter which they are to hold",
            sum(bool(replica.errors) for replica in ready.replicas),
        ),
        "kto_ray_champion_replaced": (
            "Whether another answers for the champion, which a replica cannot load",
            float(ready.answers != ready.champion),
        ),
        "kto_ray_round": ("Number of the round in progress, 0 if none", current.id if current else 0),
        "kto_ray_approval_waits": (
            "Whether a candidate waits for a person's approval",
            float(current is not None and current.stage is Stage.APPROVAL),
        ),
        "kto_ray_controller_acts": (
            "Whether a controller holds its lease, without which rounds, tests and holdbacks stand still",
            float(controller(tx).acts),
        ),
        "kto_ray_rollback_waits": (
            "Whether the champion has turned out worse than the one before, which a replica lacks: it stays meanwhile",
            float(back is not None and waits(back)),
        ),
        "kto_ray_rollout_weight": ("The challenger's share of users, 0 if no rollout", test.weight if test else 0),
    }


def _gain(tx: sa.Connection) -> Gauges:
    """What the whole loop gains, where a holdback on the base model measures it."""
    told = loop_gain(tx)
    if told is None:
        return {}
    figures = {
        "kto_ray_loop_gain_weight": (
            "Share of users on the base model, who measure the whole loop's gain",
            told.weight,
        ),
        "kto_ray_loop_gain_low": ("Lower end of the always-valid interval of the loop's gain", told.interval[0]),
        "kto_ray_loop_gain_high": ("Upper end of the always-valid interval of the loop's gain", told.interval[1]),
    }
    if told.gain is not None:
        words = "Gain of the whole loop over the base model, in the share of users judging an answer up"
        figures["kto_ray_loop_gain"] = (words, told.gain)
    return figures


def _training(run: TrainingRun | None) -> Gauges:
    """The figures of the newest training that has taken a step: its newest step while it runs, then the result's."""
    if run is None or not run.figures:
        return {}
    of_run, figures = (
        run.figures,
        {"kto_ray_train_round": ("Number of the newest round that has trained a step", float(run.round or 0))},
    )
    for name, text, value in (
        ("step", "Optimizer steps that it has taken", of_run.get("step")),
        ("steps", "Optimizer steps that it takes in all", of_run["steps"]),
        ("loss", "Loss of its newest step", of_run.get("loss")),
        ("kl_nats", "KL estimate of its newest step, in nats an answer", of_run.get("kl")),
        ("reward_margin", "Desirable minus undesirable reward of its newest step", of_run.get("margin")),
        ("tokens_per_second", "Real tokens a second: of its newest step, then of the run", of_run["tokens_per_s"]),
        ("seconds", "Seconds spent in its steps so far", of_run["train_s"]),
    ):
        if value is not None:  # a step may hold rows of one class only
            figures[f"kto_ray_train_{name}"] = (text, float(value))
    return figures


class _Collector:
    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> list[GaugeMetricFamily]:
        return [GaugeMetricFamily(name, text, value) for name, (text, value) in self._gauges.items()]
