"""Which adapter answers a request: a pure function of the model's name, the user and the rollout's state.

    policy               the A/B test: the challenger for `weight` of the users, the champion for the rest
    policy@champion      what an alias points at now (also @challenger, @previous, @base)
    policy@v7-3fa9c1     one immutable version

Only the first form takes part in a test. Every other one is PINNED: whoever names a version chose it, so it says
nothing about the arms.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from kto_ray.records.adapters import BASE, CHAMPION
from kto_ray.records.completions import Arm
from kto_ray.records.rollouts import RolloutState
from kto_ray.records.users import unit_interval


class UnknownModel(ValueError):
    """The request names a model that this service does not hold; the message lists what it does."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes. `rollout` and `holdback` are set only where the request is a randomised unit of these."""

    adapter: str
    arm: Arm
    rollout: str | None = None
    holdback: str | None = None


def route(
    model: str,
    user: str | None,
    served_name: str,
    aliases: Mapping[str, str],
    rollout: RolloutState | None,
    servable: Collection[str],
    holdback: RolloutState | None = None,
) -> Route:
    """Route one request.

    Args:
        model: what the client asked for.
        user: None for an anonymous client, who always gets the champion and never counts: without an identity there
            is nothing to be sticky by.
        served_name: the model's public name, e.g. "policy".
        aliases: alias -> adapter name; always holds "champion" (the base model's name before the first promotion).
        rollout: the present rollout, if there is one.
        servable: the adapter names that the replicas hold, the base model's included.
        holdback: of the last promotion, while it goes on.

    Raises:
        UnknownModel: the name is not the policy, not an alias and not servable.
    """
    if model == served_name:
        return _held_back(user, aliases[CHAMPION], rollout, holdback, servable)
    prefix, at, version = model.partition("@")
    if at and prefix == served_name:
        if version in aliases:
            return Route(aliases[version], Arm.PINNED)
        if version == BASE or model in servable:
            return Route(model, Arm.PINNED)
    known = [served_name, *(f"{served_name}@{alias}" for alias in aliases), *servable, f"{served_name}@{BASE}"]
    raise UnknownModel(f"model {model!r} is not served here; use one of: {', '.join(sorted(set(known)))}")


def moves(user: str | None, champion: str, rollout: RolloutState | None) -> bool:
    """Whether a stage gives a user the challenger, whom the stage before left with the champion: that is to happen
    between conversations, not within one."""
    if rollout is None or user is None or not rollout.live or rollout.champion != champion:
        return False
    if rollout.stage == 0 or rollout.rules is None:
        return False
    before: float = rollout.rules["stages"][rollout.stage - 1]["weight"]
    return before <= unit_interval(rollout.salt, user) < rollout.weight


def _held_back(
    user: str | None,
    champion: str,
    rollout: RolloutState | None,
    holdback: RolloutState | None,
    servable: Collection[str],
) -> Route:
    """Who is held back gets the previous champion and is in no test; all others whom the champion answers are the
    holdback's other arm, those in a test too."""
    if holdback is None or user is None or holdback.champion != champion or holdback.challenger not in servable:
        return _assign(user, champion, rollout, servable)
    if unit_interval(holdback.salt, user) < holdback.weight:
        return Route(holdback.challenger, Arm.HOLDBACK, None, holdback.id)
    assigned = _assign(user, champion, rollout, servable)
    return replace(assigned, holdback=holdback.id) if assigned.arm is Arm.CHAMPION else assigned


def _assign(user: str | None, champion: str, rollout: RolloutState | None, servable: Collection[str]) -> Route:
    """The A/B assignment. It holds for a user as long as the weight does not fall, and a growing weight only moves
    users from champion to challenger.

    A PAUSED rollout routes as before: pausing stops decisions, not the experience of users who are already on an arm.
    A rollout against another champion than the present one is stale (a promotion is spreading) and is ignored. Where
    the challenger is not held by the replicas, its users get the champion and do not count, so nobody's request fails
    and no arm holds answers of the other.
    """
    if rollout is None or not rollout.live or rollout.champion != champion or user is None:
        return Route(champion, Arm.CHAMPION)
    if unit_interval(rollout.salt, user) >= rollout.weight:
        return Route(champion, Arm.CHAMPION, rollout.id)
    if rollout.challenger not in servable:
        return Route(champion, Arm.PINNED)
    return Route(rollout.challenger, Arm.CHALLENGER, rollout.id)
