"""What a stage of an A/B test has come to, as evidence that may be looked at whenever one likes. Pure.

gain          log evidence that the challenger is better by more than min_effect, at its highest so far
harm          the same, that it is worse
ups           log evidence that more users of the challenger than of the champion judged an answer up, of all who got
              one: silence is no approval, and a challenger whose unhappy users say nothing has no more ups
unequal       log evidence that users were not drawn by the weight, among all who got an answer
unequal_votes the same among those who judged
FAULT_low, FAULT_high    bounds of how much more often a user's first answer has this fault than the champion's

Each is a test of its own: an e-process, or a confidence sequence on counts of users.
"""

from __future__ import annotations

import numpy as np

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.rollouts import ArmCount, Look, RolloutState
from kto_ray.records.trials import FAULTS, Exposed, Settled, Standing
from kto_ray.stats import ratio, score, sequential

STEP = 200  # a look is worth its while when a 200th has come since the last one


def is_due(last: Look | None, standing: Standing) -> bool:
    """Whether a stage has come far enough since the last look."""
    if last is None or last.stage != standing.stage:
        return True
    before = (last.n_champion + last.n_challenger, last.exposed_champion + last.exposed_challenger)
    now = (len(standing.trials), standing.champion.known + standing.challenger.known)
    return any(new >= old + max(1, old // STEP) for old, new in zip(before, now, strict=True))


def look(rules: RolloutSection, state: RolloutState, standing: Standing, now: float) -> Look:
    champion, challenger = _arms(standing.trials)
    low, high, evidence = -1.0, 1.0, {"gain": 0.0, "harm": 0.0}
    if standing.trials:
        arm = np.array([trial.challenger for trial in standing.trials])
        outcome = np.array([trial.outcome for trial in standing.trials])
        low, high = score.interval(arm, outcome, state.weight, 2 * rules.harm_alpha)
        evidence = {
            "gain": float(score.log_evidence(arm, outcome, state.weight, rules.min_effect).max()),
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
        evidence=evidence | _split(state, standing) | _faults(rules, standing),
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


def _faults(rules: RolloutSection, standing: Standing) -> dict[str, float]:
    bounds: dict[str, float] = {}
    for name in FAULTS:
        low, high = sequential.interval(
            _faulty(standing.champion, name), _faulty(standing.challenger, name), rules.harm_alpha
        )
        bounds |= {f"{name}_low": low, f"{name}_high": high}
    return bounds


def _faulty(arm: Exposed, name: str) -> ArmCount:
    return ArmCount(arm.known, getattr(arm, name))
