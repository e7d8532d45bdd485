"""What the A/B test of a round comes to, and what the holdback of the last promotion does. Pure."""

from __future__ import annotations

from dataclasses import replace

from kto_ray.config import Config
from kto_ray.loop.moves import Change, Effect, Move, Point
from kto_ray.loop.seen import Seen, Trial
from kto_ray.records.adapters import CHALLENGER, CHAMPION, PREVIOUS, is_base
from kto_ray.records.requests import Act
from kto_ray.records.rollouts import Look, RolloutState, RolloutStatus
from kto_ray.records.rounds import OnTrial, Outcome
from kto_ray.rollout import base, evidence, holdback, machine
from kto_ray.rollout.begun import rules_of

NO_LOOKS: tuple[Look, ...] = ()


def test(config: Config, seen: Seen, testing: OnTrial) -> Move:
    assert seen.trial is not None and seen.trial.state.id == testing.rollout, "a round in ROLLOUT has its test"
    state, looks = seen.trial.state, NO_LOOKS
    if state.live:
        state, looks = _look(config, seen, seen.trial)
    if state.live:
        if state != seen.trial.state:
            return Change(None, (*looks, state), _words(config, seen.trial.state, state))
        return Change(None, looks) if looks else None
    settled = settle(config, seen, state)
    return replace(settled, effects=(*looks, *settled.effects))


def settle(config: Config, seen: Seen, ended: RolloutState) -> Change:
    """All that a test which has ended comes to, in one move, so that nothing comes between its end and the swap: the
    test, the aliases, the holdback of a promotion, and the end of its round, where it has one."""
    assert not ended.live
    outcome, effects = Outcome.ABORTED, list[Effect]([ended])
    if ended.status is RolloutStatus.PROMOTED:
        outcome = Outcome.PROMOTED
        effects += [Point(PREVIOUS, ended.champion), Point(CHAMPION, ended.challenger)]
    if seen.aliases.get(CHALLENGER, ended.challenger) == ended.challenger:  # not the next round's candidate
        effects.append(Point(CHALLENGER, None))
    effects += _hold_back(config, seen, ended)
    current = seen.round
    if current is None or getattr(current.state, "rollout", None) != ended.id:
        return Change(None, tuple(effects), f"rollout {ended.id} ends: {ended.reason}")
    after = current.ended(outcome, ended.reason, seen.now)
    return Change(after, tuple(effects), after.in_words)


def _hold_back(config: Config, seen: Seen, test: RolloutState) -> tuple[RolloutState, ...]:
    """After a promotion: the holdback of the one before ends, and a new one begins; that on the base model goes on, or
    begins with the first."""
    if test.status is not RolloutStatus.PROMOTED:
        return ()
    before = (
        (holdback.ended(seen.holdback.state, f"the champion is {test.challenger}", seen.now),) if seen.holdback else ()
    )
    rules, name = rules_of(config.rollout, test), f"holdback-{test.id.removeprefix('rollout-')}"
    begun = holdback.start(rules, test.challenger, test.champion, name, seen.salt, seen.now)
    measured = _on_base(config, seen) if seen.base is None else None
    return (*before, *(state for state in (begun, measured) if state is not None))


def _look(config: Config, seen: Seen, trial: Trial) -> tuple[RolloutState, tuple[Look, ...]]:
    """What a live test comes to by its last look, and a new look where enough has happened since."""
    state, rules = trial.state, rules_of(config.rollout, trial.state)
    now, looks = trial.last, NO_LOOKS
    if refused := _refused(seen, state):
        return machine.step(rules, state, machine.Decision(machine.Action.ABORT, refused), seen.now), looks
    if state.weight == 0:  # nobody is on its challenger: there is nothing to see
        nothing = Look(state.id, seen.now, state.stage, 0, 0.0, 0, 0.0, -1.0, 1.0)
        return machine.step(rules, state, machine.decide(rules, state, nothing, seen.now), seen.now), looks
    if now is None or evidence.is_due(now, trial.standing):
        now = evidence.look(rules, state, trial.standing, seen.now)
        looks = (now,)
    decision = machine.decide(rules, state, now, seen.now)
    lacking = None if seen.all_hold(state.challenger) else seen.lacking(state.challenger)
    if decision.action is machine.Action.PROMOTE and lacking:
        return _wait(config, seen, state, decision), looks
    if lacking and decision.criterion == "hours":  # for no arm counts meanwhile
        decision = replace(decision, reason=f"{decision.reason}; {lacking}")
    if state.status is RolloutStatus.RUNNING:
        state = replace(state, reason=f"counts nobody meanwhile: {lacking}" if lacking else None)
    return machine.step(rules, state, decision, seen.now), looks


def _refused(seen: Seen, state: RolloutState) -> str | None:
    """What a replica says of a challenger that it will not load for what it is: no user would be split any more."""
    faults = [r.errors[state.challenger] for r in seen.live if state.challenger in r.errors]
    return next((f"a replica refused the challenger: {fault.reason}" for fault in faults if fault.refused), None)


def _wait(config: Config, seen: Seen, state: RolloutState, decision: machine.Decision) -> RolloutState:
    """A replica is just starting, and the alias moves when it holds the challenger. It may take as long as the test may
    last, and `adapters.load_s` beyond, for evidence may come at the last moment."""
    lacking, hours = seen.lacking(state.challenger), machine.hours_of(rules_of(config.rollout, state), state)
    if seen.now - state.stage_started_at < 3600 * hours + config.adapters.load_s:
        return replace(state, reason=f"waits to be promoted, for {lacking}")
    limit = f"{hours:g} hours (max_hours) and {config.adapters.load_s:.0f} s (adapters.load_s)"
    words = f"not promoted within {limit}, for {lacking}; {decision.reason}"
    return machine.step(config.rollout, state, machine.Decision(machine.Action.ABORT, words), seen.now)


def _words(config: Config, before: RolloutState, state: RolloutState) -> str:
    if state.reason is not None:
        return f"rollout {state.id} {state.reason}"
    if state.stage == before.stage:
        return f"rollout {state.id} goes on"
    stage = machine.stage_of(rules_of(config.rollout, state), state)
    return f"rollout {state.id} enters stage {stage.name}"


def watch_over(config: Config, seen: Seen) -> Move:
    """What the holdback of the last promotion comes to once a day: at an alarm, the previous champion again."""
    if seen.holdback is None:
        return None
    state, champion = seen.holdback.state, seen.aliases[CHAMPION]
    if state.champion != champion:
        return Change(None, (holdback.ended(state, f"the champion is {champion}", seen.now),))
    if config.rollout.holdback == 0:
        why = "rollout.holdback is 0: nobody is held on the previous champion"
        return Change(None, (holdback.ended(state, why, seen.now),), f"holdback {state.id} ends: {why}")
    test = seen.trial.state if seen.trial is not None and seen.trial.state.live else None
    after = holdback.step(state, seen.holdback.standing, seen.salt, seen.now, _splits(test))
    if after == state:
        return None
    rules = rules_of(config.rollout, state)
    looks = (evidence.look(rules, state, seen.holdback.standing, seen.now),)
    if after.status is not RolloutStatus.PROMOTED:
        words = f"holdback {after.id}: {after.reason}" if after.weight != state.weight else None
        return Change(None, (*looks, after), words)
    if not seen.all_hold(after.challenger) and not is_base(after.challenger):
        return _awaits_rollback(seen, state, after)
    swap = (Point(PREVIOUS, champion), Point(CHAMPION, after.challenger))
    stale = (replace(machine.apply(test, Act.ABORT, seen.now), reason=after.reason),) if test is not None else ()
    return Change(None, (*looks, after, *swap, *stale), f"rollback: {after.reason}", failed=True)


def _awaits_rollback(seen: Seen, state: RolloutState, after: RolloutState) -> Move:
    """A replica that is just starting will hold the previous champion soon; of one that cannot load it the words say
    so. The alarm stays."""
    waits = f"{after.reason}; the rollback waits: {seen.lacking(after.challenger)}"
    if waits == state.reason:
        return None
    told = replace(state, reason=waits, watch={**(after.watch or {}), "at": (state.watch or {})["at"]})
    return Change(None, (told,), f"holdback {state.id}: {waits}", failed=True)


def _splits(test: RolloutState | None) -> bool:
    """Whether users have arms in it: one that waits for a person has none yet."""
    return test is not None and test.live and test.weight > 0


def measure(config: Config, seen: Seen) -> Move:
    """The holdback on the base model, which decides nothing: it takes in a week when that is over, and begins where
    there is a champion and the rules have come to want it; neither within a test."""
    in_test = _splits(seen.trial.state if seen.trial is not None else None)
    if seen.base is None:
        begun = _on_base(config, seen) if seen.aliases[CHAMPION] != config.base_name and not in_test else None
        return None if begun is None else Change(None, (begun,))
    after = base.step(config.rollout, seen.base.state, seen.base.standing, seen.salt, seen.now, in_test)
    return None if after == seen.base.state else Change(None, (after,), after.reason)


def _on_base(config: Config, seen: Seen) -> RolloutState | None:
    """Drawn by a salt of its own, though it begins in one move with another holdback."""
    return base.start(config.rollout, config.base_name, f"base-{seen.nonce}", f"base-{seen.salt}", seen.now)
