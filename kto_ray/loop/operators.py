"""What the loop makes of an operator's request (promote, abort, pause, resume, rollback, run). Pure: no store, no
clock."""

from __future__ import annotations

from kto_ray.config import Config
from kto_ray.loop.decide import Seen
from kto_ray.loop.moves import Begin, Change, Move, Point
from kto_ray.records.adapters import CHAMPION, PREVIOUS
from kto_ray.records.requests import Act, Answer, Done, Refused
from kto_ray.rollout import machine


def obey(config: Config, seen: Seen, act: Act) -> tuple[Move, Answer]:
    """The move that an operator's request comes to, if any, and the answer."""
    match act:
        case Act.RUN:
            return _run(config, seen)
        case Act.ROLLBACK:
            return _rollback(config, seen)
        case Act.PROMOTE | Act.ABORT | Act.PAUSE | Act.RESUME:
            return _steer(seen, act)


def _steer(seen: Seen, act: Act) -> tuple[Move, Answer]:
    if seen.trial is None or not seen.trial.state.live:
        return None, Refused(f"there is no rollout to {act}")
    state = seen.trial.state
    if act is Act.PROMOTE and not seen.all_hold(state.challenger):
        return None, Refused(f"not every live replica holds {state.challenger} yet")
    try:
        changed = machine.apply(state, act, seen.now)
    except ValueError as error:
        return None, Refused(str(error))
    return Change(None, (changed,)), Done(f"rollout {changed.id} is {changed.status}")


def _run(config: Config, seen: Seen) -> tuple[Move, Answer]:
    if seen.round is not None:
        return None, Refused(f"round {seen.round.id} is in stage {seen.round.stage}; one round at a time")
    if config.kto.dora:
        words = "kto.dora is true, and vLLM cannot serve a DoRA adapter; kto-ray train and evaluate work"
        return None, Refused(words)
    if seen.labels == 0:
        return None, Refused("there is no feedback to learn from")
    number = (seen.ended.id if seen.ended else 0) + 1
    return Begin(), Done(f"round {number} begins")


def _rollback(config: Config, seen: Seen) -> tuple[Move, Answer]:
    if seen.trial is not None and seen.trial.state.live:
        return None, Refused("a rollout is running; abort it first")
    target = seen.aliases.get(PREVIOUS)
    if target is None:
        return None, Refused("there is no previous champion")
    if target != config.base_name and not seen.all_hold(target):
        return None, Refused(f"not every live replica holds {target} yet")
    swap = (Point(PREVIOUS, seen.aliases[CHAMPION]), Point(CHAMPION, target))
    return Change(None, swap), Done(f"champion is {target} again")
