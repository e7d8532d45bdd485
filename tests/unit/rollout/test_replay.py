"""Other rules over the traffic of a test: the same rules decide the same at the same moment."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kto_ray.config.deciding import RolloutSection, RolloutStage
from kto_ray.records.rollouts import Look, RolloutStatus
from kto_ray.records.trials import Exposed, Part, Settled, Standing
from kto_ray.rollout import evidence
from kto_ray.rollout.machine import Action, advance, decide, start, step
from kto_ray.rollout.replay import replay

HOUR = 3600.0
RULES = RolloutSection(
    stages=(RolloutStage(name="canary", weight=0.5, exposed=15), RolloutStage(name="ab", weight=0.5, decides=True)),
    min_users=20,
    min_hours=0,
    settle_hours=1,
    max_hours=100,
    max_fault_rise=0.5,
)
AB = advance(RULES, start(RULES, "policy@base", "policy@v1-aaaaaa", "r", "salt", 0.005, 0.0), 0.0)


def traffic(seed: int, gain: float = 0.3, users: int = 400, known: float = 1.0) -> list[Part]:
    """A user every six minutes, half of whom judge, an hour after their first answer."""
    random = np.random.default_rng(seed)
    parts = []
    for i in range(users):
        arm, votes = bool(random.random() < 0.5), bool(random.random() < 0.5)
        outcome = float(random.random() < 0.4 + gain * arm) if votes else None
        at = i * HOUR / 10
        faults = ("slow",) if random.random() < 0.05 else ()
        part = Part(arm, bool(random.random() < known), at, faults, at + HOUR if votes else None, outcome)
        did = ("edited",) if random.random() < 0.05 else ()
        parts.append(replace(part, react_by=at + 2 * HOUR, reactions=did if i < users - 9 else None))
    return parts


def live(parts: list[Part]) -> tuple[Action, float | None]:
    """The loop itself: a tick at every moment at which something happened."""
    state, last = AB, None
    read = [p for p in parts if p.react_by is not None and p.reactions is not None]
    times = {p.first_at for p in parts} | {p.react_by for p in read if p.react_by is not None}
    for at in sorted(times | {p.settled_at for p in parts if p.settled_at is not None}):
        seen = [p for p in parts if p.known and p.first_at <= at]
        settled = [p for p in seen if p.settled_at is not None and p.settled_at <= at]
        trials = tuple(
            Settled(p.challenger, p.outcome)
            for p in sorted(settled, key=lambda p: p.settled_at or 0)
            if p.outcome is not None
        )
        arms = [[p for p in seen if p.challenger is arm] for arm in (False, True)]
        champion, challenger = (Exposed(len(a), len(a), slow=sum("slow" in p.faults for p in a)) for a in arms)
        for arm in (False, True):
            done = [
                p for p in read if p in seen and p.challenger is arm and p.react_by is not None and p.react_by <= at
            ]
            more = {"observed": len(done), "edited": sum("edited" in (p.reactions or ()) for p in done)}
            champion, challenger = (
                (champion, replace(challenger, **more)) if arm else (replace(champion, **more), challenger)
            )
        standing = Standing("r", 1, champion, challenger, trials)
        if evidence.is_due(last, standing):
            last = evidence.look(RULES, state, standing, at)
        assert isinstance(last, Look)
        decision = decide(RULES, state, last, at)
        if decision.action is not Action.HOLD:
            assert step(RULES, state, decision, at).status is not RolloutStatus.RUNNING
            return decision.action, at
    return Action.HOLD, None


@pytest.mark.parametrize("seed", range(4))
def test_the_same_rules_decide_the_same_at_the_same_moment(seed: int) -> None:
    parts = traffic(seed, gain=(0.3, -0.4, 0.0, 0.35)[seed], known=0.9)
    found = replay(RULES, AB, 1, 0.0, 0.0, parts)
    assert (found.stage, found.action, found.at) == ("ab", *live(parts))


def test_other_rules_decide_at_another_time() -> None:
    parts = traffic(0, users=800)
    usual = replay(RULES, AB, 1, 0.0, 0.0, parts)
    assert usual.action is Action.PROMOTE and usual.at is not None
    strict = replay(RULES, replace(AB, level=1e-6), 1, 0.0, 0.0, parts)
    assert strict.at is None or strict.at > usual.at
    more = replay(RULES.model_copy(update={"min_users": 178}), AB, 1, 0.0, 0.0, parts)
    assert more.action is Action.PROMOTE and more.at is not None and more.at > usual.at
    slow = replay(RULES.model_copy(update={"min_users": 10_000}), AB, 1, 0.0, 0.0, parts)
    assert (slow.action, slow.at) == (Action.HOLD, None) and "min_users" in slow.reason
    short = replay(RULES.model_copy(update={"max_hours": 5.0}), AB, 1, 0.0, 0.0, parts)
    assert (short.action, short.at) == (Action.ABORT, 5 * HOUR) and "max_hours" in short.reason


def test_a_watching_stage_ends_by_users_or_by_its_hours() -> None:
    parts = traffic(0, gain=0.0)
    of_the_challenger = [part.first_at for part in parts if part.challenger]
    assert replay(RULES, AB, 0, 0.0, 0.0, parts).at == of_the_challenger[14]
    later = [replace(part, first_at=part.first_at * 10, settled_at=None) for part in parts]
    assert replay(RULES, AB, 0, 0.0, 0.0, later).at == 4 * HOUR
    assert replay(RULES, AB, 0, 0.0, 0.0, []).reason == "nobody got an answer"


def test_a_stage_that_ended_by_its_hours_does_so_again() -> None:
    """Whose end no answer follows, for it was the end."""
    parts = [part for part in traffic(0, gain=0.0) if part.first_at < 2 * HOUR][:10]
    known = replay(RULES, AB, 0, 0.0, 4 * HOUR, parts)
    assert (known.action, known.at) == (Action.ADVANCE, 4 * HOUR) and "no harm in 4 hours" in known.reason
    assert replay(RULES, AB, 0, 0.0, 4 * HOUR - 1, parts).at is None, "nobody knows what would have come"
    over = replay(RULES, AB, 1, 0.0, 3600 * RULES.max_hours, parts)
    assert (over.action, over.at) == (Action.ABORT, 3600 * RULES.max_hours) and "max_hours" in over.reason


def test_a_stage_is_looked_at_with_its_own_weight() -> None:
    canary, ab = RULES.stages
    rules = RULES.model_copy(update={"stages": (canary.model_copy(update={"weight": 0.1, "exposed": 25}), ab)})
    random = np.random.default_rng(0)
    parts = [Part(bool(random.random() < 0.1), True, i * 10.0, (), None, None) for i in range(400)]
    found = replay(rules, AB, 0, 0.0, 0.0, parts)
    assert found.look is not None and found.look.evidence["unequal"] < 1, "a tenth, as was drawn"


def test_a_canary_that_answers_nobody_goes_on_beyond_its_hours() -> None:
    """As the test itself does, until it answers somebody; never beyond max_hours."""
    canary = replace(AB, stage=0)
    late = [Part(True, True, 30 * HOUR, (), None, None)]
    found = replay(RULES, canary, 0, 0.0, 200 * HOUR, late)
    assert (found.action, found.at) == (Action.ADVANCE, 30 * HOUR)
    champions = [Part(False, True, 1 * HOUR, (), None, None)]
    never = replay(RULES, canary, 0, 0.0, 200 * HOUR, champions)
    assert (never.action, never.at) == (Action.ABORT, 100 * HOUR) and "answered nobody" in never.reason
    young = replay(RULES, canary, 0, 0.0, 50 * HOUR, champions)
    assert (young.action, young.at) == (Action.HOLD, None) and "waits for somebody" in young.reason
