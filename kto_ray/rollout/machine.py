"""When a stage of the A/B test ends, and how, on a challenger's way to champion: pure functions on a look at it.

    canary (watches for harm) -> ... -> ab (decides) -> promoted | aborted

A watching stage ends in `abort` when the challenger is worse or what `guards` names is more frequent with it, or it
answered nobody for max_hours, and in `advance` once enough of its users got an answer, or some after its hours. The
deciding stage ends in `promote` when there is evidence of gain, at the level that the loop's budget gave this test, and
of more ups among all who got an answer, no guard has become more frequent by its margin, and its least users and hours
are over; in `abort` when there is evidence of harm, a gain above min_effect is ruled out (futility), or users or hours
run out. Where the split is not as drawn, nothing is promoted. A person may be asked instead: who resumes has answered
for the stage. No pause lasts beyond max_paused_hours.

Each stage uses its own data only. Weights differ between stages and tastes drift with time: pooling a canary of 10%
with an A/B of 50% puts more of the champion's users into the early days than of the challenger's, so a drift in time
would look like a difference between arms (Simpson's paradox). Within a stage the weight is constant and the arms are
drawn alike at every moment. The price is that canary judgements are not evidence for promotion.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from kto_ray.config.deciding import RolloutSection, RolloutStage
from kto_ray.records.requests import Act
from kto_ray.records.rollouts import Look, RolloutState, RolloutStatus
from kto_ray.rollout import burn_in
from kto_ray.rollout.asked import answered, asks, prolonged_at, resumed
from kto_ray.rollout.guards import GUARD_WORDS, among, blind, harm_beyond, most_of

UPS_ALPHA = 0.05  # of the second condition, more ups among all who got an answer


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now and why, in words."""

    action: Action
    reason: str
    criterion: str | None = None  # that ended the test, as `rollout.ask` names it; of faults, with which: faults:slow


class Action(enum.StrEnum):
    HOLD = "hold"
    ADVANCE = "advance"
    PROMOTE = "promote"
    ABORT = "abort"
    ASK = "ask"  # a person


def start(
    config: RolloutSection, champion: str, challenger: str, rollout: str, salt: str, level: float, now: float
) -> RolloutState:
    """A new rollout in its first stage. `salt` must be new for each rollout, so that arms are drawn anew; `level` is
    what the budget allows it."""
    if champion == challenger:
        raise ValueError(f"champion and challenger are both {champion!r}; a rollout compares two adapters")
    rules = burn_in.with_stage(config)
    return RolloutState(
        id=rollout,
        champion=champion,
        challenger=challenger,
        salt=salt,
        stage=0,
        weight=rules.stages[0].weight,
        status=RolloutStatus.RUNNING,
        started_at=now,
        stage_started_at=now,
        level=level,
        rules=rules.model_dump(mode="json", exclude={"staff"}),  # names of users, which an erasure would not find
    )


def ask_first(state: RolloutState, why: str, now: float, detectable: float | None = None) -> RolloutState:
    """A new test that does not begin before a person resumes it: nobody is on its challenger until then. Their answer
    is that to what it can show, the least gain that is `detectable`."""
    reason = f"asks for resume or abort before it begins: {why}"
    watch = None if detectable is None else {"detectable": detectable}
    return replace(state, status=RolloutStatus.PAUSED, weight=0.0, reason=reason, status_at=now, watch=watch)


def decide(rules: RolloutSection, state: RolloutState, look: Look, now: float) -> Decision:
    """The decision on what a look saw. May be asked as often as one likes. An ended rollout holds, and so does a paused
    one, for max_paused_hours; its stage's hours go on counting meanwhile, as traffic and evidence do."""
    stage = stage_of(rules, state)
    if state.status is RolloutStatus.PAUSED:
        return _paused(rules, state, now)
    if not state.live:
        return Decision(Action.HOLD, f"the rollout is {state.status}")
    hours = (now - state.stage_started_at) / 3600
    action, reason, criterion = _harm(rules, state, look) or (
        _decide(rules, state, stage, look, hours) if stage.decides else _watch(rules, state, stage, look, hours)
    )
    if action is Action.ABORT and criterion is not None and asks(rules, criterion) and not answered(state, criterion):
        action = Action.ASK
    return Decision(action, f"{reason}: {in_words(rules, look)}", criterion)


def _paused(rules: RolloutSection, state: RolloutState, now: float) -> Decision:
    limit = f"{rules.max_paused_hours:g} hours (max_paused_hours)"
    if state.status_at is None or now - state.status_at < 3600 * rules.max_paused_hours:
        return Decision(Action.HOLD, f"the rollout is paused, for {limit} at most: {state.reason}")
    return Decision(Action.ABORT, f"nobody resumed it within {limit}: {state.reason}")


def stage_of(rules: RolloutSection, state: RolloutState) -> RolloutStage:
    return rules.stages[min(state.stage, len(rules.stages) - 1)]


def hours_of(rules: RolloutSection, state: RolloutState) -> float:
    """That the deciding stage may take: max_hours, less its burn-in, and as many again from when a person let it go on
    after these."""
    return rules.max_hours - burn_in.before(rules, state.stage) + (prolonged_at(state) or 0.0)


def level_of(rules: RolloutSection, state: RolloutState) -> float:
    """The chance of a false promotion that is allowed: of a test from before the budget, that of a first one."""
    return state.level if state.rules is not None else rules.omega * rules.alpha


Verdict = tuple[Action, str, str | None]  # and the criterion, for `ask`


def _worse(rules: RolloutSection, look: Look) -> bool:
    return look.evidence.get("harm", 0.0) >= -math.log(rules.harm_alpha)


def _harm(rules: RolloutSection, state: RolloutState, look: Look) -> Verdict | None:
    if _worse(rules, look) and not answered(state, "harm"):
        return Action.ABORT, "the challenger is worse", "harm"
    for name in rules.guards:
        low = look.evidence.get(f"{name}_low", -1.0)
        if low > harm_beyond(rules, name) and not answered(state, f"faults:{name}"):
            words = f"the challenger's answers are more often {GUARD_WORDS[name]}, {among(name)}by at least {low:.3f}"
            return Action.ABORT, words, f"faults:{name}"
    return None


def _watch(rules: RolloutSection, state: RolloutState, stage: RolloutStage, look: Look, hours: float) -> Verdict:
    if stage.exposed is not None and look.exposed_challenger >= stage.exposed:
        seen = f"{look.exposed_challenger} users whom the challenger answered"
        return Action.ADVANCE, f"stage {stage.name!r} saw no harm among {seen}", None
    if hours >= stage.hours and look.exposed_challenger == 0:
        nobody = f"stage {stage.name!r}: the challenger answered nobody in {hours:.1f} hours"
        if hours >= rules.max_hours + (prolonged_at(state) or 0.0):
            again = " after it was resumed" if answered(state, "hours") else ""
            return Action.ABORT, f"{nobody} (max_hours){again}", "hours"
        return Action.HOLD, f"{nobody}, and waits for somebody", None
    if hours >= stage.hours:
        return Action.ADVANCE, f"stage {stage.name!r} saw no harm in {stage.hours:g} hours", None
    enough = f"{stage.exposed} users whom the challenger answered, or " if stage.exposed is not None else ""
    return Action.HOLD, f"stage {stage.name!r} waits for {enough}{stage.hours:g} hours", None


def _decide(rules: RolloutSection, state: RolloutState, stage: RolloutStage, look: Look, hours: float) -> Verdict:
    lacks = next(lacking(rules, state, look, hours), None)
    if lacks is None:
        gain = f" by more than {rules.min_effect:g}" if rules.min_effect else ""
        return Action.PROMOTE, f"the challenger is better{gain}", None
    ruled_out = look.high <= rules.min_effect and look.n_champion and look.n_challenger
    if ruled_out and not answered(state, "futility"):
        return Action.ABORT, f"a gain above {rules.min_effect:g} (min_effect) is ruled out", "futility"
    if look.n_champion + look.n_challenger >= rules.max_users and not answered(state, "users"):
        return Action.ABORT, f"no promotion among {rules.max_users} judged users (max_users), for {lacks}", "users"
    if hours >= hours_of(rules, state):
        again = " after it was resumed" if answered(state, "hours") else ""
        words = f"no promotion within {rules.max_hours:g} hours (max_hours){again}, for {lacks}"
        return Action.ABORT, words, "hours"
    return Action.HOLD, f"stage {stage.name!r} goes on, for {lacks}", None


def lacking(rules: RolloutSection, state: RolloutState, look: Look, hours: float) -> Iterator[str]:
    """All that a promotion waits for, in words, with how far each is."""
    saw, level = look.evidence, level_of(rules, state)
    if _worse(rules, look):
        yield "the challenger is worse, in spite of which a person let the test go on"
    for name, who in (("unequal", "users"), ("unequal_votes", "judged users")):
        if saw.get(name, 0.0) >= -math.log(rules.unequal_alpha):
            share = f"{state.weight:.0%}"
            yield f"the challenger's share of {who} is not the {share} that was drawn: what is counted is no fair split"
    fewest = min(look.n_champion, look.n_challenger)
    if fewest < rules.min_users:
        yield f"an arm has {fewest} judged users of {rules.min_users} (min_users)"
    if level == 0:
        yield "nothing is left of the budget for false promotions (rollout.alpha was lowered)"
    elif saw.get("gain", 0.0) < -math.log(level):
        yield f"the evidence of a gain is {_odds(saw.get('gain', 0.0))} to one, of {1 / level:.3g} to one"
    if saw.get("ups", 0.0) < -math.log(UPS_ALPHA):
        far = f"evidence {_odds(saw.get('ups', 0.0))} to one, of {1 / UPS_ALPHA:.3g} to one"
        yield f"no more users judge an answer up, of all who got one, than of the champion's ({far})"
    for name in rules.guards:
        high = saw.get(f"{name}_high", 1.0)
        most = most_of(rules, name)
        if high > most:
            yield f"answers may be {GUARD_WORDS[name]} more often, {among(name)}by up to {high:.3f} of {most:g}"
    if (over := hours + burn_in.before(rules, state.stage)) < rules.min_hours:
        yield f"{over:.1f} hours are over of {rules.min_hours:g} (min_hours)"


def _odds(evidence: float) -> str:
    return f"{math.exp(min(evidence, 700.0)):.3g}"


def in_words(rules: RolloutSection, look: Look) -> str:
    return (
        f"{look.up_challenger:.10g} up of {look.n_challenger} users against the champion's {look.up_champion:.10g} of "
        f"{look.n_champion}, difference {look.low:+.3f} to {look.high:+.3f} ({1 - 2 * rules.harm_alpha:.0%} confidence "
        f"sequence); answered {look.exposed_challenger} and {look.exposed_champion} users{blind(rules, look)}"
    )


def step(config: RolloutSection, state: RolloutState, decision: Decision, now: float) -> RolloutState:
    """The state after a decision; unchanged for `hold`."""
    match decision.action:
        case Action.ADVANCE:
            return advance(config, state, now)
        case Action.PROMOTE:
            return _end(state, RolloutStatus.PROMOTED, decision.reason, now)
        case Action.ABORT:
            return _end(state, RolloutStatus.ABORTED, decision.reason, now)
        case Action.ASK:
            assert decision.criterion is not None
            words, asked = f"asks for promote, abort or resume: {decision.reason}", (*state.asked, decision.criterion)
            return replace(state, status=RolloutStatus.PAUSED, reason=words, status_at=now, asked=asked)
        case Action.HOLD:
            return state


def advance(config: RolloutSection, state: RolloutState, now: float) -> RolloutState:
    """The next stage: its weight, its own clock and, with that, its own counts. What a person answered was of this one.

    Raises:
        ValueError: the rollout is not running, or it stands in its last stage.
    """
    if state.status is not RolloutStatus.RUNNING or state.stage + 1 >= len(config.stages):
        raise ValueError(
            f"rollout {state.id!r} cannot advance: it is {state.status} in stage {state.stage + 1} "
            f"of {len(config.stages)}"
        )
    stage = state.stage + 1
    return replace(state, stage=stage, weight=config.stages[stage].weight, stage_started_at=now, asked=())


def apply(state: RolloutState, act: Act, now: float) -> RolloutState:
    """What an operator asks for. `promote` and `abort` end a live rollout, whatever the statistics say: a promotion
    without evidence gives nothing of the budget back.

    Raises:
        ValueError: the request does not fit the state (an ended rollout, a pause of a paused one, ...) or is unknown.
    """
    if state.status in (RolloutStatus.PROMOTED, RolloutStatus.ABORTED):
        raise ValueError(f"cannot {act} rollout {state.id!r}: it has ended ({state.status})")
    if act is Act.PROMOTE:
        promoted = _end(state, RolloutStatus.PROMOTED, "promoted by an operator, without evidence", now)
        return replace(promoted, by_evidence=False)
    if act is Act.ABORT:
        return replace(_end(state, RolloutStatus.ABORTED, "aborted by an operator", now), by_evidence=False)
    if act is Act.PAUSE and state.status is RolloutStatus.RUNNING:
        return replace(state, status=RolloutStatus.PAUSED, reason="paused by an operator", status_at=now)
    if act is Act.RESUME and state.status is RolloutStatus.PAUSED:
        running = replace(state, status=RolloutStatus.RUNNING, reason=None, status_at=now)
        return _begun(resumed(running, (now - state.stage_started_at) / 3600), now)
    if act in (Act.PAUSE, Act.RESUME):
        fits = Act.RESUME if act is Act.PAUSE else Act.PAUSE
        raise ValueError(f"cannot {act} rollout {state.id!r}: it is {state.status}; {fits} is what fits now")
    raise ValueError(f"{act} is nothing that a rollout can be asked")


def _begun(state: RolloutState, now: float) -> RolloutState:
    """A test that asked before it began begins when it is resumed."""
    if state.weight > 0:
        return state
    assert state.rules is not None
    weight: float = state.rules["stages"][state.stage]["weight"]
    return replace(state, weight=weight, stage_started_at=now)


def _end(state: RolloutState, status: RolloutStatus, reason: str, now: float) -> RolloutState:
    level = state.level if state.weight > 0 else 0.0  # one that never began has put nothing at risk
    return replace(state, status=status, reason=reason, ended_at=now, level=level)
