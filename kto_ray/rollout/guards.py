"""The guards of an A/B test: how far each may rise, and how it is told. Pure."""

from __future__ import annotations

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.trials import REACTIONS, STYLES

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
