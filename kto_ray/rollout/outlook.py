"""What a test can come to, at the rate at which users judge: before it begins, and in its deciding stage. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.rollouts import Look, RolloutState, RolloutStatus
from kto_ray.records.trials import Votes
from kto_ray.rollout import burn_in, guards, machine
from kto_ray.rollout.asked import answered, asks
from kto_ray.stats import power

DAY_S = 86_400.0
TELLING, WEEK_DAYS = 0.5, 7.0  # the share of the time in which a test counts, and the days, that tell of all of it
FEWEST = 20  # settled trials of each arm, of which one can tell how evidence grows
CLEARLY = 1.25  # times the gain that a person has let pass is clearly another
NO_LEVEL = (
    "nothing is left of the budget for false promotions: nothing can be promoted, but by an operator, until "
    "rollout.alpha is raised, which holds for tests that begin later"
)
ANSWERS = (
    "`kto-ray rollout resume` begins it anyway, and the next ones that show as much; `abort` ends it. More hours "
    "(rollout.max_hours) or voters show more, and with a greater rollout.max_detectable none asks (1: never)"
)


@dataclass(frozen=True, slots=True)
class Flip:
    """A threshold at which the verdict becomes another; `way` is how much of the way there is done, 0 to 1."""

    verdict: machine.Action
    way: float
    words: str


@dataclass(frozen=True, slots=True)
class Outlook:
    """`verdict` is what would be done now and why, in words: what a promotion waits for, if it waits. `promotes` is all
    that it waits for, with how far each is; `trials_needed` are those that the evidence of a gain lacks, if people go
    on to judge as they did so far, None where there is now next to no such evidence, or was enough; `ends` are the
    thresholds to which the test is on the way, of which any one ends it, the nearest first. `trials_left` may settle
    before users or hours run out, at the `trials_per_day` of late; `detectable_gain` is the difference that is then
    promoted in 80% of tests, None where even the largest is not. Before the deciding stage only the verdict and what
    ends the test are known."""

    verdict: str
    trials_per_day: float | None = None
    trials_left: int | None = None
    detectable_gain: float | None = None
    promotes: tuple[str, ...] = ()
    trials_needed: int | None = None
    ends: tuple[Flip, ...] = ()


@dataclass(frozen=True, slots=True)
class Ahead:
    """What a test that begins now can come to, in words. `too_little`: it is to ask a person, for it cannot show
    `rollout.max_detectable`, only `gain` (1 where it can show none), if that is known."""

    too_little: bool
    words: str
    gain: float | None = None


def counting_hours(rules: RolloutSection) -> float:
    """Of the deciding stage, in which trials settle."""
    return rules.max_hours - rules.burn_in_hours - rules.settle_hours


def foresee(rules: RolloutSection, level: float, votes: Votes | None, accepted: float | None = None) -> Ahead:
    """What a test can come to that begins now, at this level, if users judge as they did of late. Who judges in half of
    the time, or in a week, tells of the whole: in less, those who judge often are most of them, and nobody has had the
    time to be known. A person who let a test begin that could show the `accepted` gain is not asked about another that
    can show about as much."""
    if level == 0 and rules.max_detectable < 1:
        return Ahead(True, f"{NO_LEVEL}; resume to begin it anyway, or abort it")
    if level == 0:
        return Ahead(False, f"begins, though {NO_LEVEL}")
    if votes is None:
        return Ahead(False, "begins; the service is less than two days old, and nobody can tell yet what it can show")
    days = counting_hours(rules) / 24
    if votes.days < min(days * TELLING, WEEK_DAYS):
        known = f"{votes.users} users judged in {votes.days:.1f} days who were there before"
        return Ahead(False, f"begins; the service is too young to tell what {days:.1f} days can show: {known}")
    trials = min(rules.max_users, math.floor(votes.users * days / votes.days))
    gain = _least_gain(rules, trials, votes.rate * votes.users, votes.users, level, rules.stages[-1].weight)
    shows = f"a gain of {100 * gain:.1f} points" if math.isfinite(gain) else "no gain at all"
    pace = f"in the {days:.1f} days in which it counts, at the present {votes.users / votes.days:.1f} voters a day"
    if min(gain, 1.0) <= rules.max_detectable:
        return Ahead(False, f"begins, and could show {shows} {pace}")
    least = f"{100 * rules.max_detectable:g} points (rollout.max_detectable) are to be"
    if accepted is not None and min(gain, 1.0) <= CLEARLY * accepted:
        return Ahead(False, f"begins, and could show {shows} {pace}, where {least}: a person let one like it begin")
    return Ahead(True, f"it could at best show {shows} {pace}, where {least}; {ANSWERS}", min(gain, 1.0))


def outlook(
    rules: RolloutSection, state: RolloutState, look: Look, now: float, earlier: Sequence[Look] = ()
) -> Outlook:
    """Of a live test by its newest look; by `earlier` ones, oldest first, the pace of late is told from that of the
    stage."""
    decision = machine.decide(rules, state, look, now)
    verdict = f"{decision.action}: {decision.reason}"
    if state.status is RolloutStatus.RUNNING and state.reason:
        verdict += f"; it {state.reason}"  # as to replicas
    age_s = now - state.stage_started_at
    decides = machine.stage_of(rules, state).decides
    ends = tuple(sorted(_ends(rules, state, look, age_s / 3600, decides), key=lambda flip: -flip.way))
    if not decides:
        return Outlook(verdict, ends=ends)
    settled = look.n_champion + look.n_challenger
    told = Outlook(
        verdict,
        promotes=tuple(machine.lacking(rules, state, look, age_s / 3600)),
        trials_needed=_needed(look, machine.level_of(rules, state)),
        ends=ends,
    )
    blind = max(0.0, rules.burn_in_hours - burn_in.before(rules, state.stage))
    counts_from = state.stage_started_at + 3600 * (blind + rules.settle_hours)  # none settles before
    if now <= counts_from:
        return told
    per_day = _pace(earlier, look, counts_from, now)
    days_left = max(0.0, machine.hours_of(rules, state) * 3600 - age_s) / DAY_S
    left = math.floor(per_day * days_left)
    if not answered(state, "users"):
        left = max(0, min(rules.max_users - settled, left))
    gain = _detectable(rules, state, look, settled + left)
    return replace(told, trials_per_day=per_day, trials_left=left, detectable_gain=gain)


def _pace(earlier: Sequence[Look], look: Look, since: float, now: float) -> float:
    """Trials a day in the later half of the time in which they settle, once that is a day: people who come back are in
    a test once, so that its first days bring more than those that follow."""
    looks = [one for one in earlier if one.stage == look.stage]
    half = (since + now) / 2 if looks and now - since >= 2 * DAY_S else since
    before = max((one.n_champion + one.n_challenger for one in looks if one.at <= half), default=0)
    return (look.n_champion + look.n_challenger - before) / (now - half) * DAY_S


def _needed(look: Look, level: float) -> int | None:
    """Evidence grows with the trials, in nats: as it has grown up to now, not up to its highest. Of a few voters, or of
    less than a nat, nobody can tell."""
    now = look.evidence.get("gain_now", 0.0)
    fewest = min(look.n_champion, look.n_challenger)
    if fewest < FEWEST or now < 1 or level == 0 or look.evidence.get("gain", 0.0) >= -math.log(level):
        return None
    return math.ceil((look.n_champion + look.n_challenger) * (-math.log(level) / now - 1))


def _ends(rules: RolloutSection, state: RolloutState, look: Look, hours: float, decides: bool) -> Iterator[Flip]:
    """The thresholds that end the test, and those at which a person is asked, to which it is on the way; but those that
    a person has answered."""

    def flip(criterion: str, way: float, words: str) -> Iterator[Flip]:
        if not answered(state, criterion) and way > 0:
            action = machine.Action.ASK if asks(rules, criterion) else machine.Action.ABORT
            yield Flip(action, max(0.0, min(1.0, way)), words)

    harm, enough = look.evidence.get("harm", 0.0), -math.log(rules.harm_alpha)
    odds = f"{math.exp(min(harm, 700.0)):.3g} to one, of {1 / rules.harm_alpha:.3g} to one (harm_alpha)"
    yield from flip("harm", harm / enough, f"the evidence of harm is {odds}")
    for name in rules.guards:
        low, rise = look.evidence.get(f"{name}_low", -1.0), look.evidence.get(f"{name}_rise", 0.0)
        least = guards.harm_beyond(rules, name)
        done = (rise - least) / (rise - low) if rise > least else 0.0  # all, when the whole interval lies beyond
        often = f"{guards.GUARD_WORDS[name]}, {guards.among(name)}by at least {low:+.3f}"
        yield from flip(f"faults:{name}", done, f"answers are more often {often}, of more than {least:g}")
    if not decides:
        return
    high = f"the gain may be up to {look.high:+.3f}, of {rules.min_effect:+g} (min_effect)"
    if _gain(look) <= rules.min_effect:
        yield from flip("futility", (1 - look.high) / (1 - rules.min_effect), high)
    settled, most = look.n_champion + look.n_challenger, machine.hours_of(rules, state)
    yield from flip("users", settled / rules.max_users, f"{settled} users are settled of {rules.max_users} (max_users)")
    burnt = burn_in.before(rules, state.stage)
    over = f"{hours + burnt:.1f} hours are over of {most + burnt:g} (max_hours)"
    yield Flip(machine.Action.ABORT, max(0.0, min(1.0, (hours + burnt) / (most + burnt))), over)


def _gain(look: Look) -> float:
    """As it was seen; 0 while an arm has nobody."""
    champion, challenger = look.arms
    if not champion.users or not challenger.users:
        return 0.0
    return challenger.up / challenger.users - champion.up / champion.users


def _detectable(rules: RolloutSection, state: RolloutState, look: Look, trials: int) -> float | None:
    level = machine.level_of(rules, state)
    if level == 0:
        return None
    gain = _least_gain(rules, trials, look.up_champion, look.n_champion, level, state.weight)
    return gain if math.isfinite(gain) else None


def _least_gain(rules: RolloutSection, trials: int, up: float, of: int, level: float, weight: float) -> float:
    """That so many trials promote with 80%, by both conditions on judgements; infinite where none is. The champion's
    rate is as the score test takes it: nobody yet is no rate of 0, and all ups so far are none of 1."""
    if trials == 0 or trials * min(weight, 1 - weight) < rules.min_users:
        return math.inf
    return power.detectable(trials, (1 + up) / (2 + of), level, machine.UPS_ALPHA, weight, rules.min_effect)
