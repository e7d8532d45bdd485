"""What a stage of an A/B test has come to, as evidence that may be looked at whenever one likes. Pure.

gain          log evidence that the challenger is better by more than min_effect, at its highest so far
gain_now      the same as it is now: what it may come to is told from this, and nothing is decided by it
harm          the same, that it is worse
ups           log evidence that more users of the challenger than of the champion judged an answer up, of all who got
              one: silence is no approval, and a challenger whose unhappy users say nothing has no more ups
unequal       log evidence that users were not drawn by the weight, among all who got an answer
unequal_votes the same among those who judged
observed      users whose time to react is over
GUARD_seen    how many users of both arms reacted so, of reactions alone
GUARD_low     how much more often, at least, a user's first answer has this fault, or a user reacts so, than with the
              champion; that any of these bounds is ever wrong has a chance of harm_alpha together
GUARD_high    how much more often at most, each by itself: a promotion needs all of them

Each is a test of its own: an e-process, or a confidence sequence on counts of users. Of reactions it counts all users
whose time to react is over, in that order: who reacts does not choose when, or whether, to be counted.
"""

from __future__ import annotations

import functools

import numpy as np

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.rollouts import ArmCount, Look, RolloutState
from kto_ray.records.trials import GUARDS, REACTIONS, Exposed, Settled, Standing
from kto_ray.stats import ratio, score, sequential

STEP = 200  # a look is worth its while when a 200th has come since the last one


def is_due(last: Look | None, standing: Standing) -> bool:
    """Whether a stage has come far enough since the last look."""
    if last is None or last.stage != standing.stage:
        return True
    trials, exposed = last.n_champion + last.n_challenger, last.exposed_champion + last.exposed_challenger
    before = (trials, exposed, int(last.evidence.get("observed", 0)))
    now = (len(standing.trials), standing.champion.known + standing.challenger.known, _observed(standing))
    return any(new >= old + max(1, old // STEP) for old, new in zip(before, now, strict=True))


def look(rules: RolloutSection, state: RolloutState, standing: Standing, now: float) -> Look:
    champion, challenger = _arms(standing.trials)
    low, high, evidence = -1.0, 1.0, {"gain": 0.0, "harm": 0.0}
    if standing.trials:
        arm = np.array([trial.challenger for trial in standing.trials])
        outcome = np.array([trial.outcome for trial in standing.trials])
        low, high = score.interval(arm, outcome, state.weight, 2 * rules.harm_alpha)
        better = score.log_evidence(arm, outcome, state.weight, rules.min_effect)
        evidence = {
            "gain": float(better.max()),
            "gain_now": float(better[-1]),
            "harm": float(score.log_harm(arm, outcome, state.weight).max()),
        }
    return Look(
        rollout=state.id,
        at=now,
        stage=state.stage,
        n_champion=champion.users,
        up_champion=champion.up,
        n_challenger=challenger.users,
        up_challenger=challenger.up,
        low=low,
        high=high,
        exposed_champion=standing.champion.known,
        exposed_challenger=standing.challenger.known,
        evidence=evidence | _split(state, standing) | _guards(rules, standing),
    )


def _arms(trials: tuple[Settled, ...]) -> tuple[ArmCount, ArmCount]:
    champion, challenger = ([trial.outcome for trial in trials if trial.challenger is which] for which in (False, True))
    return ArmCount(len(champion), sum(champion)), ArmCount(len(challenger), sum(challenger))


def _split(state: RolloutState, standing: Standing) -> dict[str, float]:
    votes = [sum(trial.challenger is which for trial in standing.trials) for which in (False, True)]
    ups = [sum(t.challenger is which and t.outcome >= 0.5 for t in standing.trials) for which in (False, True)]
    return {
        "ups": float(ratio.more_ups(ups[0], ups[1], state.weight)),
        "unequal": float(ratio.log_evidence(standing.champion.known, standing.challenger.known, state.weight)),
        "unequal_votes": float(ratio.log_evidence(votes[0], votes[1], state.weight)),
    }


def _observed(standing: Standing) -> int:
    return standing.champion.observed + standing.challenger.observed


def _guards(rules: RolloutSection, standing: Standing) -> dict[str, float]:
    bounds = {"observed": float(_observed(standing))}
    for name in GUARDS:
        arms = _count(standing.champion, name), _count(standing.challenger, name)
        bounds[f"{name}_low"] = _interval(*arms, rules.harm_alpha / len(GUARDS))[0]
        bounds[f"{name}_high"] = _interval(*arms, rules.harm_alpha)[1]
        bounds[f"{name}_rise"] = _rise(*arms)  # as it was seen; in arms of unlike size no interval's middle
        if name in REACTIONS:
            bounds[f"{name}_seen"] = sum(arm.up for arm in arms)
    return bounds


_interval = functools.lru_cache(maxsize=256)(sequential.interval)  # most counts are 0, and change seldom


def _rise(champion: ArmCount, challenger: ArmCount) -> float:
    """0 while an arm has nobody."""
    if not champion.users or not challenger.users:
        return 0.0
    return challenger.up / challenger.users - champion.up / champion.users


def _count(arm: Exposed, name: str) -> ArmCount:
    return ArmCount(arm.observed if name in REACTIONS else arm.known, getattr(arm, name))
