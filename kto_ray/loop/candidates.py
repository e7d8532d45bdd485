"""The candidates of a round: the next one's turn, the best that passed the gate, and its way to users. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from kto_ray.config import Config
from kto_ray.loop.moves import Change, Effect, Point
from kto_ray.loop.seen import Seen
from kto_ray.records.adapters import CHALLENGER, CHAMPION
from kto_ray.records.evaluation import GateDecision, GateReport
from kto_ray.records.rounds import (
    Awaiting,
    Candidate,
    Ended,
    OnTrial,
    Outcome,
    Reloading,
    Round,
    Sealing,
    Training,
    Tried,
)
from kto_ray.rollout import machine
from kto_ray.rollout.outlook import foresee

UNKNOWN = float("-inf")


def planned(config: Config) -> tuple[Candidate, ...]:
    """Those of a round that begins now."""
    named = config.loop.candidates.items()
    return tuple(Candidate(name, over.model_dump(mode="json")) for name, over in named) or (Candidate(),)


def best(candidates: Sequence[Candidate]) -> str | None:
    """The adapter of the highest gain in AUC over the champion, of those that passed the gate; of equals the first."""
    tried = [c.tried for c in candidates if c.tried is not None]
    passed = [t for t in tried if t.decision is GateDecision.PROMOTE_TO_CANARY]
    winner = max(passed, key=lambda t: UNKNOWN if t.gain is None else t.gain, default=None)
    return winner.adapter if winner else None


def outdated(seen: Seen, known: Round) -> Round | None:
    """The end of a round of whose candidates one passed against a champion that is none any more: nobody has compared
    it with the present one. The next round learns from the same judgements, and more."""
    champion = seen.aliases[CHAMPION]
    for one in known.candidates:
        tried = one.tried
        passed = tried is not None and tried.decision is GateDecision.PROMOTE_TO_CANARY
        if tried is not None and passed and tried.against not in (None, champion):
            words = f"{tried.adapter} passed against {tried.against}, and the champion is {champion} by now"
            return known.ended(Outcome.INCONCLUSIVE, words, seen.now)
    return None


def judged(config: Config, seen: Seen, current: Round, report: GateReport) -> Change:
    """What comes of a candidate that the gate has looked at."""
    gain, champion = report.metrics.get("auc_gain"), seen.aliases[CHAMPION]
    tried = Tried(report.adapter, report.decision, "; ".join(report.reasons), gain, champion)
    return _after(config, seen, current.having(tried), (report,), holds=report.adapter)


def failed(config: Config, seen: Seen, current: Round, reason: str) -> Change:
    """What comes of a candidate that could not be trained, loaded or judged; it may be the best, loaded again."""
    tried = Tried(getattr(current.state, "adapter", None), None, reason)
    return _after(config, seen, current.having(tried), (), holds=None)


def _after(config: Config, seen: Seen, known: Round, effects: tuple[Effect, ...], holds: str | None) -> Change:
    """The round once it knows what came of its candidate, whose adapter the replicas hold unless it failed (None)."""
    assert not isinstance(known.state, (Sealing, Ended)), "there is no candidate before the snapshot, nor after the end"
    snapshot, told, failed = known.state.snapshot, in_words(known.candidates), holds is None
    if any(one.tried is None for one in known.candidates):
        words = f"round {known.id} goes on with its candidate {known.candidate.name}; {told}"
        return Change(known.to(Training(snapshot), seen.now), (*effects, Point(CHALLENGER, None)), words, failed)
    if stale := outdated(seen, known):
        return Change(stale, (*effects, Point(CHALLENGER, None)), stale.in_words, failed)
    adapter = best(known.candidates)
    if adapter is None:
        ended = known.ended(_outcome(known.candidates), told, seen.now)
        return Change(ended, (*effects, Point(CHALLENGER, None)), ended.in_words, failed)
    if adapter == holds:
        return to_users(config, seen, known, adapter, effects)
    again = known.to(Reloading(snapshot, adapter), seen.now)
    words = f"round {known.id} loads {adapter} again; {told}"
    return Change(again, (*effects, Point(CHALLENGER, adapter)), words, failed)


def to_users(config: Config, seen: Seen, known: Round, adapter: str, effects: tuple[Effect, ...] = ()) -> Change:
    """The best candidate, which all replicas hold, meets users, or waits for who says that it may."""
    if not config.loop.require_approval:
        return begin_test(config, seen, known, adapter, effects)
    assert not isinstance(known.state, (Sealing, Ended))
    waits = known.to(Awaiting(known.state.snapshot, adapter), seen.now)
    words = f"round {known.id}: {adapter} passed the gate and waits for kto-ray rollout approve, or reject"
    return Change(waits, effects, words)


def begin_test(config: Config, seen: Seen, known: Round, adapter: str, effects: tuple[Effect, ...] = ()) -> Change:
    assert not isinstance(known.state, (Sealing, Ended))
    name = f"rollout-{known.id}-{seen.nonce}"
    test = machine.start(config.rollout, seen.aliases[CHAMPION], adapter, name, seen.salt, seen.level, seen.now)
    ahead = foresee(config.rollout, seen.level, seen.votes, seen.accepted)
    if ahead.too_little:
        test = machine.ask_first(test, ahead.words, seen.now, ahead.gain)
    testing = OnTrial(known.state.snapshot, adapter, name)
    return Change(known.to(testing, seen.now), (*effects, test), f"rollout {name}: {test.reason or ahead.words}")


def in_words(candidates: Sequence[Candidate]) -> str:
    """What came of those that were tried, each by its name where it has one."""
    return ". ".join(_words(one.name, one.tried) for one in candidates if one.tried is not None)


def _words(name: str, tried: Tried) -> str:
    if not name:
        return tried.reason
    verdict = {None: "failed", GateDecision.PROMOTE_TO_CANARY: "passed", GateDecision.REJECT: "rejected"}
    return f"{name} {verdict.get(tried.decision, 'inconclusive')}: {tried.reason}"


def _outcome(candidates: Sequence[Candidate]) -> Outcome:
    """Of a round in which none has passed."""
    decisions = {one.tried.decision for one in candidates if one.tried is not None}
    if decisions == {None}:
        return Outcome.FAILED
    return Outcome.REJECTED if decisions == {GateDecision.REJECT} else Outcome.INCONCLUSIVE
