"""Which adapter answers a request: a pure function of the model's name, the user and the rollout's state.

    policy               the A/B test: the challenger for `weight` of the users, the champion for the rest
    policy@champion      what an alias points at now (also @challenger, @previous, @base)
    policy@v7-3fa9c1     one immutable version

Only the first form takes part in a test. Every other one is PINNED: whoever names a version chose it, so it says
nothing about the arms. So are the answers to those for whom `rollout.staff` names one.

An answer counts for one holdback at most, so that a completion names one. The champion's users are the other arm of
both: a slice of them, drawn with those on the base model, of that one's, all others of the last promotion's. None of
them leaves a test for it. In both arms of a holdback only those count whom another draw gives the champion: whom a
test's challenger would answer counts in neither, or, as tests begin, grow and end, who comes often would be more often
in one arm than in the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from kto_ray.records.adapters import BASE, CHALLENGER, CHAMPION
from kto_ray.records.completions import Arm
from kto_ray.records.conversations import Conversation
from kto_ray.records.rollouts import RolloutKind, RolloutState
from kto_ray.records.users import unit_interval

NOBODY: Mapping[str, str] = MappingProxyType({})
BESIDE = 9.0  # as many users of the champion as are on the base model are that holdback's other arm


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
    base: RolloutState | None = None,
    staff: Mapping[str, str] = NOBODY,
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
        base: the holdback on the base model, while there is one.
        staff: `rollout.staff`.

    Raises:
        UnknownModel: the name is not the policy, not an alias and not servable.
    """
    if model == served_name:
        champion = aliases[CHAMPION]
        if user is not None and (wanted := of_staff(staff, user)) is not None:
            version = aliases.get(wanted, f"{served_name}@{BASE}" if wanted == BASE else wanted)
            if wanted == CHALLENGER:  # the alias names a candidate before it has passed the gate
                version = rollout.challenger if rollout is not None and _fits(rollout, champion) else champion
            return Route(version if version in servable else champion, Arm.PINNED)
        return _measured(user, champion, rollout, holdback, base, servable)
    prefix, at, version = model.partition("@")
    if at and prefix == served_name:
        if version in aliases:
            return Route(aliases[version], Arm.PINNED)
        if version == BASE or model in servable:
            return Route(model, Arm.PINNED)
    known = [served_name, *(f"{served_name}@{alias}" for alias in aliases), *servable, f"{served_name}@{BASE}"]
    raise UnknownModel(f"model {model!r} is not served here; use one of: {', '.join(sorted(set(known)))}")


def of_staff(staff: Mapping[str, str], user: str) -> str | None:
    """Which alias or version `rollout.staff` names for a user, by name or else by principal; None for nearly all."""
    principal, within, _ = user.partition("/")
    return staff.get(user, staff.get(f"{principal}/*") if within else None)


def beside(share: float) -> float:
    """The share of users who are the other arm of the holdback on the base model, where the champion answers them. Half
    of all others at most, so that the last promotion's has some, too."""
    return min(BESIDE * share, (1 - share) / 2)


def splits(champion: str, *states: RolloutState | None) -> bool:
    """Whether any users are split, by a test or a holdback, so that it matters which conversation a request goes on
    with."""
    return any(_fits(state, champion) for state in states)


def go_on(
    drawn: Route,
    conversation: Conversation,
    champion: str,
    rollout: RolloutState | None,
    holdback: RolloutState | None,
    servable: Collection[str],
    base: RolloutState | None = None,
) -> Route:
    """The route of a further turn in a conversation, whose first would be `drawn`. It stays with the version that
    answered last, as long as that can answer and takes part in what goes on: versions change between conversations.

    A turn counts only where the conversation began in the present stage (of a holdback: week) and every answer in it
    has counted so far. Both are asked before the arm is looked at: if going on with an old conversation kept people out
    of one arm only, those who do would be missing there, and who they are has to do with how they judge.
    """
    arms = {champion: Arm.CHAMPION}
    for state, arm in ((rollout, Arm.CHALLENGER), (holdback, Arm.HOLDBACK), (base, Arm.HOLDBACK)):
        if state is not None and _fits(state, champion) and state.challenger in servable:
            arms.setdefault(state.challenger, arm)
    if conversation.adapter in arms and conversation.adapter != drawn.adapter:
        return Route(conversation.adapter, arms[conversation.adapter])
    tested = _counts(conversation, conversation.rollout, rollout)
    its = next((state for state in (holdback, base) if state is not None and state.id == drawn.holdback), None)
    watched = _counts(conversation, conversation.holdback, its)
    return replace(drawn, rollout=drawn.rollout if tested else None, holdback=drawn.holdback if watched else None)


def uncounted(drawn: Route) -> Route:
    """The same answer, as a unit of nothing."""
    return replace(drawn, rollout=None, holdback=None)


def _counts(conversation: Conversation, counted: str | None, state: RolloutState | None) -> bool:
    return state is not None and counted == state.id and conversation.began_at >= state.stage_started_at


def _fits(state: RolloutState | None, champion: str) -> bool:
    """Against another champion than the present one it is stale: a promotion is spreading. The base model is compared
    with whatever is champion, but itself. A test with no weight has not begun."""
    if state is None or not state.live or state.weight == 0:
        return False
    return champion != state.challenger if state.kind is RolloutKind.BASE else champion == state.champion


def _measured(
    user: str | None,
    champion: str,
    rollout: RolloutState | None,
    holdback: RolloutState | None,
    base: RolloutState | None,
    servable: Collection[str],
) -> Route:
    """Who is held on the base model is in no test and no other holdback."""
    drawn = _held_back(user, champion, rollout, holdback, servable)
    if base is None or not _fits(base, champion) or user is None or base.challenger not in servable:
        return drawn
    counted = base.id if drawn.arm is Arm.CHAMPION else None
    place = unit_interval(base.salt, user)
    if place < base.weight:
        return Route(base.challenger, Arm.HOLDBACK, None, counted)
    return replace(drawn, holdback=counted) if place < base.weight + beside(base.weight) else drawn


def _held_back(
    user: str | None,
    champion: str,
    rollout: RolloutState | None,
    holdback: RolloutState | None,
    servable: Collection[str],
) -> Route:
    """Who is held back gets the previous champion and is in no test; all others whom the champion answers are the
    holdback's other arm, those in a test too."""
    assigned = _assign(user, champion, rollout, servable)
    if holdback is None or not _fits(holdback, champion) or user is None or holdback.challenger not in servable:
        return assigned
    counted = holdback.id if assigned.arm is Arm.CHAMPION else None
    if unit_interval(holdback.salt, user) < holdback.weight:
        return Route(holdback.challenger, Arm.HOLDBACK, None, counted)
    return replace(assigned, holdback=counted)


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
