"""The guards of an A/B test: how far each may rise, and how it is told. Pure."""

from __future__ import annotations

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.rollouts import Look
from kto_ray.records.trials import REACTIONS, STYLES

SIGNALS = ("regenerated", "disagreed")  # reactions that a client must send
TELLING = 100  # users of whom nobody ever asks for another answer are hardly told of
SHORT_HOURS = 1 / 12  # in which next to nobody has read an answer and done something about it
GUARD_WORDS = {
    "failed": "failed",
    "aborted": "left by the client",
    "cut_off": "cut off",
    "slow": "late to begin",
    "tool_error": "calls that no tool can take",
    "asked_back": "questions back",
    "long": "long",
    "regenerated": "asked for again",
    "disagreed": "disagreed with",
    "edited": "edited",
}


def most_of(rules: RolloutSection, name: str) -> float:
    """The rise of a guard that must be excluded before a promotion."""
    return rules.max_style_rise if name in STYLES else rules.max_fault_rise


def harm_beyond(rules: RolloutSection, name: str) -> float:
    """The rise that is harm where it is sure."""
    return rules.max_style_rise if name in STYLES else 0.0


def among(name: str) -> str:
    return "of users whose time to react is over, " if name in REACTIONS else ""


def blind(rules: RolloutSection, look: Look) -> str:
    """What a verdict says where users have no time to react, or so little that all are found to do nothing, or where
    nobody's client has told of a reaction."""
    names = ", ".join(REACTIONS)
    if rules.settle_hours == 0:
        return f"; {names} are not judged, for settle_hours is 0"
    if rules.settle_hours >= SHORT_HOURS:
        return _untold(rules, look)
    within = f"within {3600 * rules.settle_hours:g} s of their first answer (settle_hours)"
    return f"; {names} and ratings are judged by what users do {within}: hardly anybody does anything so soon"


def _untold(rules: RolloutSection, look: Look) -> str:
    """Signals come from clients that send them; where none does, nobody is found to do what is not told. A stage that
    only watches leaves little time to send one."""
    of = look.evidence.get("observed", 0.0)
    names = [name for name in SIGNALS if name in rules.guards and look.evidence.get(f"{name}_seen") == 0]
    if of < TELLING or not names or not rules.stages[min(look.stage, len(rules.stages) - 1)].decides:
        return ""
    told = f"{', '.join(names)} of none of {of:.0f} users"
    return f"; {told}: where clients send no such signals, this guards nothing"
