"""Ratings that some answers of an A/B test ask for, drawn by chance: what users think who would not have judged by
themselves. Pure. They inform, and decide nothing."""

from __future__ import annotations

from dataclasses import dataclass

from kto_ray.records.rollouts import ArmCount
from kto_ray.records.trials import Exposed
from kto_ray.records.users import unit_interval
from kto_ray.stats import sequential


def asks(salt: str, completion_id: str, share: float) -> bool:
    """Whether an answer asks for a thumb: a draw that knows of nothing but its id."""
    return unit_interval(salt, f"solicited {completion_id}") < share


@dataclass(frozen=True, slots=True)
class RatedArm:
    """Users who were asked, who answered the first time that they were, and who answered with an up."""

    asked: int
    rated: int
    up: int


@dataclass(frozen=True, slots=True)
class Ratings:
    """By arm, of users whose time to react is over. `difference` bounds how many more ups, of those who answered, the
    challenger has, and `response` how many more of its users answered: confidence sequences, which may be looked at at
    any time. `words` says what they show."""

    champion: RatedArm
    challenger: RatedArm
    difference: tuple[float, float]
    response: tuple[float, float]
    confidence: float
    words: str


def ratings(champion: Exposed, challenger: Exposed, alpha: float) -> Ratings | None:
    """What was asked for and came; None where nobody was asked.

    Args:
        alpha: the chance that an interval ever excludes the truth, each.
    """
    arms = _of(champion), _of(challenger)
    if not any(arm.asked for arm in arms):
        return None
    old, new = arms
    difference = sequential.interval(ArmCount(old.rated, old.up), ArmCount(new.rated, new.up), alpha)
    response = sequential.interval(ArmCount(old.asked, old.rated), ArmCount(new.asked, new.rated), alpha)
    return Ratings(old, new, difference, response, 1 - alpha, _in_words(old, new, difference, response))


def _of(arm: Exposed) -> RatedArm:
    return RatedArm(arm.solicited, arm.rated, arm.rated_up)


def _in_words(
    champion: RatedArm, challenger: RatedArm, difference: tuple[float, float], response: tuple[float, float]
) -> str:
    told = (
        f"{challenger.up} up of {challenger.rated} who answered of {challenger.asked} asked, against the champion's "
        f"{champion.up} of {champion.rated} of {champion.asked}: "
        f"difference {difference[0]:+.3f} to {difference[1]:+.3f}"
    )
    if response[0] <= 0 <= response[1]:
        return told
    more = "more" if response[0] > 0 else "fewer"
    return f"{told}; not to be compared, for surely {more} of the challenger's users answer"
