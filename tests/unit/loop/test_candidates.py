"""Several candidates of a round: each has its turn, the best that passes meets users, and a person may be asked."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from kto_ray.config import Config, load_config
from kto_ray.loop import candidates, work
from kto_ray.loop.decide import decide
from kto_ray.loop.moves import Begin, Change, Point, Start
from kto_ray.loop.operators import obey
from kto_ray.loop.seen import Failed, Running, Seen
from kto_ray.loop.step import Loop
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.evaluation import GateDecision, GateReport
from kto_ray.records.replicas import LoadFault, ReplicaReport
from kto_ray.records.requests import NONE, Act, Done, Refused, Request
from kto_ray.records.rollouts import RolloutState, RolloutStatus
from kto_ray.records.rounds import (
    Awaiting,
    Candidate,
    Ended,
    Judging,
    Loading,
    OnTrial,
    Outcome,
    Reloading,
    Round,
    Sealing,
    Stage,
    State,
    Training,
    Tried,
)
from kto_ray.records.training import Trained
from kto_ray.records.trials import Votes
from kto_ray.store import adapters, evaluation, open_store, requests, rollouts, rounds, trainings
from kto_ray.store.schema import metadata
from tests.support.loop import Jobs, cleared, hold, labels

PASS, REJECT, UNSURE = GateDecision.PROMOTE_TO_CANARY, GateDecision.REJECT, GateDecision.INCONCLUSIVE
APO = "loop.candidates.apo={loss_type: apo_zero_unpaired, learning_rate: 0.001}"
CONFIG = load_config(None, ("home=/tmp/kto", "loop.candidates.kto={}", APO))
ASKING = load_config(None, ("home=/tmp/kto", "loop.candidates.kto={}", APO, "loop.require_approval=true"))
KTO, APO_ZERO = candidates.planned(CONFIG)
V1, V2 = "policy@v1", "policy@v2"
NOW = 1000.0
HOUR_S = 3600


def tried(adapter: str | None, decision: GateDecision | None, gain: float | None = 0.05) -> Tried:
    return Tried(adapter, decision, "why; and why", gain)


def after(first: Tried | None = None, second: Tried | None = None) -> tuple[Candidate, ...]:
    return replace(KTO, tried=first), replace(APO_ZERO, tried=second)


def seen(state: State, known: tuple[Candidate, ...], held: tuple[str, ...] = (), **changes: Any) -> Seen:
    found = Seen(
        now=NOW,
        round=Round(7, state, 900.0, 950.0, attempts=2, failure="earlier", candidates=known),
        ended=None,
        new_labels=0,
        labels=500,
        aliases={"champion": "policy@base"},
        live=(ReplicaReport("r", "node", 1, held, NOW),),
        nonce="n",
        salt="drawn",
        level=0.004,
    )
    return replace(found, **changes)


def changed(found: Seen, config: Config = CONFIG) -> tuple[Round, tuple[Any, ...]]:
    move = decide(config, found)
    assert isinstance(move, Change) and move.round is not None, move
    return move.round, move.effects


def report(adapter: str, decision: GateDecision, gain: float = 0.05) -> GateReport:
    return GateReport(adapter, "s", NOW, decision, ("why", "and why"), {"auc_gain": gain})


def end_of(current: Round) -> tuple[Outcome, str | None]:
    assert isinstance(current.state, Ended), current
    return current.state.outcome, current.state.reason


# ---- turns


def test_a_round_begins_with_the_configs_candidates() -> None:
    assert candidates.planned(Config()) == (Candidate(),)
    over = {"loss_type": "apo_zero_unpaired", "learning_rate": 0.001}
    assert candidates.planned(CONFIG) == (Candidate("kto"), Candidate("apo", over))
    begins = Seen(NOW, None, None, 200, 200, {"champion": "policy@base"}, ())
    assert decide(CONFIG, begins) == Begin((Candidate("kto"), Candidate("apo", over)))
    assert obey(CONFIG, begins, Request(1, Act.RUN))[0] == Begin((Candidate("kto"), Candidate("apo", over)))


def test_each_candidate_trains_under_a_name_of_its_own() -> None:
    current = Round(7, Training("s"), 1.0, 2.0, candidates=after())
    assert (current.candidate.name, current.run) == ("kto", "round-7-kto")
    second = current.having(tried(None, None))
    assert (second.candidate.name, second.run) == ("apo", "round-7-apo")
    both = replace(second.having(tried(V2, PASS)), state=OnTrial("s", V2, "r"))
    assert (both.candidate.name, both.run) == ("apo", "round-7-apo")
    assert Round(7, Training("s"), 1.0, 2.0).run == "round-7"


@pytest.mark.parametrize("decision", list(GateDecision))
def test_the_next_has_its_turn_whatever_came_of_the_first(decision: GateDecision) -> None:
    current, effects = changed(seen(Judging("s", V1), after(), (V1,), job=report(V1, decision)))
    first = replace(tried(V1, decision), against="policy@base")
    assert current.candidates == after(first) and current.state == Training("s")
    assert (current.attempts, current.failure, current.stage_started_at) == (0, None, NOW), "its own tries and hours"
    assert effects == (report(V1, decision), Point("challenger", None)), "the first makes way"
    assert decide(CONFIG, replace(seen(Training("s"), current.candidates), round=current)) == Start()


@pytest.mark.parametrize("state", [Judging("s", V2), Reloading("s", V1), Awaiting("s", V1)])
def test_who_passed_against_a_former_champion_meets_no_user(state: State) -> None:
    passed, second = (
        replace(tried(V1, PASS), against="policy@v0"),
        None if isinstance(state, Judging) else tried(V2, PASS),
    )
    job = report(V2, PASS) if isinstance(state, Judging) else None
    for aliases, stale in (({"champion": "policy@base"}, True), ({"champion": "policy@v0"}, False)):
        move = decide(CONFIG, seen(state, after(passed, second), (V1, V2), job=job, aliases=aliases))
        ends = isinstance(move, Change) and move.round is not None and isinstance(move.round.state, Ended)
        assert ends == stale
        if ends:
            told = (Outcome.INCONCLUSIVE, f"{V1} passed against policy@v0, and the champion is policy@base by now")
            assert isinstance(move, Change) and move.round is not None and end_of(move.round) == told


def test_the_hours_of_a_stage_are_those_of_all_candidates() -> None:
    before = Round(7, Training("s"), 1.0, 10.0, stage_s={"train": 30.0}, candidates=after(tried(V1, PASS)))
    assert before.to(Loading("s", V2), 15.0).stage_s == {"train": 35.0}


@pytest.mark.parametrize(
    ("state", "changes", "why"),
    [
        (Training("s"), {"job": Failed("TrainingDiverged: NaN", hopeless=True)}, "train: TrainingDiverged: NaN"),
        (Training("s"), {"job": Failed("RayError: gone", hopeless=False)}, "train: RayError: gone"),
        (Training("s"), {"now": 950.0 + 72 * HOUR_S, "job": Running()}, "train: not done within 72 hours"),
        (Judging("s", V1), {"job": Failed("ValueError: no", hopeless=True)}, "gate: ValueError: no"),
        (Judging("s", V1), {"now": 950.0 + 6 * HOUR_S}, "gate: not done within 6 hours"),
        (Loading("s", V1), {"now": 950.0 + 1801}, "load: 1 of 1 live replicas do not hold the adapter, after 1800 s"),
    ],
)
def test_a_candidate_that_fails_costs_the_others_nothing(state: State, changes: dict[str, Any], why: str) -> None:
    current, effects = changed(seen(state, after(), **changes))
    first, second = current.candidates
    assert current.state == Training("s") and second.tried is None and effects == (Point("challenger", None),)
    assert first.tried is not None and first.tried.decision is None and first.tried.reason.startswith(why)
    assert first.tried.adapter == getattr(state, "adapter", None)
    last = seen(state, after(tried("policy@v0", PASS)), **changes)
    current, effects = changed(last)
    assert current.state == Reloading("s", "policy@v0") and effects == (Point("challenger", "policy@v0"),)


def test_bad_feedback_ends_the_round_for_all() -> None:
    current, _ = changed(seen(Sealing(), after(), job=Failed("ValueError: one class", hopeless=True)))
    assert end_of(current) == (Outcome.FAILED, "snapshot: ValueError: one class")


# ---- the best


def test_the_best_is_of_those_that_passed_and_of_equals_the_first() -> None:
    assert candidates.best(after(tried(V1, PASS, 0.03), tried(V2, PASS, 0.05))) == V2
    assert candidates.best(after(tried(V1, PASS, 0.05), tried(V2, PASS, 0.03))) == V1
    assert candidates.best(after(tried(V1, PASS), tried(V2, PASS))) == V1
    assert candidates.best(after(tried(V1, UNSURE, 0.2), tried(V2, PASS, -0.01))) == V2
    assert candidates.best(after(tried(V1, PASS, None), tried(V2, PASS, -0.5))) == V2
    assert candidates.best(after(tried(V1, REJECT, 0.2), tried(None, None))) is None


def test_the_best_goes_to_users_at_once_where_the_replicas_hold_it() -> None:
    judging = seen(Judging("s", V2), after(tried(V1, PASS, 0.03)), (V2,), job=report(V2, PASS, 0.05))
    current, (kept, test) = changed(judging)
    assert current.state == OnTrial("s", V2, "rollout-7-n") and kept.adapter == V2
    assert isinstance(test, RolloutState) and (test.challenger, test.level, test.salt) == (V2, 0.004, "drawn")


@pytest.mark.parametrize("second", [report(V2, PASS, 0.05), report(V2, PASS, 0.04), report(V2, REJECT, 0.5)])
def test_the_best_is_loaded_again_where_it_made_way(second: GateReport) -> None:
    current, effects = changed(seen(Judging("s", V2), after(tried(V1, PASS, 0.05)), (V2,), job=second))
    assert current.state == Reloading("s", V1) and current.candidate.name == "kto"
    assert effects == (second, Point("challenger", V1)), "and the other is wanted by nobody"
    waiting = seen(current.state, current.candidates, (V2,))
    assert decide(CONFIG, waiting) is None
    on_trial, (test,) = changed(seen(current.state, current.candidates, (V1,)))
    assert on_trial.state == OnTrial("s", V1, "rollout-7-n") and test.challenger == V1


def test_where_the_best_cannot_be_loaded_again_the_next_best_is() -> None:
    both = after(tried(V1, PASS, 0.05), tried(V2, PASS, 0.03))
    broken = ReplicaReport("r", "node", 1, (), NOW, {V1: LoadFault("broken", refused=True)})
    current, effects = changed(seen(Reloading("s", V1), both, live=(broken,)))
    assert current.state == Reloading("s", V2) and effects == (Point("challenger", V2),)
    reason = "reload: a replica refused the adapter: broken"
    assert current.candidates == after(Tried(V1, None, reason), tried(V2, PASS, 0.03))
    current, _ = changed(seen(Reloading("s", V2), current.candidates, now=950.0 + 1801))
    outcome, words = end_of(current)
    assert outcome is Outcome.FAILED and words is not None and words.startswith(f"kto failed: {reason}. apo failed: re")


@pytest.mark.parametrize(
    ("first", "second", "outcome", "verdicts"),
    [
        (REJECT, REJECT, Outcome.REJECTED, ("rejected", "rejected")),
        (REJECT, UNSURE, Outcome.INCONCLUSIVE, ("rejected", "inconclusive")),
        (UNSURE, REJECT, Outcome.INCONCLUSIVE, ("inconclusive", "rejected")),
        (None, REJECT, Outcome.INCONCLUSIVE, ("failed", "rejected")),
        (REJECT, None, Outcome.INCONCLUSIVE, ("rejected", "failed")),
        (None, None, Outcome.FAILED, ("failed", "failed")),
    ],
)
def test_where_none_passes_the_round_ends_and_names_each(
    first: GateDecision | None, second: GateDecision | None, outcome: Outcome, verdicts: tuple[str, str]
) -> None:
    known = after(tried(V1, first))
    if second is None:
        last = seen(Training("s"), known, job=Failed("why; and why", hopeless=True))
    else:
        last = seen(Judging("s", V2), known, job=report(V2, second))
    current, effects = changed(last)
    reason = "train: why; and why" if second is None else "why; and why"
    assert end_of(current) == (outcome, f"kto {verdicts[0]}: why; and why. apo {verdicts[1]}: {reason}")
    assert effects[-1] == Point("challenger", None)


# ---- approval


def waits(**changes: Any) -> Seen:
    return seen(Awaiting("s", V1), after(tried(V1, PASS), tried(V2, REJECT)), (V1,), **changes)


def asked(act: Act, target: str | None = V1, **changes: Any) -> tuple[Any, Any]:
    return obey(ASKING, waits(**changes), Request(1, act, target))


@pytest.mark.parametrize(
    ("state", "known", "job"),
    [
        (Judging("s", V1), (Candidate(),), report(V1, PASS)),
        (Reloading("s", V1), after(tried(V1, PASS), tried(V2, REJECT)), None),
    ],
)
def test_a_candidate_that_passed_waits_for_a_person(state: State, known: tuple[Candidate, ...], job: Any) -> None:
    current, effects = changed(seen(state, known, (V1,), job=job), ASKING)
    assert current.state == Awaiting("s", V1) and current.stage_started_at == NOW
    assert effects == (() if job is None else (job,)), "it stays loaded, and no user meets it"
    assert decide(ASKING, waits()) is None
    assert decide(CONFIG, waits()) is None, "also where nobody is asked any more: this one was"


def test_its_test_begins_once_it_is_approved() -> None:
    move, answer = asked(Act.APPROVE)
    assert answer == Done(f"the A/B test of {V1} begins")
    assert move.round.state == OnTrial("s", V1, "rollout-7-n")
    [test] = move.effects
    assert (test.challenger, test.champion, test.level) == (V1, "policy@base", 0.004)
    assert asked(Act.APPROVE, None)[0] == move


def test_who_approves_is_told_where_the_test_waits_once_more() -> None:
    few = Votes(users=130, rate=0.6, days=13.0)
    move, answer = asked(Act.APPROVE, votes=few)
    [test] = move.effects
    assert test.status is RolloutStatus.PAUSED and test.weight == 0.0
    assert answer == Done(f"the A/B test of {V1} {test.reason}")
    assert "asks for resume or abort before it begins" in answer.words


def test_its_round_ends_once_it_is_rejected() -> None:
    move, answer = asked(Act.REJECT)
    assert end_of(move.round) == (Outcome.REJECTED, f"{V1} was rejected by an operator")
    assert move.effects == (Point("challenger", None),) and answer == Done(f"round 7 ends: {V1} is rejected")


@pytest.mark.parametrize("act", [Act.APPROVE, Act.REJECT])
def test_an_answer_is_only_for_the_candidate_that_waits(act: Act) -> None:
    assert asked(act, V2) == (None, Refused(f"{act} is meant for {V2}; the candidate that waits is {V1}"))
    move, answer = asked(act, NONE)
    assert move is None and answer.words.startswith(f"there was no candidate to {act} when it was asked; round 7 is in")
    move, answer = obey(ASKING, seen(Training("s"), after()), Request(1, act, V1))
    assert move is None and answer.words.startswith(f"there is no candidate to {act}; round 7 is in stage train: ")


def test_what_a_replica_lacks_is_not_approved_yet() -> None:
    assert asked(Act.APPROVE, live=()) == (None, Refused(f"not every live replica holds {V1} yet"))
    assert isinstance(asked(Act.REJECT, live=())[1], Done)


def test_nobody_is_waited_for_for_ever() -> None:
    assert decide(ASKING, waits(now=950.0 + 168 * HOUR_S - 1)) is None
    current, effects = changed(waits(now=950.0 + 168 * HOUR_S), ASKING)
    assert end_of(current) == (Outcome.ABORTED, f"nobody approved {V1} within 168 hours (loop.approval_hours)")
    assert effects == (Point("challenger", None),)


@pytest.mark.parametrize("state", [Reloading("s", V1), Awaiting("s", V1)])
def test_it_can_be_ended_and_ends_with_what_it_learnt_from(state: State) -> None:
    found = replace(waits(), round=replace(waits().round, state=state))  # type: ignore[type-var]
    move, _ = obey(ASKING, found, Request(1, Act.END, "7"))
    assert isinstance(move, Change) and move.round is not None
    assert end_of(move.round) == (Outcome.ABORTED, f"ended by an operator in stage {state.stage}")
    erased = replace(found, tainted=frozenset({"s"}))
    move, _ = obey(ASKING, erased, Request(1, Act.FORGET))
    assert isinstance(move, Change) and move.round is not None
    assert end_of(move.round) == (Outcome.ABORTED, "what it learns from was erased")
    assert move.effects == (Point("challenger", None),)


# ---- over the store


class Several(Jobs):
    """Jobs of a round of several candidates: `gains` are those of the gate, by the run that trained it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gains = {"round-1-kto": 0.05, "round-1-apo": 0.03}
        self.overs: dict[str, Any] = {}
        self._runs: dict[str, str] = {}

    def start(self, function: Any, config: Any = None, *given: Any) -> str:
        if function.__name__ == "learn":
            run, number, _, _, over = given
            self.overs[run] = over
            name = f"policy@v{number}"
            self._runs[name] = run
            version = AdapterVersion(name, number, 1.0, "uri", str(number) * 64, self.manifest.id, None, "base", 8)
            self.results[run] = Trained(version, ({"step": 1},), {"steps": 1, "tokens_per_s": 1.0, "train_s": 1.0})
            self.started.append(run)
            return str(run)
        if function.__name__ == "examine":
            candidate, self.overs[given[1].name] = given[1], given[-1]
            told = GateReport(candidate.name, self.manifest.id, 1.0, PASS, ("sane",), {})
            self.results[candidate.name] = replace(told, metrics={"auc_gain": self.gains[self._runs[candidate.name]]})
            self.started.append(candidate.name)
            return str(candidate.name)
        return super().start(function)


@pytest.fixture
def several(jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Several:
    folder = tmp_path / "sealed"
    folder.mkdir()
    made = Several(folder)
    monkeypatch.setattr("kto_ray.loop.work.start", made.start)
    monkeypatch.setattr("ray.get", made.get)
    return made


class Killed(BaseException):
    """The controller's process ends here."""


class Mortal(Loop):
    """A controller that is killed at its write number `at`, before or after the commit."""

    def __init__(self, config: Config, at: int | None = None, committed: bool = False) -> None:
        super().__init__(config, policy=None)
        self.writes = 0
        self._at, self._committed = at, committed

    @contextmanager
    def _act(self) -> Iterator[sa.Connection]:
        self.writes += 1
        now = self.writes == self._at
        with super()._act() as tx:
            yield tx
            if now and not self._committed:
                raise Killed
        if now:
            raise Killed


def to_its_test(config: Config, at: int | None = None, committed: bool = False) -> tuple[dict[str, Any], int]:
    """What is in the store once the best of two is on trial, approved by a person, and how often was written."""
    store = open_store(config.database_url)
    first = loop = Mortal(config, at, committed)
    asks: set[str] = set()
    for _ in range(60):
        try:
            loop.step()
        except Killed:
            with store.write() as tx:
                tx.exec_driver_sql("UPDATE leases SET expires_at = 0")
            loop = Mortal(config)
        with store.write() as tx:
            wanted = [version.name for version in adapters.desired(tx)]
            current = rounds.newest(tx)
            if current is not None and current.stage is Stage.APPROVAL and not asks:
                asks.add(str(requests.ask(tx, Act.APPROVE, time.time())))
            if current is not None and current.stage is Stage.ROLLOUT:
                there: dict[str, Any] = {
                    table.name: tx.execute(sa.select(sa.func.count()).select_from(table)).scalar()
                    for table in metadata.sorted_tables
                    if table.name != "rollout_points"  # the first look at the test may be a tick later
                }
                there |= adapters.aliases(tx, "policy@base") | {"candidates": current.candidates}
                there["runs"] = sorted(trainings.of_rounds(tx, 1))
                there["levels"] = [test.level for test in rollouts.latest(tx, 2)]
                break
        hold(store, *wanted)
    store.close()
    return there, first.writes


@pytest.mark.parametrize("committed", [False, True])
def test_killed_around_any_write_the_best_comes_to_its_test_and_nothing_is_there_twice(
    tmp_path: Path, several: Several, committed: bool
) -> None:
    begun = open_store(f"sqlite:///{tmp_path}/begun.db")
    labels(begun)
    begun.close()

    def config(name: str) -> Config:
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "begun.db", tmp_path / name / "kto.db")
        fields = ("loop.min_labels=8", "loop.candidates.kto={}", APO, "loop.require_approval=true")
        return load_config(None, (f"home={tmp_path / name}", *fields))

    whole, writes = to_its_test(config("whole"))
    assert whole["runs"] == ["round-1-apo", "round-1-kto"] and whole["gates"] == whole["adapters"] == 2
    assert whole["challenger"] == V1 and whole["champion"] == "policy@base", "the better one, loaded again"
    assert several.started == ["seal", "round-1-kto", V1, "round-1-apo", V2]
    assert several.overs == {"round-1-kto": {}, V1: {}, "round-1-apo": APO_ZERO.kto, V2: APO_ZERO.kto}
    assert whole["levels"] == pytest.approx([0.005]) and writes > 9
    for at in range(1, writes + 1):
        assert to_its_test(config(f"killed-{at}"), at, committed)[0] == whole, f"killed at write {at}"


def test_the_job_of_a_candidate_that_is_late_is_stopped_and_the_next_one_trains(
    tmp_path: Path, several: Several, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(None, (f"home={tmp_path}", "loop.min_labels=8", "loop.candidates.kto={}", APO))
    stopped: list[Any] = []
    monkeypatch.setattr("kto_ray.loop.work.cancel", lambda job: stopped.append(("cancel", job)))
    monkeypatch.setattr("kto_ray.loop.work.clear", lambda config, run: stopped.append(("clear", run)))
    store, loop = open_store(config.database_url), Loop(config, policy=None)
    labels(store)
    for _ in range(4):
        loop.step()
    assert several.started[-1] == "round-1-kto"
    monkeypatch.setattr("ray.wait", lambda refs, timeout: ([], refs))
    with store.write() as tx:
        tx.exec_driver_sql("UPDATE rounds SET stage_started_at = 1")
    loop.step()
    loop.step()
    cleared(loop)
    assert stopped == [("cancel", "round-1-kto"), ("clear", "round-1-kto")] and several.started[-1] == "round-1-apo"
    with store.read() as tx:
        current = rounds.current(tx)
    assert current is not None and current.state == Training(several.manifest.id)
    first = current.candidates[0].tried
    assert first is not None and first.reason.startswith("train: not done within 72 hours (loop.train_hours)")


@pytest.mark.parametrize(("gains", "winner"), [((0.03, 0.05), V2), ((0.05, 0.03), V1)])
def test_the_reports_of_all_are_kept_and_the_losers_released(
    tmp_path: Path, several: Several, gains: tuple[float, float], winner: str
) -> None:
    config = load_config(None, (f"home={tmp_path}", "loop.min_labels=8", "loop.candidates.kto={}", APO))
    several.gains = dict(zip(("round-1-kto", "round-1-apo"), gains, strict=True))
    store, loop = open_store(config.database_url), Loop(config, policy=None)
    labels(store)
    for _ in range(20):
        loop.step()
        with store.read() as tx:
            wanted = [version.name for version in adapters.desired(tx)]
        hold(store, *wanted)
    with store.read() as tx:
        current = rounds.current(tx)
        assert current is not None and isinstance(current.state, OnTrial) and current.state.adapter == winner
        told = [(c.tried.adapter, c.tried.gain) for c in current.candidates if c.tried]
        assert told == list(zip((V1, V2), gains, strict=True))
        assert all(evaluation.get(tx, name) for name in (V1, V2)) and wanted == [winner]
        test = rollouts.live(tx)
        assert test is not None and test.challenger == winner and test.level == pytest.approx(0.005), "a life's first"
        assert rounds.of_adapter(tx, V1) == rounds.of_adapter(tx, V2) == [1]


def test_a_candidate_learns_and_is_judged_by_what_it_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[Config] = []
    monkeypatch.setattr("kto_ray.train.learn.learn", lambda config, *_: learnt.append(config))
    monkeypatch.setattr("kto_ray.evaluate.ask.guard_answers", lambda *_: ((), ()))
    monkeypatch.setattr("kto_ray.loop.work.gate", lambda config, *_: learnt.append(config))
    version = AdapterVersion(V1, 1, 1.0, "uri", "0" * 64, "s", None, "policy@base", 8)
    policy: Any = None
    work.learn(CONFIG, "round-1-apo", 1, "uri", None, APO_ZERO.kto)
    work.examine(CONFIG, policy, version, None, "uri", APO_ZERO.kto)
    assert [config.kto for config in learnt] == [CONFIG.kto.model_copy(update=dict(APO_ZERO.kto))] * 2
    with pytest.raises(ValueError, match="betta"):
        work.learn(CONFIG, "round-1-apo", 1, "uri", None, {"betta": 1})
