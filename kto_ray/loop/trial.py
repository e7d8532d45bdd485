"""The A/B test in progress: its users counted tick by tick, and what the budget of the loop's life allows the next."""

from __future__ import annotations

import sqlalchemy as sa

from kto_ray.config.deciding import RolloutSection
from kto_ray.loop.decide import Trial
from kto_ray.records.rollouts import RolloutState, RolloutStatus
from kto_ray.records.rounds import OnTrial, Round
from kto_ray.records.trials import Standing
from kto_ray.rollout import machine
from kto_ray.stats.budget import Spent, level
from kto_ray.store import rollouts, trials


class Watch:
    """Reads tests; what it remembers of the one in progress is read no second time, and may be lost at any time."""

    def __init__(self) -> None:
        self._standing: Standing | None = None

    def trial(self, tx: sa.Connection, current: Round | None) -> Trial | None:
        """The test of the round in progress, or one that goes on without a round."""
        testing = current.state if current is not None and isinstance(current.state, OnTrial) else None
        state = rollouts.get(tx, testing.rollout) if testing else rollouts.live(tx)
        if state is None:
            return None
        self._standing = trials.standing(tx, state, self._standing)
        last = rollouts.last_look(tx, state.id)
        return Trial(state, self._standing, last if last is not None and last.stage == state.stage else None)


def due(tx: sa.Connection, now: float) -> RolloutState | None:
    """The test in progress where there is something to count."""
    state = rollouts.live(tx)
    return state if state is not None and trials.due(tx, state, now) else None


def count(tx: sa.Connection, section: RolloutSection, state: RolloutState, now: float) -> None:
    """Take in who got an answer, and settle the trials that are due. While a stage only watches, a trial is settled as
    soon as there is one: harm is to be seen at once."""
    rules = machine.rules_of(section, state)
    settle_s = 3600 * rules.settle_hours if machine.stage_of(rules, state).decides else 0.0
    trials.advance(tx, state, trials.Rules(settle_s, rules.new_users, rules.slow_s), now)


def level_of(tx: sa.Connection, section: RolloutSection) -> float:
    """Of the next test. What an operator promoted without evidence was none."""
    spent = [
        Spent(state.level, state.status is RolloutStatus.PROMOTED)
        for state in rollouts.finished(tx)
        if state.by_evidence or state.status is not RolloutStatus.PROMOTED
    ]
    return level(spent, section.alpha, section.omega)
