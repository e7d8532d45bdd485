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
from kto_ray.records.conversations import Conversation
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


def splits(champion: str, rollout: RolloutState | None, holdback: RolloutState | None) -> bool:
    """Whether any users are split, so that it matters which conversation a request goes on with."""
    return _fits(rollout, champion) or _fits(holdback, champion)


def go_on(
    drawn: Route,
    conversation: Conversation,
    champion: str,
    rollout: RolloutState | None,
    holdback: RolloutState | None,
    servable: Collection[str],
) -> Route:
    """The route of a further turn in a conversation, whose first would be `drawn`. It stays with the version that
    answered last, as long as that can answer and takes part in what goes on: versions change between conversations.

    A turn counts only where the conversation began in the present stage (of a holdback: week) and every answer in it
    has counted so far. Both are asked before the arm is looked at: if going on with an old conversation kept people out
    of one arm only, those who do would be missing there, and who they are has to do with how they judge.
    """
    arms = {champion: Arm.CHAMPION}
    for state, arm in ((rollout, Arm.CHALLENGER), (holdback, Arm.HOLDBACK)):
        if state is not None and _fits(state, champion) and state.challenger in servable:
            arms.setdefault(state.challenger, arm)
    if conversation.adapter in arms and conversation.adapter != drawn.adapter:
        return Route(conversation.adapter, arms[conversation.adapter])
    tested = _counts(conversation, conversation.rollout, rollout)
    watched = _counts(conversation, conversation.holdback, holdback)
    return replace(drawn, rollout=drawn.rollout if tested else None, holdback=drawn.holdback if watched else None)


def uncounted(drawn: Route) -> Route:
    """The same answer, as a unit of nothing."""
    return replace(drawn, rollout=None, holdback=None)


def _counts(conversation: Conversation, counted: str | None, state: RolloutState | None) -> bool:
    return state is not None and counted == state.id and conversation.began_at >= state.stage_started_at


def _fits(state: RolloutState | None, champion: str) -> bool:
    """Against another champion than the present one it is stale: a promotion is spreading."""
    return state is not None and state.live and state.champion == champion


def _held_back(
    user: str | None,
    champion: str,
    rollout: RolloutState | None,
    holdback: RolloutState | None,
    servable: Collection[str],
) -> Route:
    """Who is held back gets the previous champion and is in no test; all others whom the champion answers are the
    holdback's other arm, those in a test too."""
    if holdback is None or not _fits(holdback, champion) or user is None or holdback.challenger not in servable:
        return _assign(user, champion, rollout, servable)
    if unit_interval(holdback.salt, user) < holdback.weight:
        return Route(holdback.challenger, Arm.HOLDBACK, None, holdback.id)
    assigned = _assign(user, champion, rollout, servable)
    return replace(assigned, holdback=holdback.id) if assigned.arm is Arm.CHAMPION else assigned


def _assign(user: str | None, champion: str, rollout: RolloutState | None, servable: Collection[str]) -> Route:
    """The A/B assignment. It holds for a user as long as the weight does not fall, and a growing weight only moves
    users from champion to challenger.

    A PAUSED rollout routes as before: pausing stops decisions, not the experience of users who are already on an arm.
    While the challenger is not held by all replicas, its users get the champion, so nobody's request fails, and no user
    of either arm counts: one arm's alone would leave the split unequal.
    """
    if rollout is None or not _fits(rollout, champion) or user is None:
        return Route(champion, Arm.CHAMPION)
    challenged = unit_interval(rollout.salt, user) < rollout.weight
    if rollout.challenger not in servable:
        return Route(champion, Arm.PINNED if challenged else Arm.CHAMPION)
    if challenged:
        return Route(rollout.challenger, Arm.CHALLENGER, rollout.id)
    return Route(champion, Arm.CHAMPION, rollout.id)
