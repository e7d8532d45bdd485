"""The rollout's machine: what ends a stage, what a promotion waits for, what operators may ask, and how often luck gets
promoted."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from kto_ray.config.deciding import RolloutSection, RolloutStage
from kto_ray.records.requests import Act
from kto_ray.records.rollouts import Look, RolloutState, RolloutStatus
from kto_ray.records.trials import FAULTS, GUARDS, STYLES, Exposed, Settled, Standing
from kto_ray.rollout import evidence
from kto_ray.rollout.begun import rules_of
from kto_ray.rollout.machine import Action, advance, apply, decide, start, step

HOUR = 3600.0
RULES = RolloutSection(
    stages=(
        RolloutStage(name="canary", weight=0.1, exposed=50, hours=2),
        RolloutStage(name="ab", weight=0.5, decides=True),
    ),
    min_users=20,
    max_users=300,
    min_hours=1,
    max_hours=72,
    settle_hours=1,
)
LEVEL = 0.005
CANARY = start(RULES, "policy@base", "policy@v1-aaaaaa", "r1", "salt", LEVEL, now=1000.0)
AB = advance(RULES, CANARY, now=2000.0)
LATER = AB.stage_started_at + 2 * HOUR
NO_FAULT = {f"{name}_{end}": value for name in GUARDS for end, value in (("low", -0.01), ("high", 0.01))}


def look(champion: tuple[int, float], challenger: tuple[int, float], exposed: int = 10, **changes: float) -> Look:
    """A look that saw evidence enough of everything, but for `changes`."""
    saw = {"gain": 9.0, "ups": 9.0, "harm": 0.0, "unequal": 0.0, "unequal_votes": 0.0, **NO_FAULT}
    low, high = changes.pop("low", 0.1), changes.pop("high", 0.5)
    return Look("r1", 0.0, 1, *champion, *challenger, low, high, exposed_challenger=exposed, evidence=saw | changes)


GAIN = look((60, 6), (60, 40))


def test_it_starts_in_the_first_stage_under_rules_that_it_keeps() -> None:
    assert (CANARY.stage, CANARY.weight, CANARY.status) == (0, 0.1, RolloutStatus.RUNNING)
    other = RULES.model_copy(update={"min_users": 999})
    assert rules_of(other, CANARY) == RULES
    assert rules_of(other, replace(CANARY, rules=None)) == other
    assert rules_of(other, replace(CANARY, rules={"of": "another version"})) == other
    assert CANARY.rules is not None
    unnamed = {name: rule for name, rule in CANARY.rules.items() if name != "guards"}
    then = rules_of(other, replace(CANARY, rules=unnamed))
    assert then == RULES.model_copy(update={"guards": FAULTS[:4]}), "as a controller of before 0006 begins it"
    with pytest.raises(ValueError, match="both"):
        start(RULES, "policy@base", "policy@base", "r1", "salt", LEVEL, now=0.0)


def test_a_test_keeps_rules_that_would_be_refused_today(caplog: pytest.LogCaptureFixture) -> None:
    assert CANARY.rules is not None
    stages = [*CANARY.rules["stages"][:1], {"name": "burn-in", "weight": 0.3}, *CANARY.rules["stages"][1:]]
    hopeless = ({"max_users": 20}, {"max_hours": 1}, {"settle_hours": 200, "max_hours": 400}, {"stages": stages})
    for changes in hopeless:
        stored = {**CANARY.rules, **changes}
        with pytest.raises(ValueError, match=r"lower|Lower|raise|exceed|name"):
            RolloutSection.model_validate(stored)
        kept = rules_of(RolloutSection(), replace(CANARY, rules=stored)).model_dump(mode="json", include=set(changes))
        assert kept.keys() == changes.keys() and kept != RolloutSection().model_dump(include=set(changes))
    assert not caplog.records
    unreadable = replace(CANARY, id="r77", rules={**CANARY.rules, "stages": [], "of": "another version"})
    assert [rules_of(RULES, unreadable) for _ in range(2)] == [RULES, RULES]
    [told] = caplog.messages
    assert told.startswith("rollout r77 goes on under the config's rules") and "of" in told


def test_a_canary_waits_advances_or_aborts_but_never_promotes() -> None:
    now = CANARY.stage_started_at + 1
    assert decide(RULES, CANARY, look((0, 0), (0, 0), exposed=49), now).action is Action.HOLD
    assert decide(RULES, CANARY, look((0, 0), (0, 0), exposed=50), now).action is Action.ADVANCE
    assert decide(RULES, CANARY, look((0, 0), (0, 0), exposed=1), now + 2 * HOUR).action is Action.ADVANCE
    unseen = decide(RULES, CANARY, look((0, 0), (0, 0), exposed=0), now + 2 * HOUR)
    assert unseen.action is Action.HOLD and "answered nobody in 2.0 hours, and waits for somebody" in unseen.reason
    never = decide(RULES, CANARY, look((0, 0), (0, 0), exposed=0), now + 3600 * RULES.max_hours)
    assert (never.action, never.criterion) == (Action.ABORT, "hours") and "answered nobody in" in never.reason
    resumed = replace(CANARY, asked=(f"hours@{RULES.max_hours + 2}",))
    again = decide(RULES, resumed, look((0, 0), (0, 0), exposed=0), now + 3600 * (2 * RULES.max_hours + 1))
    assert again.action is Action.HOLD, "as many hours again, for who resumed it"
    ended = decide(RULES, resumed, look((0, 0), (0, 0), exposed=0), now + 3600 * (2 * RULES.max_hours + 3))
    assert ended.action is Action.ABORT and "(max_hours) after it was resumed" in ended.reason
    assert decide(RULES, CANARY, look((200, 0), (200, 200), exposed=500), now).action is Action.ADVANCE
    harm = decide(RULES, CANARY, look((60, 58), (20, 0), exposed=500, harm=3.1), now)
    assert harm.action is Action.ABORT and "worse" in harm.reason
    assert "0 up of 20 users against the champion's 58 of 60" in harm.reason


@pytest.mark.parametrize("state", [CANARY, AB])
@pytest.mark.parametrize("guard", GUARDS)
def test_what_is_guarded_and_more_frequent_ends_every_stage(state: RolloutState, guard: str) -> None:
    """Of what some may want, only from the margin on."""
    least = RULES.max_style_rise if guard in STYLES else 0.0
    at = replace(GAIN, evidence={**GAIN.evidence, f"{guard}_low": least + 0.02, f"{guard}_high": 0.4})
    broken = decide(RULES, state, at, LATER)
    assert broken.action is Action.ABORT and f"by at least {least + 0.02:.3f}" in broken.reason
    unsure = replace(at, evidence={**at.evidence, f"{guard}_low": least})
    assert decide(RULES, state, unsure, LATER).action is not Action.ABORT
    others = RULES.model_copy(update={"guards": tuple(name for name in GUARDS if name != guard)})
    assert decide(others, AB, at, LATER).action is Action.PROMOTE


def test_the_guards_are_those_that_are_counted() -> None:
    assert RULES.guards == GUARDS
    assert set(GUARDS) <= set(Exposed.__slots__)


def test_what_nobody_had_the_time_for_is_not_judged_and_said_so() -> None:
    """Also of a test that began when it still was among the guards."""
    at_once = RolloutSection(settle_hours=0)
    assert at_once.guards == FAULTS
    begun = start(at_once, "policy@base", "policy@v1-aaaaaa", "r1", "salt", LEVEL, now=1000.0)
    assert begun.rules is not None
    before = replace(begun, rules={**begun.rules, "guards": list(GUARDS)})
    assert rules_of(RULES, before) == at_once
    words = "; regenerated, disagreed, edited are not judged, for settle_hours is 0"
    assert decide(at_once, begun, GAIN, LATER).reason.endswith(words)
    assert words not in decide(RULES, CANARY, GAIN, LATER).reason
    hasty = RolloutSection(settle_hours=0.001)
    told = decide(hasty, AB, GAIN, LATER).reason
    assert "by what users do within 3.6 s of their first answer (settle_hours): hardly anybody" in told
    assert "hardly" not in decide(RolloutSection(settle_hours=0.1), AB, GAIN, LATER).reason


def test_what_no_client_tells_of_is_said_to_guard_nothing() -> None:
    """Whoever sends no signals has users who are never found to ask again, or to disagree."""
    arms = Exposed(99, 99, observed=99), Exposed(99, 99, observed=99, disagreed=1)

    def told(rules: RolloutSection = RULES) -> str:

        seen = evidence.look(rules, AB, Standing("r1", 1, *arms), LATER)
        return decide(rules, AB, seen, LATER).reason

    assert told().endswith(
        "; regenerated of none of 198 users: where clients send no such signals, this guards nothing"
    )
    assert "guards nothing" not in told(RULES.model_copy(update={"guards": FAULTS})), "nor is it to"
    assert "guards nothing" not in told(RULES.model_copy(update={"guards": ("edited",)})), "edits are feedback"


def test_what_nobody_ever_does_holds_up_no_promotion() -> None:
    """Not beyond what the margin needs of any guard: 280 users of each arm, or of a canary's weight more."""
    for n, shown in ((200, False), (280, True), (1000, True)):
        arm = Exposed(n, n, observed=n)
        seen = evidence.look(RULES, AB, Standing("r1", 1, arm, arm), LATER).evidence
        for guard in GUARDS:
            assert (seen[f"{guard}_high"] <= RULES.max_fault_rise) is shown and seen[f"{guard}_low"] < 0


def test_a_reaction_counts_among_those_who_had_the_time_for_it() -> None:
    champion, challenger = (
        Exposed(900, 800, observed=400, edited=40, slow=40),
        Exposed(900, 800, observed=400, edited=8),
    )
    seen = evidence.look(RULES, AB, Standing("r1", 1, champion, challenger), LATER).evidence
    assert seen["observed"] == 800 and seen["edited_low"] < 8 / 400 - 40 / 400 < seen["edited_high"] < 0
    assert seen["slow_low"] < -40 / 800 < seen["slow_high"] < 0
    standing = Standing("r1", 1, champion, replace(challenger, observed=430))
    last = evidence.look(RULES, AB, Standing("r1", 1, champion, challenger), LATER)
    assert not evidence.is_due(last, Standing("r1", 1, champion, challenger)) and evidence.is_due(last, standing)


def test_guards_that_luck_alone_moves_end_few_tests() -> None:
    """All of them at once, looked at again and again."""
    random = np.random.default_rng(3)
    ended = 0
    for _ in range(20):
        counts = np.zeros((2, len(GUARDS)), dtype=np.int64)
        for n in range(50, 1001, 50):
            counts += random.binomial(50, 0.1, counts.shape)
            one, other = (Exposed(n, n, observed=n, **dict(zip(GUARDS, arm, strict=True))) for arm in counts.tolist())
            at = evidence.look(RULES, CANARY, Standing("r1", 0, one, other), LATER)
            if decide(RULES, CANARY, at, LATER).action is Action.ABORT:
                ended += 1
                break
    assert ended <= binom.ppf(0.999, 20, RULES.harm_alpha)


def test_the_deciding_stage_promotes_on_evidence_of_gain() -> None:
    decision = decide(RULES, AB, GAIN, LATER)
    assert decision.action is Action.PROMOTE and "90% confidence sequence" in decision.reason
    ended = step(RULES, AB, decision, LATER)
    assert (ended.status, ended.ended_at, ended.reason) == (RolloutStatus.PROMOTED, LATER, decision.reason)
    assert ended.by_evidence


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gain": -math.log(LEVEL) - 0.01}, "the evidence of a gain is 198 to one, of 200 to one"),
        ({"ups": 2.9}, "no more users judge an answer up"),
        ({"unequal": 7.0}, "share of users is not the 50%"),
        ({"unequal_votes": 7.0}, "share of judged users is not the 50%"),
        ({"slow_high": 0.06}, "late to begin more often, by up to 0.060 of 0.05"),
        ({"long_high": 0.12}, "long more often, by up to 0.120 of 0.1"),
        ({"edited_high": 0.06}, "edited more often, of users whose time to react is over, by up to 0.060 of 0.05"),
    ],
)
def test_a_promotion_waits_for_all_that_it_needs(changes: dict[str, float], why: str) -> None:
    held = decide(RULES, AB, replace(GAIN, evidence={**GAIN.evidence, **changes}), LATER)
    assert held.action is Action.HOLD and why in held.reason
    late = decide(RULES, AB, replace(GAIN, evidence={**GAIN.evidence, **changes}), AB.stage_started_at + 72 * HOUR)
    assert late.action is Action.ABORT and "72 hours" in late.reason and why in late.reason


def test_the_deciding_stage_needs_its_users_and_hours() -> None:
    few = decide(RULES, AB, look((19, 0), (60, 60)), LATER)
    assert few.action is Action.HOLD and "19 judged users of 20" in few.reason
    early = decide(RULES, AB, GAIN, AB.stage_started_at + 0.5 * HOUR)
    assert early.action is Action.HOLD and "0.5 hours are over of 1" in early.reason


def test_the_deciding_stage_aborts() -> None:
    none = look((150, 45), (150, 45), gain=0.0, low=-0.1, high=0.1)
    out = decide(RULES, AB, none, LATER)
    assert out.action is Action.ABORT and "among 300 judged users" in out.reason
    assert step(RULES, AB, out, LATER).status is RolloutStatus.ABORTED
    futile = decide(RULES, AB, look((60, 40), (60, 6), gain=0.0, low=-0.5, high=-0.1), LATER)
    assert futile.action is Action.ABORT and "ruled out" in futile.reason
    nobody = decide(RULES, AB, look((0, 0), (0, 0), gain=0.0, low=-1, high=1), LATER)
    assert nobody.action is Action.HOLD


@pytest.mark.parametrize(
    ("criterion", "at"),
    [
        ("harm", look((60, 6), (60, 4), harm=3.1)),
        ("faults", look((60, 6), (60, 4), failed_low=0.1)),
        ("futility", look((60, 6), (60, 4), gain=0.0, high=-0.1)),
        ("users", look((150, 6), (150, 4), gain=0.0)),
    ],
)
def test_a_person_may_be_asked_instead(criterion: str, at: Look) -> None:
    asks = RULES.model_copy(update={"ask": (criterion,)})
    assert decide(RULES, AB, at, LATER).action is Action.ABORT
    decision = decide(asks, AB, at, LATER)
    paused = step(asks, AB, decision, LATER)
    assert decision.action is Action.ASK and paused.status is RolloutStatus.PAUSED
    assert paused.reason is not None and paused.reason.startswith("asks for promote, abort or resume: ")
    assert decide(asks, paused, at, LATER).action is Action.HOLD


@pytest.mark.parametrize("why", ["paused by an operator", "asks for promote, abort or resume: the challenger is worse"])
def test_a_pause_ends_by_its_hours_and_says_what_it_was_for(why: str) -> None:
    paused = replace(apply(AB, Act.PAUSE, LATER), reason=why)
    week = LATER + RULES.max_paused_hours * HOUR
    held = decide(RULES, paused, GAIN, week - 1)
    assert held.action is Action.HOLD and held.reason.endswith(f"168 hours (max_paused_hours) at most: {why}")
    over = decide(RULES, paused, GAIN, week)
    assert (over.action, over.reason) == (
        Action.ABORT,
        f"nobody resumed it within 168 hours (max_paused_hours): {why}",
    )
    again = apply(apply(paused, Act.RESUME, week), Act.PAUSE, week)
    assert decide(RULES, again, GAIN, week + HOUR).action is Action.HOLD, "a new pause has hours of its own"


def resumed(criterion: str, at: Look, now: float = LATER) -> tuple[RolloutSection, RolloutState]:
    """The rules that ask about a criterion, and a test that a person let go on when it asked."""
    asks = RULES.model_copy(update={"ask": (criterion,)})
    paused = step(asks, AB, decide(asks, AB, at, now), now)
    assert paused.status is RolloutStatus.PAUSED
    return asks, apply(paused, Act.RESUME, now + 200 * HOUR)


@pytest.mark.parametrize(
    ("criterion", "at"),
    [
        ("harm", look((60, 6), (60, 40), harm=3.1)),
        ("faults", look((60, 6), (60, 4), failed_low=0.1, gain=0.0)),
        ("futility", look((60, 6), (60, 4), gain=0.0, high=-0.1)),
        ("users", look((150, 6), (150, 4), gain=0.0)),
    ],
)
def test_who_resumes_has_answered_for_the_stage(criterion: str, at: Look) -> None:
    asks, after = resumed(criterion, at, AB.stage_started_at + 2 * HOUR)
    asks = asks.model_copy(update={"max_hours": 336.0})
    now = AB.stage_started_at + 203 * HOUR
    held = decide(asks, after, at, now)
    words = "faults:failed" if criterion == "faults" else criterion
    assert (held.action, after.asked) == (Action.HOLD, (words,)), held.reason
    assert ("the challenger is worse" in held.reason) == (criterion == "harm"), "evidence of gain and all"
    late = decide(asks, after, at, AB.stage_started_at + 336 * HOUR)
    assert late.action is Action.ABORT and "336 hours" in late.reason, "its hours end it still"
    assert advance(RULES, replace(CANARY, asked=(criterion,)), 2000.0).asked == (), "another stage, another question"


def test_another_criterion_ends_it_still() -> None:
    asks, after = resumed("futility", look((60, 6), (60, 4), gain=0.0, high=-0.1))
    assert decide(asks, after, look((60, 6), (60, 4), gain=0.0, harm=3.1), LATER).action is Action.ABORT


def test_who_lets_one_fault_pass_is_asked_about_another() -> None:
    slow = look((60, 6), (60, 4), slow_low=0.02, gain=0.0)
    worse = replace(slow, evidence={**slow.evidence, "failed_low": 0.6})
    asks, after = resumed("faults", slow)
    asks = asks.model_copy(update={"max_hours": 336.0})
    now = LATER + HOUR
    assert after.asked == ("faults:slow",) and decide(asks, after, slow, now).action is Action.HOLD
    again = decide(asks, after, worse, now)
    assert again.action is Action.ASK and "more often failed" in again.reason
    assert decide(RULES, after, worse, now).action is Action.ABORT
    of_old = replace(after, asked=("faults",))
    assert decide(asks, of_old, worse, now).action is Action.HOLD, "then it was of all"


def test_hours_are_prolonged_once_whatever_is_paused_later() -> None:
    none, out = look((60, 6), (60, 6), gain=0.0, low=-0.2, high=0.2), AB.stage_started_at + 72 * HOUR
    asks, after = resumed("hours", none, out)
    for at in (out + 210 * HOUR, out + 260 * HOUR):
        after = apply(apply(after, Act.PAUSE, at), Act.RESUME, at + HOUR)
    end = out + 200 * HOUR + 72 * HOUR
    assert decide(asks, after, none, end - 1).action is Action.HOLD
    assert decide(asks, after, none, end).action is Action.ABORT


def test_hours_that_a_person_prolonged_run_out_in_the_end() -> None:
    none, out = look((60, 6), (60, 6), gain=0.0, low=-0.2, high=0.2), AB.stage_started_at + 72 * HOUR
    asks, after = resumed("hours", none, out)
    again = out + 200 * HOUR + 72 * HOUR
    assert decide(asks, after, none, again - 1).action is Action.HOLD
    over = decide(asks, after, none, again)
    assert over.action is Action.ABORT and "72 hours (max_hours) after it was resumed" in over.reason


def test_hours_end_the_deciding_stage_by_its_own_clock() -> None:
    none = look((60, 6), (60, 6), gain=0.0, low=-0.2, high=0.2)
    late = AB.stage_started_at + 72 * HOUR
    assert decide(RULES, AB, none, late - 1).action is Action.HOLD
    assert decide(RULES, AB, none, late).action is Action.ABORT
    assert decide(RULES, AB, GAIN, late).action is Action.PROMOTE, "evidence at the last moment still promotes"


def test_advancing_takes_the_next_weight_and_clock() -> None:
    assert (AB.stage, AB.weight, AB.stage_started_at, AB.started_at) == (1, 0.5, 2000.0, 1000.0)
    assert step(RULES, CANARY, decide(RULES, CANARY, look((9, 3), (5, 2), exposed=50), 2000.0), 2000.0) == AB
    with pytest.raises(ValueError, match="stage 2 of 2"):
        advance(RULES, AB, now=0.0)


def test_paused_holds_and_resumes() -> None:
    paused = apply(AB, Act.PAUSE, 2500.0)
    assert paused.status is RolloutStatus.PAUSED
    decision = decide(RULES, paused, GAIN, LATER)
    assert decision.action is Action.HOLD
    assert step(RULES, paused, decision, 2501.0) == paused
    assert apply(paused, Act.RESUME, 2600.0) == replace(AB, status_at=2600.0)


@pytest.mark.parametrize("state", [CANARY, AB, replace(AB, status=RolloutStatus.PAUSED)])
def test_operators_may_end_a_live_rollout(state: RolloutState) -> None:
    promoted, aborted = apply(state, Act.PROMOTE, 3000.0), apply(state, Act.ABORT, 3000.0)
    assert (promoted.status, promoted.ended_at) == (RolloutStatus.PROMOTED, 3000.0)
    assert (aborted.status, aborted.ended_at) == (RolloutStatus.ABORTED, 3000.0)
    assert promoted.reason == "promoted by an operator, without evidence"
    assert not promoted.by_evidence


@pytest.mark.parametrize("act", [Act.PROMOTE, Act.ABORT, Act.PAUSE, Act.RESUME])
@pytest.mark.parametrize("status", [RolloutStatus.PROMOTED, RolloutStatus.ABORTED])
def test_an_ended_rollout_takes_no_request(act: Act, status: RolloutStatus) -> None:
    with pytest.raises(ValueError, match="has ended"):
        apply(replace(AB, status=status), act, 3000.0)


def test_requests_must_fit() -> None:
    with pytest.raises(ValueError, match="pause is what fits"):
        apply(AB, Act.RESUME, 3000.0)
    with pytest.raises(ValueError, match="resume is what fits"):
        apply(apply(AB, Act.PAUSE, 2500.0), Act.PAUSE, 3000.0)
    with pytest.raises(ValueError, match="nothing that a rollout can be asked"):
        apply(AB, Act.ROLLBACK, 3000.0)


def run(p0: float, p1: float, random: np.random.Generator) -> RolloutState:
    """A whole deciding stage, with a decision after every few judged users."""
    state, now, trials, exposed = AB, LATER, list[Settled](), [0, 0]
    while state.status is RolloutStatus.RUNNING:
        now += 1.0
        for _ in range(10):
            arm = bool(random.random() < state.weight)
            exposed[arm] += 1
            trials.append(Settled(arm, float(random.random() < (p0, p1)[arm])))
        silent = int(random.binomial(190, state.weight))  # who says nothing is exposed too
        exposed = [exposed[0] + 190 - silent, exposed[1] + silent]
        champion, challenger = (Exposed(n, n, observed=n) for n in exposed)
        seen = evidence.look(RULES, state, Standing("r1", 1, champion, challenger, tuple(trials)), now)
        state = step(RULES, state, decide(RULES, state, seen, now), now)
    return state


def test_a_candidate_that_is_no_better_is_promoted_at_most_at_the_stated_rate() -> None:
    """80 tests at p1 = p0, and 30 with a worse candidate."""
    random = np.random.default_rng(0)
    promoted = [run(0.2, 0.2, random).status for _ in range(80)].count(RolloutStatus.PROMOTED)
    assert promoted <= binom.ppf(0.999, 80, LEVEL)
    worse = [run(0.4, 0.2, random).status for _ in range(30)].count(RolloutStatus.PROMOTED)
    assert worse == 0


def test_a_better_candidate_is_promoted() -> None:
    random = np.random.default_rng(1)
    promoted = [run(0.15, 0.5, random).status for _ in range(20)].count(RolloutStatus.PROMOTED)
    assert promoted >= 19
