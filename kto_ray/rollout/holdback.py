"""Whether a new champion stays: some users remain on the previous one, and an alarm brings it back. Pure.

A promotion speaks of two weeks. What was only new wears off, and tastes drift; comparing with the rate at promotion
would fire on every drift that both share. So a share of users, drawn anew each week, is held back on the previous
champion, and once a day a Shiryaev-Roberts e-detector (`kto_ray.stats.detector`) folds the trials that settled: one a
user and week. A warning lets the holdback grow to a half until a week ends without one; an alarm (at most one false in
ten years) is a rollback.

A draw takes its unsettled trials with it: whoever first comes less than `rollout.settle_hours` before a week ends, or
before the holdback grows, is not counted. At the default of a day, that is who first comes on a week's last day.

Within a test users change versions once at most, for the test: a week that is over then goes on until the test has
ended, and each user counts once in all that time. Only where a warning is out are they drawn anew within it: users may
be getting what is worse. A draw at a test's end is one look more than a day's: by these, ten years of looks are over a
little sooner.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.rollouts import RolloutKind, RolloutState, RolloutStatus
from kto_ray.records.trials import Standing
from kto_ray.stats import detector
from kto_ray.stats.detector import Said, Watch

DAY_S = 86_400.0
WEEK_S = 7 * DAY_S
GROWN = 0.5  # the share of users after a warning


def start(rules: RolloutSection, champion: str, previous: str, name: str, salt: str, now: float) -> RolloutState | None:
    """The holdback of a promotion; None where the rules want none."""
    if rules.holdback == 0:
        return None
    return RolloutState(
        id=name,
        champion=champion,
        challenger=previous,
        salt=salt,
        stage=0,
        weight=rules.holdback,
        status=RolloutStatus.RUNNING,
        started_at=now,
        stage_started_at=now,
        rules=rules.model_dump(mode="json", exclude={"staff"}),
        kind=RolloutKind.HOLDBACK,
        watch=_kept(Watch(), 0, now),
    )


def step(state: RolloutState, standing: Standing, salt: str, now: float, in_test: bool = False) -> RolloutState:
    """The state after another look: unchanged until a day is over, or a draw. A day or week that began after `now` was
    dated by a clock that was wrong, and is over.

    Args:
        standing: of the present draw.
        salt: fresh and random, for the next draw.
        in_test: whether a test splits users at present.
    """
    assert state.watch is not None
    drawn_out = is_over(state, now, in_test and state.weight == _usual(state))
    if 0 <= now - state.watch["at"] < DAY_S and not drawn_out:
        return state
    watch, folded = watch_of(state), state.watch["folded"]
    new = standing.trials[folded:]
    arm = np.array([trial.challenger for trial in new], dtype=np.bool_)
    outcome = np.array([trial.outcome for trial in new], dtype=np.float64)
    if detector.said(watch) is not Said.ALARM:  # one that waits for its rollback stays, whatever settles meanwhile
        watch, folded = detector.fold(watch, arm, outcome, state.weight), len(standing.trials)
    changed = replace(state, watch=_kept(watch, folded, now))
    said = detector.said(watch)
    if said is Said.ALARM:
        words = (
            f"{state.challenger} is better after all than {state.champion}, which replaced it {_days(state, now)} ago"
        )
        return replace(changed, status=RolloutStatus.PROMOTED, reason=words, ended_at=now)
    grows = said is Said.WARN and state.weight < GROWN
    if not grows and not drawn_out:
        return changed
    # Trials are of one draw and one weight. The same users in the same arms would be the same chance counted again, as
    # if it were new evidence: a share that grows is drawn anew, too.
    changed = replace(changed, stage=state.stage + 1, salt=salt, stage_started_at=now, watch=_kept(watch, 0, now))
    if grows:
        return replace(changed, weight=GROWN, reason=f"{state.challenger} may be better: more users are held back")
    usual = _usual(state)
    if said is Said.WARN or state.weight == usual:
        return changed
    return replace(changed, weight=usual, reason=f"{state.challenger} is probably no better: fewer users are held back")


def is_over(state: RolloutState, now: float, in_test: bool) -> bool:
    """Whether a holdback's users are to be drawn anew: after a week, and not within a test."""
    age = now - state.stage_started_at
    return age < 0 or (age >= WEEK_S and not in_test)


def waits(state: RolloutState) -> bool:
    """Whether a live holdback has raised its alarm, and its rollback waits for a replica."""
    return state.watch is not None and detector.said(watch_of(state)) is Said.ALARM


def ended(state: RolloutState, why: str, now: float) -> RolloutState:
    return replace(state, status=RolloutStatus.ABORTED, reason=why, ended_at=now)


def watch_of(state: RolloutState) -> Watch:
    assert state.watch is not None
    kept = {name: state.watch[name] for name in Watch.__slots__ if name in state.watch}
    return Watch(**{**kept, "log_stakes": tuple(kept["log_stakes"])})


def _usual(state: RolloutState) -> float:
    """The share of users while nothing is suspected."""
    assert state.rules is not None
    share: float = state.rules["holdback"]
    return share


def _kept(watch: Watch, folded: int, at: float) -> dict[str, object]:
    """With how many of the week's trials are folded, and when (seconds since the epoch)."""
    return {**asdict(watch), "log_stakes": list(watch.log_stakes), "folded": folded, "at": at}


def _days(state: RolloutState, now: float) -> str:
    return f"{(now - state.started_at) / DAY_S:.0f} days"
