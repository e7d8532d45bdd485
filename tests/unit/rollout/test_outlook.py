"""What a test waits for and what it can still come to, told to people."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.rollouts import Look
from kto_ray.records.trials import GUARDS, Exposed, Settled, Standing, Votes
from kto_ray.rollout import evidence
from kto_ray.rollout.guards import GUARD_WORDS
from kto_ray.rollout.machine import UPS_ALPHA, advance, start
from kto_ray.rollout.outlook import foresee, outlook
from kto_ray.stats.power import detectable

DAY = 86_400.0
RULES = RolloutSection()
CANARY = start(RULES, "policy@base", "policy@v1-aaaaaa", "r1", "salt", 0.005, now=0.0)
AB = advance(RULES, CANARY, now=0.0)
SAW = {"gain": 1.0, "gain_now": 1.0, "ups": 1.0, "harm": 0.0, "failed_low": -0.2, "failed_high": 0.2}
LOOK = Look("r1", DAY, 1, 500, 300.0, 500, 325.0, -0.05, 0.15, 9000, 9000, SAW)


def test_it_says_what_a_promotion_waits_for_and_how_much_is_left() -> None:
    told = outlook(RULES, AB, LOOK, 3 * DAY)
    assert told.verdict.startswith("hold: stage 'ab' goes on, for the evidence of a gain is 2.72 to one, of 200 to one")
    assert told.trials_per_day == pytest.approx(500.0), "of the two days in which trials could settle"
    assert told.trials_left == 500 * 11, "until its 14 days are over"
    assert told.detectable_gain == pytest.approx(detectable(6500, 301 / 502, 0.005, UPS_ALPHA))


def test_the_pace_is_that_of_late() -> None:
    """People who come back are in a test once: 900 of 1000 came on its first day, and 100 on its second."""
    first = replace(LOOK, at=2 * DAY, n_champion=450, n_challenger=450)
    told = outlook(RULES, AB, replace(LOOK, at=3 * DAY), 3 * DAY, [replace(LOOK, stage=0, at=0.1), first])
    assert told.trials_per_day == pytest.approx(100.0) and told.trials_left == 100 * 11
    nobody_yet = outlook(RULES, AB, replace(LOOK, at=3 * DAY), 3 * DAY, [replace(LOOK, at=2.5 * DAY)])
    assert nobody_yet.trials_per_day == pytest.approx(1000.0), "all of them came on the second day"
    young = outlook(RULES, AB, replace(LOOK, at=2.9 * DAY), 2.9 * DAY, [replace(first, at=1.9 * DAY)])
    assert young.trials_per_day == pytest.approx(1000 / 1.9), "half of it may be a night"


def test_users_may_run_out_first() -> None:
    few = RULES.model_copy(update={"max_users": 1200})
    assert outlook(few, AB, LOOK, 3 * DAY).trials_left == 200


def test_what_a_person_let_go_on_is_no_limit() -> None:
    few = RULES.model_copy(update={"max_users": 1200})
    assert outlook(few, replace(AB, asked=("users",)), LOOK, 3 * DAY).trials_left == 500 * 11
    prolonged = replace(AB, asked=("hours",), status_at=2 * DAY)
    assert outlook(RULES, prolonged, LOOK, 3 * DAY).trials_left == 500 * 13


def test_it_says_that_a_promotion_waits_for_replicas() -> None:
    gain = {"gain": 9.0, "ups": 9.0} | {f"{name}_{end}": 0.0 for name in GUARDS for end in ("low", "high")}
    waits = replace(AB, reason="waits to be promoted, for 1 of 2 live replicas do not hold the adapter")
    told = outlook(RULES, waits, replace(LOOK, evidence=gain), 3 * DAY).verdict
    assert told.startswith("promote: the challenger is better") and told.endswith(f"; it {waits.reason}")


def test_what_cannot_be_known_is_not_told() -> None:
    watching = outlook(RULES, CANARY, replace(LOOK, stage=0), 3 * DAY)
    assert (watching.trials_per_day, watching.trials_left, watching.detectable_gain) == (None, None, None)
    assert watching.promotes == () and watching.ends == (), "nothing has begun to go wrong"
    early = outlook(RULES, AB, LOOK, 0.5 * DAY)
    assert early.trials_left is None, "before the first trial settles"
    nobody = outlook(RULES, AB, Look("r1", 0.0, 1, 0, 0.0, 0, 0.0, -1.0, 1.0), 3 * DAY)
    assert (nobody.trials_left, nobody.detectable_gain) == (0, None)


def test_it_says_all_that_would_flip_the_verdict_and_how_far_that_is() -> None:
    harmed = replace(LOOK, evidence={**SAW, "harm": math.log(10), "cut_off_low": -0.02, "cut_off_rise": 0.04}, high=0.1)
    assert not any("min_effect" in flip.words for flip in outlook(RULES, AB, harmed, 1 * DAY).ends), "who gains is not"
    harmed = replace(harmed, up_challenger=299.0)
    told = outlook(RULES, AB, harmed, 1 * DAY)
    assert [words.split(",")[0] for words in told.promotes] == [
        "the evidence of a gain is 2.72 to one",
        "no more users judge an answer up",
        *(f"answers may be {GUARD_WORDS[name]} more often" for name in RULES.guards),
        "24.0 hours are over of 48 (min_hours)",
    ]
    assert "(evidence 2.72 to one, of 20 to one)" in told.promotes[1]
    assert told.trials_needed == math.ceil(1000 * (math.log(200) - 1))
    ways = [flip.way for flip in told.ends]
    assert ways == sorted(ways, reverse=True) and {flip.verdict for flip in told.ends} == {"abort"}
    by = {flip.words: flip.way for flip in told.ends}
    assert by["answers are more often cut off, by at least -0.020, of more than 0"] == pytest.approx(0.04 / 0.06)
    assert not any("failed" in words or "slow" in words for words in by), "what is even is no way there"
    assert by["the gain may be up to +0.100, of +0 (min_effect)"] == pytest.approx(0.9)
    assert by["the evidence of harm is 10 to one, of 20 to one (harm_alpha)"] == pytest.approx(0.769, abs=1e-3)
    assert by["1000 users are settled of 20000 (max_users)"] == pytest.approx(0.05)
    assert by["24.0 hours are over of 336 (max_hours)"] == pytest.approx(24 / 336)


def test_what_a_person_is_asked_or_has_answered_is_told_so() -> None:
    asks = RULES.model_copy(update={"ask": ("harm", "futility")})
    worse = replace(LOOK, up_challenger=299.0)
    told = outlook(asks, replace(AB, asked=("harm",)), worse, 3 * DAY).ends
    assert not any("harm" in flip.words for flip in told)
    assert [flip.verdict for flip in told if "min_effect" in flip.words] == ["ask"]


@pytest.mark.parametrize(("champion", "challenger"), [(1000, 1000), (900, 100), (9000, 1000)])
def test_a_clean_guard_ends_nothing_however_unlike_the_arms(champion: int, challenger: int) -> None:
    """The middle of an interval lies above 0 where the challenger's arm is the smaller one."""
    even = Exposed(champion, champion, observed=champion, slow=champion // 50)
    other = Exposed(challenger, challenger, observed=challenger, slow=challenger // 50)
    seen = evidence.look(RULES, CANARY, Standing("r1", 0, even, other), 100.0)
    assert outlook(RULES, CANARY, seen, 100.0).ends == ()
    worse = evidence.look(RULES, CANARY, Standing("r1", 0, even, replace(other, slow=challenger // 25)), 100.0)
    assert [flip.words.split(",")[0] for flip in outlook(RULES, CANARY, worse, 100.0).ends] == [
        "answers are more often late to begin"
    ]


@pytest.mark.parametrize(
    ("gain", "now", "needed"),
    [(0.0, -2.0, None), (2.0, -0.1, None), (2.0, 0.9, None), (6.0, 3.0, None), (4.0, math.log(200) / 2, 1000)],
)
def test_how_many_more_are_needed_where_evidence_grows(gain: float, now: float, needed: int | None) -> None:
    seen = {"gain": gain, "gain_now": now}
    assert outlook(RULES, AB, replace(LOOK, evidence=seen), 3 * DAY).trials_needed == needed
    few = replace(LOOK, n_champion=19, up_champion=5.0, evidence=seen)
    assert outlook(RULES, AB, few, 3 * DAY).trials_needed is None


def test_arms_that_are_even_are_not_on_the_way_to_a_gain() -> None:
    """Luck that is over once was evidence."""
    lucky = [Settled(i % 2 == 0, float(i % 2 == 0 or i % 3 == 0)) for i in range(60)]
    even = [Settled(i % 2 == 0, float(i % 2 == 1 or i % 3 == 0)) for i in range(60)]
    seen = evidence.look(RULES, AB, Standing("r1", 1, trials=(*lucky, *even)), DAY)
    assert seen.evidence["gain"] > 3 and seen.up_champion == seen.up_challenger
    assert outlook(RULES, AB, seen, 3 * DAY).trials_needed is None


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_champion_of_whom_all_say_the_same_is_no_reason_to_say_that_nothing_can_be_shown(rate: float) -> None:
    """It can, above a rate of 0; above one of 1 nothing is."""
    seen = replace(LOOK, up_champion=500 * rate, up_challenger=500 * rate, evidence={})
    told, before = outlook(RULES, AB, seen, 3 * DAY), foresee(RULES, 0.005, Votes(6500, rate, 13.0))
    if rate == 1:
        assert told.detectable_gain is None and "no gain at all" in before.words
    else:
        assert told.detectable_gain is not None and 0.005 < told.detectable_gain < 0.03
        assert "could show a gain of" in before.words


def test_before_a_test_it_says_what_it_could_show() -> None:
    many = foresee(RULES, 0.005, Votes(users=6000, rate=0.6, days=13.0))
    gain = 100 * detectable(6000, 0.6, 0.005, UPS_ALPHA)
    assert not many.too_little and f"could show a gain of {gain:.1f} points in the 13.0 days" in many.words
    assert "at the present 461.5 voters a day" in many.words
    halved = foresee(RULES, 0.005, Votes(users=3000, rate=0.6, days=6.5))
    assert halved.words == many.words, "of half the time, half of them"
    few = foresee(RULES, 0.005, Votes(users=300, rate=0.6, days=13.0))
    assert few.too_little and "15 points (rollout.max_detectable) are to be" in few.words
    assert not foresee(RULES.model_copy(update={"max_detectable": 0.35}), 0.005, Votes(300, 0.6, 13.0)).too_little
    bound = foresee(RULES.model_copy(update={"max_users": 300}), 0.005, Votes(6000, 0.6, 13.0))
    assert bound.too_little, "no more settle than may"
    for blind in (Votes(0, 0.5, 13.0), Votes(6000, 1.0, 13.0)):
        assert "no gain at all" in foresee(RULES, 0.005, blind).words
    young = foresee(RULES, 0.005, None)
    assert not young.too_little and "less than two days old" in young.words


def test_a_person_who_let_such_a_test_begin_is_not_asked_again_until_it_is_clearly_worse() -> None:
    few = Votes(users=300, rate=0.6, days=13.0)
    asked = foresee(RULES, 0.005, few)
    assert asked.gain == pytest.approx(detectable(300, 181 / 302, 0.005, UPS_ALPHA))
    again = foresee(RULES, 0.00475, few, asked.gain)
    assert not again.too_little and "a person let one like it begin" in again.words
    fewer = Votes(users=220, rate=0.6, days=13.0)
    assert foresee(RULES, 0.005, fewer, asked.gain).too_little
    assert foresee(RULES, 0.0, few, asked.gain).too_little, "without a level it is another question"
    none = foresee(RULES, 0.005, Votes(0, 0.5, 13.0))
    assert none.gain == 1.0 and not foresee(RULES, 0.005, few, none.gain).too_little


@pytest.mark.parametrize("votes", [None, Votes(6000, 0.6, 13.0), Votes(90, 0.6, 1.5)])
def test_without_a_level_nothing_can_be_promoted_whoever_judges(votes: Votes | None) -> None:
    told = foresee(RULES, 0.0, votes)
    assert (
        told.too_little and "nothing can be promoted, but by an operator, until rollout.alpha is raised" in told.words
    )
    assert "points" not in told.words and "resume to begin it anyway" in told.words
    asked = foresee(RULES.model_copy(update={"max_detectable": 1.0}), 0.0, votes)
    assert not asked.too_little and asked.words.startswith("begins, though nothing is left")


def test_of_a_young_service_nobody_can_tell() -> None:
    """Of three days: in half of them 90 judged, which is not 780 people in 13 days."""
    young = foresee(RULES, 0.005, Votes(users=90, rate=0.6, days=1.5))
    assert not young.too_little and "points" not in young.words
    assert "too young to tell what 13.0 days can show: 90 users judged in 1.5 days" in young.words
    assert "too young" not in foresee(RULES, 0.005, Votes(users=90, rate=0.6, days=6.5)).words
    month = RULES.model_copy(update={"max_hours": 720.0})
    assert "too young" in foresee(month, 0.005, Votes(users=900, rate=0.6, days=6.9)).words
    assert "too young" not in foresee(month, 0.005, Votes(users=900, rate=0.6, days=14.0)).words, "longer is not read"
    brief = RULES.model_copy(update={"max_hours": 49.0})
    assert "too young" not in foresee(brief, 0.005, Votes(users=900, rate=0.6, days=25 / 24)).words
