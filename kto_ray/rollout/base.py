"""What the whole loop gains: a few users stay on the base model, for as long as the loop goes on. Pure.

Each promotion speaks of the champion before it, and what many of them add up to is not their sum: what pleased while it
was new has worn off, and gains are read too high where they were promoted for being high. So a second holdback compares
the base model with whatever is champion, over all promotions and rollbacks. It decides nothing.

Its users are drawn anew each week, by a salt of its own: the holdback is for ever, nobody's answers from the base model
are. That also makes a week's users fresh trials: the same people in the same arms, counted week by week, would be one
chance counted often. A week is a stratum of `kto_ray.stats.strata`; it enters when it is over, and none is thrown away.
A week that ends within a test goes on until the test has ended, so that nobody there changes versions for it. In a week
of a promotion the champion's arm is of both champions. A week with base as champion has no arms, and tells nothing: the
gain is of the time in which another answered.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.adapters import CHAMPION
from kto_ray.records.rollouts import ArmCount, RolloutKind, RolloutState, RolloutStatus
from kto_ray.records.trials import Standing
from kto_ray.rollout.holdback import is_over
from kto_ray.stats import strata
from kto_ray.stats.strata import Strata

ALPHA = 0.05  # chance that its interval ever excludes the truth


def start(rules: RolloutSection, base: str, name: str, salt: str, now: float) -> RolloutState | None:
    """The holdback on the base model; None where the rules want none. It keeps to the rules of the day."""
    if rules.base_holdback == 0:
        return None
    return RolloutState(
        id=name,
        champion=f"{base.partition('@')[0]}@{CHAMPION}",  # the alias, whatever it points at
        challenger=base,
        salt=salt,
        stage=0,
        weight=rules.base_holdback,
        status=RolloutStatus.RUNNING,
        started_at=now,
        stage_started_at=now,
        kind=RolloutKind.BASE,
        watch=asdict(Strata()),
    )


def step(
    rules: RolloutSection, state: RolloutState, standing: Standing, salt: str, now: float, in_test: bool = False
) -> RolloutState:
    """The state after another look: unchanged until a week is over, and then with that week in its sums and its users
    drawn anew. A week that began after `now` was dated by a clock that was wrong, and is over.

    Args:
        standing: of the present week.
        salt: fresh and random, for the next draw.
        in_test: whether a test splits users at present.
    """
    if rules.base_holdback == 0:
        words = "rollout.base_holdback is 0: nobody is held on the base model"
        return replace(state, status=RolloutStatus.ABORTED, reason=words, ended_at=now)
    if not is_over(state, now, in_test):
        return state
    said = [[t.outcome for t in standing.trials if t.challenger is base] for base in (False, True)]
    champion, base = (ArmCount(len(outcomes), sum(outcomes)) for outcomes in said)
    return replace(
        state,
        stage=state.stage + 1,
        salt=salt,
        weight=rules.base_holdback,
        stage_started_at=now,
        watch=asdict(strata.fold(sums_of(state), champion, base)),
    )


def sums_of(state: RolloutState) -> Strata:
    """Over the weeks that are over, champion - base."""
    assert state.watch is not None
    return Strata(**state.watch)
