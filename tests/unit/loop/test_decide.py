"""What the loop does next, from what it sees: every stage, every outcome, no store and no Ray."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import Any

import pytest

from kto_ray.config import Config
from kto_ray.config.deciding import RolloutSection, RolloutStage
from kto_ray.loop.decide import decide
from kto_ray.loop.moves import Begin, Change, KeepSnapshot, Point, Start
from kto_ray.loop.operators import obey
from kto_ray.loop.seen import Failed, Running, Seen, Trial
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.evaluation import GateDecision, GateReport
from kto_ray.records.replicas import LoadFault, ReplicaReport
from kto_ray.records.requests import NONE, Act, Done, Refused, Request
from kto_ray.records.rollouts import Look, RolloutState, RolloutStatus
from kto_ray.records.rounds import Awaiting, Ended, Judging, Loading, OnTrial, Outcome, Round, Sealing, State, Training
from kto_ray.records.training import Trained, TrainProgress
from kto_ray.records.trainings import TrainingRun as Run
from kto_ray.records.trials import Exposed, Settled, Standing, Votes
from kto_ray.rollout import base, holdback, machine
from kto_ray.stats.detector import Watch
from tests.support.rows import manifest

CONFIG = Config(home="/tmp/kto", rollout=RolloutSection(base_holdback=0))
MEASURED = Config(home="/tmp/kto")
NOW = 1000.0
V1 = "policy@v1"
VERSION = AdapterVersion(V1, 1, 1.0, "uri", "0" * 64, "s", None, "policy@base", 8)
HOLDS = ReplicaReport("r", "node", 1, (V1,), NOW)
EMPTY = replace(HOLDS, held=())
TEST = RolloutState("rollout-1-n", "policy@base", V1, "salt", 1, 0.5, RolloutStatus.RUNNING, -2e5, -2e5, level=0.005)
NOTHING = Standing(TEST.id, 1)


def seen(state: State | None = None, **changes: Any) -> Seen:
    current = Round(1, state, 900.0, 950.0) if state is not None else None
    found = Seen(
        now=NOW,
        round=current,
        ended=None,
        new_labels=0,
        labels=500,
        aliases={"champion": "policy@base"},
        live=(HOLDS,),
        nonce="n",
        salt="drawn",
        level=0.004,
    )
    return replace(found, **changes)


def changed(found: Seen, config: Config = CONFIG) -> tuple[Round | None, tuple[Any, ...]]:
    move = decide(config, found)
    assert isinstance(move, Change), move
    return move.round, move.effects


def report(decision: GateDecision) -> GateReport:
    return GateReport(V1, "s", NOW, decision, ("why", "and why"), {})


def test_a_round_begins_at_enough_new_labels_or_in_time() -> None:
    assert decide(CONFIG, seen(new_labels=199)) is None
    assert decide(CONFIG, seen(new_labels=200)) == Begin()
    hourly = CONFIG.model_copy(update={"loop": CONFIG.loop.model_copy(update={"every_min": 1.0})})
    assert decide(hourly, seen(new_labels=1)) == Begin(), "no round yet"
    last = Round(3, Ended(Outcome.REJECTED, "no", 950.0), 800.0, 950.0)
    assert decide(hourly, seen(new_labels=1, ended=last)) is None
    assert decide(hourly, seen(new_labels=1, ended=last, now=1011.0)) == Begin()
    assert decide(hourly, seen(new_labels=0, ended=last, now=1011.0)) is None


@pytest.mark.parametrize("off", [{"enabled": False}, {"max_rounds": 3}])
def test_a_loop_that_is_off_or_has_done_its_rounds_begins_none(off: dict[str, Any]) -> None:
    config = CONFIG.model_copy(update={"loop": CONFIG.loop.model_copy(update=off)})
    last = Round(3, Ended(Outcome.PROMOTED, None, 1.0), 0.0, 1.0)
    assert decide(config, seen(new_labels=900, ended=last)) is None
    assert obey(config, seen(ended=last), asks(Act.RUN)) == (Begin(), Done("round 4 begins")), "a person may"


@pytest.mark.parametrize("state", [Sealing(), Training("s"), Judging("s", V1)])
def test_a_stage_with_a_job_starts_it_and_waits(state: State) -> None:
    assert decide(CONFIG, seen(state)) == Start()
    assert decide(CONFIG, seen(state, job=Running())) is None


def test_a_sealed_snapshot_is_trained_on() -> None:
    after, effects = changed(seen(Sealing(), job=manifest("s")))
    assert after is not None and after.state == Training("s")
    assert (after.stage_started_at, after.stage_s) == (NOW, {"snapshot": 50.0})
    assert effects == (KeepSnapshot(manifest("s"), "/tmp/kto/snapshots/s"),)


def test_progress_is_recorded_and_the_round_stays() -> None:
    progress = TrainProgress(3, 9, 0.4, 0.2, None, 150.0, 12.5, 77, 5.0)
    after, (run,) = changed(seen(Training("s"), job=Running(progress)))
    assert after is None and isinstance(run, Run)
    assert (run.run, run.round, run.figures["step"], run.ended_at) == ("round-1", 1, 3, None)


def test_a_trained_adapter_is_recorded_and_wanted() -> None:
    trained = Trained(VERSION, ({"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}), {"steps": 2})
    after, (run, version, alias) = changed(seen(Training("s"), job=trained))
    assert after is not None and after.state == Loading("s", V1)
    assert (run.adapter, run.ended_at, run.figures) == (V1, NOW, {"step": 2, "loss": 0.4, "steps": 2})
    assert version == VERSION and alias == Point("challenger", V1)


def test_the_candidate_is_judged_when_every_live_replica_holds_it() -> None:
    loading = Loading("s", V1)
    nobody, _ = changed(seen(loading, live=()))
    assert nobody is not None and nobody.failure == "no policy replica is live"
    assert decide(CONFIG, seen(loading, live=(HOLDS, EMPTY))) is None
    late, _ = changed(replace(seen(loading, live=(HOLDS, EMPTY)), round=nobody))
    assert late is not None and late.failure is None, "it waits for another one, as any does"
    after, effects = changed(seen(loading))
    assert after is not None and after.state == Judging("s", V1) and effects == ()


def test_a_refused_candidate_ends_its_round() -> None:
    refusing = replace(EMPTY, errors={V1: LoadFault("broken", refused=True)})
    after, effects = changed(seen(Loading("s", V1), live=(HOLDS, refusing)))
    assert after is not None and isinstance(after.state, Ended)
    assert (after.state.outcome, after.state.adapter) == (Outcome.FAILED, V1)
    assert after.state.reason == "load: a replica refused the adapter: broken"
    assert effects == (Point("challenger", None),)


def test_a_candidate_that_cannot_be_loaded_yet_waits_and_says_why_until_its_deadline() -> None:
    away = replace(EMPTY, errors={V1: LoadFault("no route to the bucket", refused=False, tries=3, age_s=9.0)})
    waiting = seen(Loading("s", V1), live=(HOLDS, away))
    after, effects = changed(waiting)
    words = "1 of 2 live replicas do not hold the adapter; r, at each try: no route to the bucket"
    assert after is not None and (after.state, after.attempts, after.failure) == (Loading("s", V1), 0, words)
    assert effects == () and decide(CONFIG, replace(waiting, round=after)) is None, "told once"
    after, _ = changed(seen(Loading("s", V1), live=(HOLDS,)))
    assert after is not None and after.state == Judging("s", V1)
    at_last = 950.0 + CONFIG.adapters.load_s
    for live, told in (((HOLDS, away), words), ((HOLDS, EMPTY), "1 of 2 live"), ((), "no policy replica is live")):
        now = seen(Loading("s", V1), live=live, now=at_last)
        assert now.round is not None
        told_so = decide(CONFIG, replace(now, round=now.round.waits(words)))
        assert told_so is None if live else isinstance(told_so, Change)
        after, effects = changed(seen(Loading("s", V1), live=live, now=at_last + 1))
        assert after is not None and isinstance(after.state, Ended) and after.state.outcome is Outcome.FAILED
        assert after.state.reason is not None and after.state.reason.startswith(f"load: {told}")
        assert after.state.reason.endswith(", after 1800 s (adapters.load_s)")
        assert effects == (Point("challenger", None),)


@pytest.mark.parametrize(
    ("decision", "outcome"),
    [(GateDecision.REJECT, Outcome.REJECTED), (GateDecision.INCONCLUSIVE, Outcome.INCONCLUSIVE)],
)
def test_a_candidate_that_the_gate_does_not_pass_ends_its_round(decision: GateDecision, outcome: Outcome) -> None:
    after, effects = changed(seen(Judging("s", V1), job=report(decision)))
    assert after is not None and after.state == Ended(outcome, "why; and why", NOW, "s", V1)
    assert effects == (report(decision), Point("challenger", None))


def test_the_gate_waits_while_another_answers_for_the_champion() -> None:
    lost = replace(HOLDS, errors={"policy@v0": LoadFault("no such file", refused=False)})
    without = seen(Judging("s", V1), aliases={"champion": "policy@v0"}, live=(lost,))
    after, effects = changed(without)
    words = (
        "another answers for the champion policy@v0: 1 of 1 live replicas do not hold the adapter; r, at each try: no "
        "such file"
    )
    assert after is not None and (after.state, after.attempts, after.failure) == (Judging("s", V1), 0, words)
    assert effects == () and decide(CONFIG, replace(without, round=after)) is None, "told once"
    failed = replace(without, job=Failed("a guard prompt failed", hopeless=False))
    after, _ = changed(failed)
    assert after is not None and (after.attempts, after.failure) == (0, words), "no attempt of the round's"
    assert decide(CONFIG, replace(without, job=Running())) is None
    assert changed(replace(without, job=report(GateDecision.REJECT)))[0] is not None
    back = replace(without, live=(replace(HOLDS, held=("policy@v0", V1)),))
    assert decide(CONFIG, back) == Start()
    after, _ = changed(replace(without, round=Round(1, Judging("s", V1), 0.0, 0.0, failure=words), now=7 * 3600.0))
    assert after is not None and isinstance(after.state, Ended) and after.state.outcome is Outcome.FAILED
    assert after.state.reason == f"gate: not done within 6 hours (loop.gate_hours): {words}"


def test_a_candidate_that_passes_is_tested_on_users() -> None:
    after, (kept, test) = changed(seen(Judging("s", V1), job=report(GateDecision.PROMOTE_TO_CANARY)))
    assert after is not None and after.state == OnTrial("s", V1, "rollout-1-n")
    assert kept.decision is GateDecision.PROMOTE_TO_CANARY
    assert (test.id, test.champion, test.challenger, test.stage) == ("rollout-1-n", "policy@base", V1, 0)
    assert (test.level, test.rules) == (0.004, CONFIG.rollout.model_dump(mode="json", exclude={"staff"}))
    assert test.salt == "drawn", "of its own, so that no other test and no name tells the arms"


def standing(champion: tuple[int, int] = (0, 0), challenger: tuple[int, int] = (0, 0), silent: int = 0) -> Standing:
    """(users, ups) of each arm, one after the other, and so many more of each who said nothing."""
    trials = [Settled(arm, float(i < up)) for arm, (n, up) in ((False, champion), (True, challenger)) for i in range(n)]
    one, other = (Exposed(n + silent, n + silent, observed=n + silent) for n, _ in (champion, challenger))
    return Standing(TEST.id, 1, one, other, tuple(sorted(trials, key=lambda one: hash((one.outcome, one.challenger)))))


def in_test(stands: Standing = NOTHING, state: RolloutState = TEST, **changes: Any) -> Seen:
    return seen(OnTrial("s", V1, TEST.id), trial=Trial(state, stands, changes.pop("last", None)), **changes)


def test_a_look_is_recorded_only_where_it_saw_something_new() -> None:
    arms = standing((3, 1), (2, 2))
    after, (look,) = changed(in_test(arms))
    assert after is None and isinstance(look, Look)
    assert (look.n_champion, look.up_champion, look.n_challenger, look.up_challenger) == (3, 1.0, 2, 2.0)
    assert decide(CONFIG, in_test(arms, last=look)) is None
    assert isinstance(decide(CONFIG, in_test(standing((3, 1), (2, 2), silent=9), last=look)), Change)


def test_a_better_challenger_becomes_champion_when_all_hold_it() -> None:
    arms = standing((120, 12), (120, 108), silent=400)
    after, (look, waits) = changed(in_test(arms, live=(HOLDS, EMPTY)))
    assert after is None and waits.live, "a replica is just starting"
    after, (state, *aliases, _) = changed(in_test(arms, last=look))
    assert after is not None and isinstance(after.state, Ended) and after.state.outcome is Outcome.PROMOTED
    assert state.status is RolloutStatus.PROMOTED
    assert aliases == [Point("previous", "policy@base"), Point("champion", V1), Point("challenger", None)]


def test_a_promotion_waits_for_replicas_in_words_and_not_for_ever() -> None:
    found = in_test(standing((120, 12), (120, 108), silent=400), live=(HOLDS, EMPTY))
    _, (look, waits) = changed(found)
    assert waits == replace(TEST, reason="waits to be promoted, for 1 of 2 live replicas do not hold the adapter")
    known = replace(found, trial=Trial(waits, found.trial.standing, look))  # type: ignore[union-attr]
    assert decide(CONFIG, known) is None, "told once"
    end = TEST.stage_started_at + CONFIG.rollout.max_hours * 3600 + CONFIG.adapters.load_s
    assert decide(CONFIG, replace(known, now=end - 1)) is None
    after, (state, *points) = changed(replace(known, now=end))
    assert after is not None and isinstance(after.state, Ended) and after.state.outcome is Outcome.ABORTED
    words = "not promoted within 336 hours (max_hours) and 1800 s (adapters.load_s), for 1 of 2 live replicas do not"
    assert state.reason.startswith(words) and "the challenger is better" in state.reason
    assert points == [Point("challenger", None)]
    after, _ = changed(replace(known, now=end, live=(HOLDS,)))
    assert after is not None and isinstance(after.state, Ended) and after.state.outcome is Outcome.PROMOTED


def test_what_waits_no_longer_says_so_no_longer() -> None:
    waits = replace(TEST, reason="waits to be promoted, for 1 of 2 live replicas do not hold the adapter")
    move = decide(CONFIG, in_test(standing((3, 1), (2, 2)), waits))
    assert isinstance(move, Change) and move.effects[-1] == TEST and move.words == f"rollout {TEST.id} goes on"


def test_a_paused_test_ends_its_round_when_nobody_resumes_it() -> None:
    paused = replace(TEST, status=RolloutStatus.PAUSED, reason="paused by an operator", status_at=NOW - 168 * 3600)
    look = changed(in_test(state=paused, now=NOW - 1))[1][0]
    assert decide(CONFIG, in_test(state=paused, now=NOW - 1, last=look)) is None
    after, effects = changed(in_test(state=paused, last=look))
    assert after is not None and isinstance(after.state, Ended) and after.state.outcome is Outcome.ABORTED
    assert after.state.reason == "nobody resumed it within 168 hours (max_paused_hours): paused by an operator"
    assert effects[-1] == Point("challenger", None)


def test_a_worse_challenger_goes() -> None:
    after, effects = changed(in_test(standing((60, 54), (60, 6))))
    assert after is not None and isinstance(after.state, Ended) and after.state.outcome is Outcome.ABORTED
    assert effects[-1] == Point("challenger", None)
    assert not any(isinstance(effect, Point) and effect.alias == "champion" for effect in effects)


def watched(champion: str = V1, held: str = "policy@base", days: float = 1.0, **changes: Any) -> Trial:
    begun = holdback.start(CONFIG.rollout, champion, held, "holdback-1", "salt", NOW - days * 86_400)
    assert begun is not None
    return Trial(replace(begun, **changes), Standing("holdback-1", 0), None)


ALARM = {**asdict(Watch()), "log_stakes": [9.0] * 4, "folded": 0, "at": NOW - 86_400}


def test_a_promotion_holds_some_users_back_instead_of_those_of_the_one_before() -> None:
    promoted = replace(TEST, status=RolloutStatus.PROMOTED, rules=CONFIG.rollout.model_dump(mode="json"))
    older = watched("policy@base", "policy@v0", days=0.5)
    _, effects = changed(in_test(state=promoted, holdback=older))
    before, begun = (effect for effect in effects if isinstance(effect, RolloutState) and effect.kind != "test")
    assert (before.id, before.status) == ("holdback-1", RolloutStatus.ABORTED)
    assert (begun.id, begun.champion, begun.challenger) == ("holdback-1-n", V1, "policy@base")
    assert (begun.weight, begun.salt, begun.live) == (0.1, "drawn", True)
    aborted = replace(TEST, status=RolloutStatus.ABORTED)
    assert not any(isinstance(e, RolloutState) and e.kind != "test" for e in changed(in_test(state=aborted))[1])


def test_a_holdback_is_looked_at_once_a_day() -> None:
    now = {"champion": V1, "previous": "policy@base"}
    assert decide(CONFIG, seen(aliases=now, holdback=watched(days=0.9))) is None
    after, (look, state) = changed(seen(aliases=now, holdback=watched()))
    assert after is None and look.rollout == "holdback-1" and state.live and state.watch["at"] == NOW


def test_no_holdback_is_drawn_anew_or_begins_within_a_test() -> None:
    now, week = {"champion": V1, "previous": "policy@base"}, watched(days=7.5)
    waits = replace(TEST, weight=0.0)
    for test, draws in ((TEST, 0), (replace(TEST, status=RolloutStatus.PAUSED), 0), (waits, 1)):
        going = Trial(test, NOTHING, None)
        _, (_, state) = changed(seen(aliases=now, holdback=week, trial=going))
        assert state.stage == draws and state.watch["at"] == NOW, test
        told = decide(MEASURED, seen(aliases=now, base=on_base(WEEK + 1), trial=going))
        begun = decide(MEASURED, seen(aliases=now, trial=going))
        assert (told is not None, begun is not None) == (bool(draws), bool(draws)), test


def test_its_alarm_brings_the_previous_champion_back_and_ends_the_test_against_the_other() -> None:
    now = {"champion": V1, "previous": "policy@base"}
    alarmed = watched(watch=ALARM)
    after, (_, state, *points) = changed(seen(aliases=now, holdback=alarmed))
    assert after is None and state.status is RolloutStatus.PROMOTED and "is better after all" in state.reason
    assert points == [Point("previous", V1), Point("champion", "policy@base")]
    _, effects = changed(in_test(aliases=now, holdback=alarmed))
    assert isinstance(effects[-1], RolloutState) and effects[-1].status is RolloutStatus.ABORTED


def test_an_alarm_waits_in_words_until_every_replica_holds_the_previous_champion() -> None:
    now, fault = {"champion": V1, "previous": "policy@v0"}, LoadFault("its hash is another", refused=True)
    broken = replace(HOLDS, replica="broken", errors={"policy@v0": fault})
    found = seen(aliases=now, holdback=watched(held="policy@v0", watch=ALARM), live=(broken,))
    move = decide(CONFIG, found)
    assert isinstance(move, Change) and move.failed and found.holdback is not None
    [told] = move.effects
    assert isinstance(told, RolloutState) and told.live and told.reason is not None
    assert "is better after all" in told.reason and "broken, at each try: its hash is another" in told.reason
    waiting = replace(found.holdback, state=told)
    assert decide(CONFIG, replace(found, holdback=waiting)) is None, "told once"
    liked = tuple(Settled(False, 1.0) for _ in range(500)) + tuple(Settled(True, 0.0) for _ in range(50))
    doubted = replace(waiting, standing=Standing("holdback-1", 0, trials=liked))
    assert decide(CONFIG, replace(found, holdback=doubted)) is None, "what settles meanwhile does not take it back"
    _, (_, state, *points) = changed(replace(found, holdback=doubted, live=(replace(HOLDS, held=("policy@v0", V1)),)))
    assert state.status is RolloutStatus.PROMOTED and points[-1] == Point("champion", "policy@v0")


def test_a_holdback_ends_where_the_config_has_come_to_want_none() -> None:
    off = CONFIG.model_copy(update={"rollout": CONFIG.rollout.model_copy(update={"holdback": 0.0})})
    after, (ended,) = changed(seen(aliases={"champion": V1}, holdback=watched(days=0.1)), off)
    assert after is None and ended.status is RolloutStatus.ABORTED and "rollout.holdback is 0" in ended.reason


def test_a_challenger_that_a_replica_refuses_ends_its_test_and_one_that_it_lacks_is_told() -> None:
    fault = LoadFault("its signature is of another key", refused=True)
    refusing = replace(EMPTY, errors={V1: fault})
    after, (ended, *_) = changed(in_test(live=(HOLDS, refusing)))
    assert after is not None and ended.reason == f"a replica refused the challenger: {fault.reason}"
    late = replace(EMPTY, replica="late", errors={V1: replace(fault, refused=False)})
    _, effects = changed(in_test(live=(HOLDS, late)))
    assert "counts nobody meanwhile: 1 of 2 live replicas" in str(effects[-1].reason)
    over = replace(TEST, started_at=-2e6, stage_started_at=-2e6)
    _, effects = changed(in_test(state=over, live=(HOLDS, late)))
    [test] = [effect for effect in effects if isinstance(effect, RolloutState)]
    assert not test.live and str(test.reason).endswith(f"late, at each try: {fault.reason}")


def test_a_holdback_ends_with_its_champion() -> None:
    after, (state,) = changed(seen(aliases={"champion": "policy@base"}, holdback=watched(days=0.1)))
    assert after is None and state.status is RolloutStatus.ABORTED and state.reason == "the champion is policy@base"


WEEK = 7 * 86_400.0


def on_base(age_s: float, trials: tuple[Settled, ...] = (), **changes: Any) -> Trial:
    begun = base.start(MEASURED.rollout, "policy@base", "base-1", "salt", NOW - age_s)
    assert begun is not None
    return Trial(replace(begun, **changes), Standing("base-1", 0, trials=trials), None)


def test_the_first_promotion_keeps_some_users_on_the_base_for_ever() -> None:
    promoted = replace(TEST, status=RolloutStatus.PROMOTED, rules=None)
    _, effects = changed(in_test(state=promoted), MEASURED)
    back, begun = (e for e in effects if isinstance(e, RolloutState) and e.kind != "test")
    assert (begun.id, begun.kind, begun.champion, begun.challenger, begun.weight) == (
        "base-n",
        "base",
        "policy@champion",
        "policy@base",
        0.01,
    )
    assert begun.salt != back.salt, "or those on the base would be of those held back"
    _, effects = changed(in_test(state=promoted, base=on_base(1.0)), MEASURED)
    assert [e.kind for e in effects if isinstance(e, RolloutState)] == ["test", "holdback"], "it goes on"


def test_the_base_is_measured_as_soon_as_the_rules_want_it_and_another_is_champion() -> None:
    theirs = {"champion": V1}
    assert decide(CONFIG, seen(aliases=theirs)) is None and decide(MEASURED, seen()) is None
    _, (begun,) = changed(seen(aliases=theirs), MEASURED)
    assert begun.kind == "base" and begun.live
    assert decide(MEASURED, seen(aliases=theirs, base=on_base(1.0))) is None
    after, (ended,) = changed(seen(aliases=theirs, base=on_base(1.0)), CONFIG)
    assert after is None and ended.status is RolloutStatus.ABORTED and "base_holdback is 0" in ended.reason


def test_a_week_on_the_base_is_taken_in_whoever_was_champion_and_decides_nothing() -> None:
    said = (Settled(False, 1.0), Settled(False, 0.5), Settled(True, 0.0))
    found = seen(aliases={"champion": "policy@v9"}, base=on_base(WEEK, said))
    assert decide(MEASURED, replace(found, now=NOW - 1)) is None
    after, (state,) = changed(found, MEASURED)
    assert after is None and (state.stage, state.salt, state.weight, state.live) == (1, "drawn", 0.01, True)
    sums = base.sums_of(state)
    assert (sums.strata, sums.one, sums.other, sums.mean) == (1, 2, 1, 0.75)


BLIND = Votes(users=130, rate=0.6, days=13.0)


def test_a_test_that_could_not_show_a_gain_asks_before_it_begins() -> None:
    passed = seen(Judging("s", V1), job=report(GateDecision.PROMOTE_TO_CANARY), votes=BLIND)
    after, (_, test) = changed(passed)
    assert after is not None and after.state == OnTrial("s", V1, "rollout-1-n")
    assert (test.status, test.weight, test.status_at) == (RolloutStatus.PAUSED, 0.0, NOW)
    words = r"asks for resume or abort before it begins: it could at best show no gain at all in the 13.0 days"
    assert re.match(words, test.reason) and "at the present 10.0 voters a day" in test.reason
    assert (
        "`kto-ray rollout resume` begins it anyway" in test.reason and "rollout.max_detectable none asks" in test.reason
    )
    begins = changed(replace(passed, votes=replace(BLIND, users=13_000)))[1][1]
    assert (begins.status, begins.weight) == (RolloutStatus.RUNNING, 0.1)
    likewise = changed(replace(passed, accepted=test.watch["detectable"]))[1][1]
    assert (likewise.status, likewise.watch) == (RolloutStatus.RUNNING, None), "a person let one like it begin"
    never = CONFIG.model_copy(update={"rollout": CONFIG.rollout.model_copy(update={"max_detectable": 1.0})})
    assert changed(replace(passed, votes=replace(BLIND, users=0)), never)[1][1].status is RolloutStatus.RUNNING


def test_a_test_that_asked_begins_when_it_is_resumed_and_else_ends_having_risked_nothing() -> None:
    passed = seen(Judging("s", V1), job=report(GateDecision.PROMOTE_TO_CANARY), votes=BLIND)
    test = changed(passed)[1][1]
    state, nobody = OnTrial("s", V1, test.id), Standing(test.id, 0)
    waits = seen(state, trial=Trial(test, nobody, None), now=NOW + 168 * 3600 - 1)
    assert decide(CONFIG, replace(waits, new_labels=9999)) is None, "nothing is looked at, nor trained meanwhile"
    move, answer = obey(CONFIG, waits, Request(1, Act.RESUME, test.id))
    assert isinstance(move, Change) and isinstance(answer, Done)
    (begun,) = move.effects
    assert isinstance(begun, RolloutState) and begun.status is RolloutStatus.RUNNING
    assert (begun.weight, begun.stage_started_at, begun.level) == (0.1, waits.now, 0.004)
    after, (ended, *_) = changed(replace(waits, now=waits.now + 1))
    assert after is not None and isinstance(after.state, Ended) and after.state.outcome is Outcome.ABORTED
    assert ended.level == 0 and ended.reason.startswith("nobody resumed it within 168 hours (max_paused_hours): asks")


def test_a_test_whose_stages_were_changed_goes_on_under_those_that_it_began_with() -> None:
    stages = [RolloutStage(name=n, weight=w, exposed=5) for n, w in (("a", 0.1), ("b", 0.3))]
    began = RolloutSection(stages=(*stages, RolloutStage(name="c", weight=0.4, decides=True)))
    first = machine.start(began, "policy@base", V1, TEST.id, "salt", 0.005, NOW - 60)
    enough = Standing(TEST.id, 0, Exposed(50, 50), Exposed(5, 5))
    _, (_, second) = changed(in_test(enough, first))  # the config has a canary and an A/B of its own
    assert (second.stage, second.weight) == (1, 0.3)
    _, (_, third) = changed(in_test(replace(enough, stage=1), second))
    assert (third.stage, third.weight) == (2, 0.4)


def test_what_an_operator_ended_is_settled() -> None:
    promoted = replace(TEST, status=RolloutStatus.PROMOTED, reason="promoted by an operator")
    after, effects = changed(in_test(NOTHING, promoted))
    assert after is not None and after.state == Ended(
        Outcome.PROMOTED, "promoted by an operator", NOW, "s", V1, TEST.id
    )
    assert Point("champion", V1) in effects


def test_a_failure_is_tried_again_and_then_given_up() -> None:
    failed = Failed("RuntimeError: lost", hopeless=False)
    after, effects = changed(seen(Sealing(), job=failed))
    assert after is not None and (after.attempts, after.failure, after.stage) == (1, "RuntimeError: lost", "snapshot")
    assert effects == ()
    third = replace(after, attempts=CONFIG.loop.max_attempts - 1)
    after, effects = changed(replace(seen(job=failed), round=third))
    assert after is not None and isinstance(after.state, Ended) and after.state.outcome is Outcome.FAILED
    assert after.state.reason == "snapshot: RuntimeError: lost" and effects == (Point("challenger", None),)


def test_what_is_hopeless_is_not_tried_again() -> None:
    after, _ = changed(seen(Training("s"), job=Failed("ValueError: one class", hopeless=True)))
    assert after is not None and isinstance(after.state, Ended) and after.state.snapshot == "s"


def test_what_did_not_reach_its_storage_waits_and_counts_no_attempt() -> None:
    failed = Failed("StorageAway: gone", hopeless=False, away=True)
    found = seen(Training("s"), job=failed)
    assert found.round is not None
    third = replace(found.round, attempts=CONFIG.loop.max_attempts - 1)
    after, effects = changed(replace(found, round=third))
    assert after is not None and (after.attempts, after.failure) == (third.attempts, "StorageAway: gone")
    assert after.in_progress and effects == ()
    assert isinstance(decide(CONFIG, seen(Training("s"))), Start), "and begins again"


# ---- operators


def asks(act: Act, target: str | None = None) -> Request:
    return Request(1, act, target)


def refused(found: Seen, act: Act, config: Config = CONFIG, target: str | None = None) -> str:
    move, answer = obey(config, found, asks(act, target))
    assert move is None and isinstance(answer, Refused)
    return answer.words


def test_a_round_is_run_now_unless_there_is_a_reason() -> None:
    assert obey(CONFIG, seen(), asks(Act.RUN)) == (Begin(), Done("round 1 begins"))
    assert refused(seen(Sealing()), Act.RUN).startswith("one round at a time; round 1 is in stage snapshot: ")
    assert refused(seen(labels=0), Act.RUN) == "there is no feedback to learn from"
    dora = CONFIG.model_copy(update={"kto": CONFIG.kto.model_copy(update={"dora": True})})
    assert "DoRA" in refused(seen(), Act.RUN, dora)


@pytest.mark.parametrize("act", [Act.PROMOTE, Act.ABORT, Act.PAUSE, Act.RESUME])
def test_there_must_be_a_rollout_to_steer(act: Act) -> None:
    words = f"there is no rollout to {act}; no round is in progress: kto-ray loop run (POST /v1/loop/run) begins one"
    assert refused(seen(), act) == words
    ended = Trial(replace(TEST, status=RolloutStatus.ABORTED), NOTHING, None)
    assert refused(seen(trial=ended), act) == words


ENDS = "kto-ray loop abort (POST /v1/loop/abort) ends it"


@pytest.mark.parametrize("target", [None, NONE])
def test_whoever_acts_at_the_wrong_stage_learns_where_the_round_stands_and_what_acts_there(target: str | None) -> None:
    for state in (Sealing(), Training("s"), Loading("s", V1), Judging("s", V1)):
        for act in (Act.PROMOTE, Act.APPROVE):
            told = refused(seen(state), act, target=target)
            assert told.endswith(f"; round 1 is in stage {state.stage}: {ENDS}")
    told = refused(seen(Awaiting("s", V1)), Act.ABORT, target=target)
    acts = "kto-ray rollout approve and reject act on its candidate"
    assert told.endswith(f"; round 1 is in stage approval: {acts}, {ENDS}")
    told = refused(in_test(), Act.APPROVE, target=target)
    acts = f"kto-ray rollout promote, abort, pause and resume act on rollout {TEST.id}"
    assert told.endswith(f"; round 1 is in stage rollout: {acts}, {ENDS}")
    assert refused(replace(in_test(), round=None), Act.REJECT, target=target).endswith(f"; {acts}")


def test_a_rollout_is_steered() -> None:
    none = NOTHING
    move, answer = obey(CONFIG, in_test(none), asks(Act.PAUSE))
    assert answer == Done(f"rollout {TEST.id} is paused")
    assert isinstance(move, Change) and move.effects[0].status is RolloutStatus.PAUSED  # type: ignore[union-attr]
    assert "not every live replica holds" in refused(in_test(none, live=(EMPTY,)), Act.PROMOTE)
    assert "resume" in refused(in_test(none), Act.RESUME)


def test_the_previous_champion_comes_back_once_however_often_it_is_asked() -> None:
    now = {"champion": V1, "previous": "policy@base"}
    move, answer = obey(CONFIG, seen(aliases=now, live=(EMPTY,)), asks(Act.ROLLBACK, V1))
    assert answer == Done("champion is policy@base again")
    assert move == Change(None, (Point("previous", V1), Point("champion", "policy@base")))
    after = {"champion": "policy@base", "previous": V1}
    again = refused(seen(aliases=after), Act.ROLLBACK, target=V1)
    assert again == f"{V1} is not the champion: policy@base is"
    assert "names the champion to leave" in refused(seen(aliases=now), Act.ROLLBACK)
    assert refused(seen(), Act.ROLLBACK, target="policy@base") == "there is no previous champion"
    held = {"champion": "policy@v2", "previous": V1}
    lacking = refused(seen(aliases=held, live=(EMPTY,)), Act.ROLLBACK, target="policy@v2")
    assert lacking == f"not every live replica holds {V1} yet"
    assert "abort it first" in refused(in_test(), Act.ROLLBACK, target="policy@base")


def test_a_rollback_does_not_bring_back_who_was_left() -> None:
    left = seen(aliases={"champion": V1, "previous": "policy@v2"}, was_left=True)
    move, answer = obey(CONFIG, left, asks(Act.ROLLBACK, V1))
    assert move == Change(None, (Point("previous", V1), Point("champion", "policy@base")))
    assert answer == Done("champion is the base model, for the previous one, policy@v2, was itself left")
    base_model = seen(aliases={"champion": "policy@base", "previous": V1}, was_left=True)
    assert "nothing came before it" in refused(base_model, Act.ROLLBACK, target="policy@base")
    holds_both = replace(HOLDS, held=("policy@v2", V1))
    _, effects, _ = forgotten(replace(left, live=(holds_both,), tainted=frozenset({V1})), "retire")
    assert effects == (Point("champion", "policy@base"), Point("previous", None))


@pytest.mark.parametrize("act", [Act.PROMOTE, Act.ABORT, Act.PAUSE])
def test_an_act_is_done_only_on_the_rollout_that_it_means(act: Act) -> None:
    words = refused(in_test(), act, target="rollout-0-x")
    assert words == f"{act} is meant for rollout rollout-0-x; the one in progress is {TEST.id}"
    assert isinstance(obey(CONFIG, in_test(), asks(act, TEST.id))[1], Done)


@pytest.mark.parametrize("act", list(Act))
def test_what_has_expired_is_not_done_any_more(act: Act) -> None:
    move, answer = obey(CONFIG, in_test(), Request(1, act, TEST.id, expired=True))
    assert move is None and isinstance(answer, Refused) and "expired" in answer.words


def test_what_only_a_newer_program_knows_is_refused_in_words() -> None:
    assert obey(CONFIG, seen(), Request(1, "dance")) == (None, Refused("this version of kto_ray does not know 'dance'"))


@pytest.mark.parametrize("state", [Sealing(), Training("s"), Loading("s", V1), Judging("s", V1)])
def test_an_operator_ends_a_round_in_any_stage(state: State) -> None:
    move, answer = obey(CONFIG, seen(state), asks(Act.END))
    assert isinstance(move, Change) and move.round is not None and isinstance(move.round.state, Ended)
    assert move.round.state.outcome is Outcome.ABORTED and move.effects == (Point("challenger", None),)
    assert answer == Done(f"round 1 ended by an operator in stage {state.stage}")
    assert "the one in progress is 1" in refused(seen(state), Act.END, target="7")


def test_an_ended_round_takes_its_test_along() -> None:
    move, _ = obey(CONFIG, in_test(), asks(Act.END, "1"))
    assert isinstance(move, Change) and isinstance(move.effects[0], RolloutState)
    assert move.effects[0].status is RolloutStatus.ABORTED
    assert refused(seen(), Act.END) == "there is no round in progress"


@pytest.mark.parametrize(("state", "hours"), [(Sealing(), 6), (Training("s"), 72), (Judging("s", V1), 6)])
def test_every_stage_has_a_deadline_and_its_reason(state: State, hours: int) -> None:
    began = NOW - 3600 * hours
    late = replace(seen(state), round=Round(1, state, began, began))
    assert not isinstance(decide(CONFIG, replace(late, now=NOW - 1)), Change)
    after, effects = changed(late)
    assert after is not None and isinstance(after.state, Ended) and after.state.outcome is Outcome.FAILED
    wanted = f"{state.stage}: not done within {hours} hours (loop.{state.stage}_hours): its job did not end"
    assert after.state.reason == wanted and effects == (Point("challenger", None),)


def test_a_stage_that_is_late_ends_with_what_stood_in_its_way_but_takes_what_has_just_come() -> None:
    waits = replace(Round(1, Training("s"), 0.0, NOW - 72 * 3600), failure="StorageAway: gone")
    after, _ = changed(replace(seen(), round=waits, job=Failed("StorageAway: gone", hopeless=False, away=True)))
    assert after is not None and isinstance(after.state, Ended) and "StorageAway: gone" in str(after.state.reason)
    after, _ = changed(replace(seen(), round=waits, job=Trained(VERSION, ({"step": 1, "loss": 0.5},), {"steps": 1})))
    assert after is not None and after.stage == "load"


# ---- erasures

ERASED = "what it learns from was erased"


def forgotten(found: Seen, after: str = "list") -> tuple[Round | None, tuple[Any, ...], str]:
    config = Config.model_validate({"home": "/tmp/kto", "retention": {"after_erasure": after}})
    move, answer = obey(config, found, asks(Act.FORGET))
    assert isinstance(answer, Done)
    return (None, (), answer.words) if move is None else (move.round, move.effects, answer.words)  # type: ignore[union-attr]


@pytest.mark.parametrize("state", [Training("s"), Loading("s", V1), Judging("s", V1)])
def test_a_round_ends_whose_snapshot_is_gone_before_users_meet_its_candidate(state: State) -> None:
    after, effects, words = forgotten(seen(state, tainted=frozenset({"s", V1})))
    assert after is not None and isinstance(after.state, Ended)
    assert (after.state.outcome, after.state.reason) == (Outcome.ABORTED, ERASED)
    assert effects == (Point("challenger", None),) and words == "round 1 ends; challenger is nobody"
    assert forgotten(seen(state, tainted=frozenset({"another"}))) == (
        None,
        (),
        "nothing in progress or in service learnt from what was erased",
    )


def test_a_test_goes_on_unless_what_learnt_from_erased_rows_is_to_retire() -> None:
    testing = in_test(NOTHING, tainted=frozenset({"s", V1}))
    assert forgotten(testing)[:2] == (None, ())
    after, (test, point), _ = forgotten(testing, "retire")
    assert (after, point) == (None, Point("challenger", None))
    assert (test.status, test.reason) == (RolloutStatus.ABORTED, ERASED)


@pytest.mark.parametrize("retired", [V1, "policy@v2"])
def test_a_holdback_ends_of_which_an_arm_is_to_retire(retired: str) -> None:
    """Else it would go on of nobody, once the replicas let the adapter go."""
    back = holdback.start(CONFIG.rollout, "policy@v2", V1, "holdback-1", "salt", 1.0)
    assert back is not None
    found = seen(aliases={"champion": "policy@v2", "previous": V1}, holdback=Trial(back, NOTHING, None))
    _, effects, words = forgotten(replace(found, tainted=frozenset({retired})), "retire")
    [ended] = [effect for effect in effects if isinstance(effect, RolloutState)]
    assert (ended.id, ended.status, ended.reason, ended.ended_at) == (back.id, RolloutStatus.ABORTED, ERASED, NOW)
    assert words.startswith("rollout holdback-1 ends; ")
    assert forgotten(replace(found, tainted=frozenset({retired})), "list")[1] == ()
    other = forgotten(replace(found, tainted=frozenset({"policy@v9"})), "retire")
    assert other == (None, (), "nothing in progress or in service learnt from what was erased")


def test_sealing_begins_anew_by_itself() -> None:
    assert forgotten(seen(Sealing(), tainted=frozenset({"s"})), "retire")[:2] == (None, ())


@pytest.mark.parametrize(
    ("aliases", "live", "points"),
    [
        ({"champion": V1}, (HOLDS,), [("champion", "policy@base"), ("previous", None)]),
        ({"champion": V1, "previous": "policy@v0"}, (HOLDS,), [("champion", "policy@base"), ("previous", None)]),
        (
            {"champion": V1, "previous": "policy@v0"},
            (replace(HOLDS, held=(V1, "policy@v0")),),
            [("champion", "policy@v0"), ("previous", None)],
        ),
        ({"champion": "policy@v2", "previous": V1}, (HOLDS,), [("previous", None)]),
        ({"champion": V1, "previous": "policy@tainted"}, (HOLDS,), [("champion", "policy@base"), ("previous", None)]),
        ({"champion": "policy@base"}, (HOLDS,), []),
    ],
)
def test_an_alias_leaves_what_learnt_from_erased_rows(
    aliases: dict[str, str], live: tuple[ReplicaReport, ...], points: list[tuple[str, str | None]]
) -> None:
    found = seen(aliases=aliases, live=live, tainted=frozenset({V1, "policy@tainted"}))
    assert forgotten(found, "retire")[1] == tuple(Point(*point) for point in points)
    assert forgotten(found, "retrain")[1] == ()
