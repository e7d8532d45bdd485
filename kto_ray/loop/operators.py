"""What the loop makes of a request, an operator's (approve, reject, promote, abort, pause, resume, rollback, run, end,
reset-budget) or an erasure's (forget). Pure: no store, no clock."""

from __future__ import annotations

from dataclasses import replace

from kto_ray.config import Config
from kto_ray.loop import candidates, verdict
from kto_ray.loop.moves import Begin, Change, Effect, Move, Point
from kto_ray.loop.seen import Seen
from kto_ray.records.adapters import CHALLENGER, CHAMPION, PREVIOUS
from kto_ray.records.requests import NONE, Act, Answer, Done, Refused, Request
from kto_ray.records.rollouts import BudgetReset, RolloutState
from kto_ray.records.rounds import Awaiting, Judging, Loading, Outcome, Reloading, Round, Training
from kto_ray.rollout import holdback, machine


def obey(config: Config, seen: Seen, request: Request) -> tuple[Move, Answer]:
    """The move that a request comes to, if any, and the answer."""
    if request.expired:
        return None, Refused(f"{request.act} expired before a controller saw it; ask again if it is still meant")
    match request.act:
        case Act.RUN:
            return _run(config, seen)
        case Act.END:
            return _end(seen, request.target)
        case Act.ROLLBACK:
            return _rollback(config, seen, request.target)
        case Act.PROMOTE | Act.ABORT | Act.PAUSE | Act.RESUME as act:
            return _steer(config, seen, Act(act), request.target)
        case Act.APPROVE | Act.REJECT as act:
            return _answer(config, seen, Act(act), request.target)
        case Act.RESET_BUDGET:
            return _reset_budget(seen, request)
        case Act.FORGET:
            return _forget(config, seen)
        case _:
            return None, Refused(f"this version of kto_ray does not know {request.act!r}")


def _steer(config: Config, seen: Seen, act: Act, target: str | None) -> tuple[Move, Answer]:
    if target == NONE:
        return None, Refused(f"there was no rollout to {act} when it was asked; {_stands(seen)}")
    if seen.trial is None or not seen.trial.state.live:
        return None, Refused(f"there is no rollout to {act}; {_stands(seen)}")
    state = seen.trial.state
    if target is not None and target != state.id:
        return None, Refused(f"{act} is meant for rollout {target}; the one in progress is {state.id}")
    if act is Act.PROMOTE and not seen.all_hold(state.challenger):
        return None, Refused(f"not every live replica holds {state.challenger} yet")
    try:
        changed = machine.apply(state, act, seen.now)
    except ValueError as error:
        return None, Refused(str(error))
    told = Done(f"rollout {changed.id} is {changed.status}")
    return Change(None, (changed,)) if changed.live else verdict.settle(config, seen, changed), told


def _stands(seen: Seen) -> str:
    """Where the loop stands, and what acts there."""
    test = seen.trial.state if seen.trial is not None and seen.trial.state.live else None
    steers = f"kto-ray rollout promote, abort, pause and resume act on rollout {test.id}" if test is not None else ""
    if seen.round is None:
        return steers or "no round is in progress: kto-ray loop run (POST /v1/loop/run) begins one"
    waits = isinstance(seen.round.state, Awaiting)
    steers = "kto-ray rollout approve and reject act on its candidate" if waits else steers
    ends = "kto-ray loop abort (POST /v1/loop/abort) ends it"
    return f"round {seen.round.id} is in stage {seen.round.stage}: {f'{steers}, ' if steers else ''}{ends}"


def _run(config: Config, seen: Seen) -> tuple[Move, Answer]:
    if seen.round is not None:
        return None, Refused(f"one round at a time; {_stands(seen)}")
    if any(config.with_kto(one.kto).kto.dora for one in candidates.planned(config)):
        words = "kto.dora is true, and vLLM cannot serve a DoRA adapter; kto-ray train and evaluate work"
        return None, Refused(words)
    if seen.labels == 0:
        return None, Refused("there is no feedback to learn from")
    number = (seen.ended.id if seen.ended else 0) + 1
    return Begin(candidates.planned(config)), Done(f"round {number} begins")


def _answer(config: Config, seen: Seen, act: Act, target: str | None) -> tuple[Move, Answer]:
    """What a person says of a candidate that waits: its test begins, or its round ends."""
    if target == NONE:
        return None, Refused(f"there was no candidate to {act} when it was asked; {_stands(seen)}")
    current = seen.round
    if current is None or not isinstance(current.state, Awaiting):
        return None, Refused(f"there is no candidate to {act}; {_stands(seen)}")
    adapter = current.state.adapter
    if target is not None and target != adapter:
        return None, Refused(f"{act} is meant for {target}; the candidate that waits is {adapter}")
    if act is Act.APPROVE:
        if stale := candidates.outdated(seen, current):  # the champion may have changed in this very tick
            return Change(stale, (Point(CHALLENGER, None),), stale.in_words), Refused(stale.in_words)
        if not seen.all_hold(adapter):
            return None, Refused(f"not every live replica holds {adapter} yet")
        begun = candidates.begin_test(config, seen, current, adapter)
        [test] = (effect for effect in begun.effects if isinstance(effect, RolloutState))
        return begun, Done(f"the A/B test of {adapter} {test.reason or 'begins'}")
    ended = current.ended(Outcome.REJECTED, f"{adapter} was rejected by an operator", seen.now)
    return Change(ended, (Point(CHALLENGER, None),), ended.in_words), Done(
        f"round {ended.id} ends: {adapter} is rejected"
    )


def _end(seen: Seen, target: str | None) -> tuple[Move, Answer]:
    """End the round in progress, and its test if it has come to that."""
    if target == NONE:
        return None, Refused("there was no round in progress when it was asked")
    if seen.round is None:
        return None, Refused("there is no round in progress")
    if target is not None and target != str(seen.round.id):
        return None, Refused(f"it is meant for round {target}; the one in progress is {seen.round.id}")
    words = f"ended by an operator in stage {seen.round.stage}"
    test = seen.trial.state if seen.trial is not None and seen.trial.state.live else None
    effects = (machine.apply(test, Act.ABORT, seen.now),) if test is not None else ()
    ended = seen.round.ended(Outcome.ABORTED, words, seen.now)
    return Change(ended, (*effects, Point(CHALLENGER, None))), Done(f"round {ended.id} {words}")


def _rollback(config: Config, seen: Seen, champion: str | None) -> tuple[Move, Answer]:
    if champion is None:
        return None, Refused("a rollback names the champion to leave, so that asked twice it is done once")
    if champion != seen.aliases[CHAMPION]:
        return None, Refused(f"{champion} is not the champion: {seen.aliases[CHAMPION]} is")
    if seen.trial is not None and seen.trial.state.live:
        return None, Refused("a rollout is running; abort it first")
    target = seen.aliases.get(PREVIOUS)
    if target is None:
        return None, Refused("there is no previous champion")
    told = f"champion is {target} again"
    if seen.was_left:  # what was left for being worse does not come back so
        if champion == config.base_name:
            return None, Refused(f"the champion is the base model, for which {target} was left; nothing came before it")
        target, told = config.base_name, f"champion is the base model, for the previous one, {target}, was itself left"
    if target != config.base_name and not seen.all_hold(target):
        return None, Refused(f"not every live replica holds {target} yet")
    swap = (Point(PREVIOUS, seen.aliases[CHAMPION]), Point(CHAMPION, target))
    return Change(None, swap), Done(told)


def _reset_budget(seen: Seen, request: Request) -> tuple[Move, Answer]:
    if not request.target:
        return None, Refused("a reset says why, for the record")
    reset = BudgetReset(seen.now, request.who or "operator", request.target)
    words = f"the error budget begins anew, by {reset.who}: {reset.why}"
    if seen.trial is not None and seen.trial.state.live:
        test = seen.trial.state
        words += f"; rollout {test.id} keeps its level of {test.level:.3g}, out of the budget of before"
    return Change(None, (reset,)), Done(words)


ERASED = "what it learns from was erased"


def _forget(config: Config, seen: Seen) -> tuple[Move, Answer]:
    """End a round whose snapshot is gone before its candidate meets users, for nothing can judge it; and have no alias
    at what learnt from erased rows where the config says so."""
    current, ended, effects = seen.round, None, list[Effect]()
    match current:
        case Round(
            state=Training(snapshot) | Loading(snapshot) | Judging(snapshot) | Reloading(snapshot) | Awaiting(snapshot)
        ) if snapshot in seen.tainted:
            ended = current.ended(Outcome.ABORTED, ERASED, seen.now)
            effects.append(Point(CHALLENGER, None))
    if config.retention.after_erasure == "retire":
        effects += _retired(config, seen)
    if not effects:
        return None, Done("nothing in progress or in service learnt from what was erased")
    words = [f"round {ended.id} ends"] if ended else []
    words += [f"rollout {e.id} ends" for e in effects if isinstance(e, RolloutState)]
    words += [f"{e.alias} is {e.adapter or 'nobody'}" for e in effects if isinstance(e, Point)]
    return Change(ended, tuple(effects), "; ".join(words)), Done("; ".join(words))


def _retired(config: Config, seen: Seen) -> list[Effect]:
    """Where the aliases point that are at a tainted adapter: the champion's at the previous one if that may serve, and
    else at the base model. The test and the holdback end that have one in an arm."""
    effects: list[Effect] = []
    test = seen.trial.state if seen.trial is not None and seen.trial.state.live else None
    if test is not None and {test.champion, test.challenger} & seen.tainted:
        effects.append(replace(machine.apply(test, Act.ABORT, seen.now), reason=ERASED))
        effects.append(Point(CHALLENGER, None))
    held = seen.holdback.state if seen.holdback is not None else None
    if held is not None and {held.champion, held.challenger} & seen.tainted:
        effects.append(holdback.ended(held, ERASED, seen.now))
    previous = seen.aliases.get(PREVIOUS)
    if seen.aliases[CHAMPION] in seen.tainted:
        left = seen.was_left or previous in seen.tainted
        sound = previous is not None and not left and seen.all_hold(previous)
        effects += [Point(CHAMPION, previous if sound else config.base_name), Point(PREVIOUS, None)]
    elif previous in seen.tainted:
        effects.append(Point(PREVIOUS, None))
    return effects
