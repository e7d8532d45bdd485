"""The A/B test and the holdback in progress: their users counted tick by tick, and what the budget of the loop's life
allows the next test."""

from __future__ import annotations

import logging

import sqlalchemy as sa

from kto_ray.config.deciding import RolloutSection
from kto_ray.loop.seen import Trial
from kto_ray.records.rollouts import RolloutKind, RolloutState
from kto_ray.records.rounds import OnTrial, Round
from kto_ray.records.trials import Standing, Votes
from kto_ray.rollout import burn_in, machine, outlook
from kto_ray.rollout.begun import rules_of
from kto_ray.stats import budget
from kto_ray.store import Store, labels, rollouts, trials
from kto_ray.store.faults import first_line

WATCHED = 4  # of the hours of a stage that only watches, a user reacts in one such part
log = logging.getLogger(__name__)

SPREAD_S = 2.0  # after a stage has begun, every gateway routes by it: users of both arms enter from then on


class Watch:
    """Reads them; what it remembers of what is in progress is read no second time, and may be lost at any time."""

    def __init__(self) -> None:
        self._standings: dict[RolloutKind, Standing] = {}

    def trial(self, tx: sa.Connection, current: Round | None) -> Trial | None:
        """The test of the round in progress, or one that goes on without a round."""
        testing = current.state if current is not None and isinstance(current.state, OnTrial) else None
        state = rollouts.get(tx, testing.rollout) if testing else rollouts.live(tx)
        return None if state is None else self._read(tx, state)

    def holdback(self, tx: sa.Connection, kind: RolloutKind = RolloutKind.HOLDBACK) -> Trial | None:
        state = rollouts.live(tx, kind)
        return None if state is None else self._read(tx, state)

    def _read(self, tx: sa.Connection, state: RolloutState) -> Trial:
        standing = trials.standing(tx, state, self._standings.get(state.kind))
        self._standings[state.kind] = standing
        last = rollouts.last_look(tx, state.id)
        return Trial(state, standing, last if last is not None and last.stage == state.stage else None)


def due(tx: sa.Connection, now: float) -> list[RolloutKind]:
    """Of which rollouts in progress there is something to count."""
    live = (rollouts.live(tx, kind) for kind in RolloutKind)
    return [state.kind for state in live if state is not None and trials.due(tx, state, now)]


def count(tx: sa.Connection, section: RolloutSection, kind: RolloutKind, now: float) -> None:
    """Take in who got an answer, and settle the trials that are due. While a stage only watches, a trial is settled as
    soon as there is one: harm is to be seen at once."""
    state = rollouts.live(tx, kind)
    if state is None:
        return
    rules = rules_of(section, state)
    test = state.kind is RolloutKind.TEST
    decides = test and machine.stage_of(rules, state).decides
    settle_s = 3600 * rules.settle_hours if decides or not test else 0.0
    # Of a test from before the burn-in was a stage
    blind = max(0.0, rules.burn_in_hours - burn_in.before(rules, state.stage)) if decides else 0.0
    since = state.stage_started_at + SPREAD_S + 3600 * blind
    asked = trials.Rules(settle_s, rules.new_users, rules.slow_s, since, rules.long_tokens, _react_s(rules, state))
    trials.advance(tx, state, asked, now)


def _react_s(rules: RolloutSection, state: RolloutState) -> float:
    """How long a user is watched for what they do; while a stage only watches, so short that it still sees most."""
    stage = machine.stage_of(rules, state)
    hours = rules.settle_hours if stage.decides else min(rules.settle_hours, stage.hours / WATCHED)
    return 3600 * hours


def votes_of(store: Store, section: RolloutSection, now: float) -> Votes | None:
    """Who judged of late, of as long as the deciding stage of the next test counts. Where the store cannot tell, nobody
    knows, and no verdict of the gate is lost for it."""
    try:
        with store.read() as tx:
            window_s, settle_s = 3600 * outlook.counting_hours(section), 3600 * section.settle_hours
            return labels.votes(tx, now, window_s, section.new_users, settle_s)
    except sa.exc.SQLAlchemyError as error:
        log.warning("who judged of late is not known: %s", first_line(error))
        return None


def accepted(tx: sa.Connection) -> float | None:
    """The least gain that the last test which asked could show, where a person let it begin all the same."""
    last = rollouts.last_asked(tx)
    if last is None or last.watch is None or last.weight == 0:  # it ended as it waited
        return None
    return float(last.watch["detectable"])


def level_of(tx: sa.Connection, section: RolloutSection) -> float:
    """Of the next test."""
    return budget.level(budget.spent(rollouts.finished(tx)), section.alpha, section.omega)
