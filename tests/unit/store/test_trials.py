"""A test's trials: one a user who got an answer, settled once, with what then stood."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from dataclasses import replace

import pytest
import sqlalchemy as sa

from kto_ray.config.deciding import RolloutSection
from kto_ray.records.completions import Arm
from kto_ray.records.feedback import FeedbackKind
from kto_ray.records.requests import Act
from kto_ray.records.rollouts import RolloutKind, RolloutState, RolloutStatus
from kto_ray.records.trials import Exposed, Settled, Standing
from kto_ray.records.users import unit_interval
from kto_ray.rollout import machine
from kto_ray.store import Store, completions, feedback, rollouts, trials
from kto_ray.store.schema import voters
from kto_ray.store.trials import Rules
from tests.support.rows import completion, thumb

STAGE = RolloutState("r", "policy@base", "policy@v1-aaaaaa", "salt", 0, 0.5, RolloutStatus.RUNNING, 1.0, 1.0)
DAY = 86_400.0
RULES = Rules(settle_s=DAY, new_users=True, slow_s=10.0)


def drawn(challenger: bool, weight: float = 0.5) -> Iterable[str]:
    """Users whom the salt draws to an arm."""
    return (f"u{i}" for i in range(10_000) if (unit_interval(STAGE.salt, f"u{i}") < weight) is challenger)


ANN, ART, AMY = (name for name, _ in zip(drawn(challenger=True), range(3), strict=False))
BOB, BEN = (name for name, _ in zip(drawn(challenger=False), range(2), strict=False))


def asked(tx: sa.Connection, name: str, user: str | None, at: float = 100.0, **changes: object) -> None:
    mine = user is not None and unit_interval(STAGE.salt, user) < STAGE.weight
    arm = Arm.CHALLENGER if mine else Arm.CHAMPION
    row = completion(name, user=user, arm=arm, rollout="r", created_at=at)
    completions.insert(tx, replace(row, **changes))  # type: ignore[arg-type]


def judged(tx: sa.Connection, name: str, user: str, value: bool, of: str = "") -> None:
    feedback.record(tx, thumb(f"f-{of}{name}", name, value=value, user=user))


def told(store: Store, now: float, rules: Rules = RULES, state: RolloutState = STAGE) -> Standing:
    with store.write() as tx:
        trials.advance(tx, state, rules, now)
    with store.read() as tx:
        assert not trials.due(tx, state, now)
        return trials.standing(tx, state)


def test_a_trial_is_settled_a_day_after_the_first_answer_with_what_stands_then_and_stays(store: Store) -> None:
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        for name, user in (("a1", ANN), ("a2", ANN), ("b1", BOB), ("b2", BOB), ("c1", ART), ("d1", BEN)):
            asked(tx, name, user)
        judged(tx, "a1", ANN, True)
        judged(tx, "b1", BOB, True)
        judged(tx, "b2", BOB, True)
    early = told(store, 100.0 + DAY - 1)
    assert early.trials == () and early.waiting == 2
    assert (early.champion.users, early.challenger.users) == (2, 2), "silence is exposed too"
    with store.write() as tx:
        judged(tx, "a1", ANN, False, of="again")
        judged(tx, "a2", ANN, True)
        feedback.withdraw(tx, "f-b1", 300.0)
    then = told(store, 100.0 + DAY)
    assert sorted(then.trials, key=repr) == [Settled(False, 1.0), Settled(True, 0.5)], (
        "the last standing acts, averaged"
    )
    with store.write() as tx:
        for name in ("f-againa1", "f-a2", "f-b2"):
            feedback.withdraw(tx, name, 400.0)
    after = told(store, 100.0 + 3 * DAY)
    assert after.trials == then.trials, "what is settled stays"


def test_who_judges_after_their_time_has_no_trial(store: Store) -> None:
    """Or the arm that is slower to judge would have trials of later days."""
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        for name, user in (("a1", ANN), ("b1", ART), ("c1", BOB)):
            asked(tx, name, user)
        judged(tx, "a1", ANN, True)
    assert told(store, 100.0 + DAY - 1).waiting == 1
    with store.write() as tx:
        feedback.record(tx, thumb("late", "b1", user=ART, created_at=101.0 + DAY))
        feedback.record(tx, thumb("in-time", "c1", user=BOB, created_at=100.0 + DAY))
    found = told(store, 102.0 + DAY)
    assert sorted(found.trials, key=repr) == [Settled(False, 1.0), Settled(True, 1.0)] and found.waiting == 0
    at_once = replace(STAGE, id="r", stage=1)
    with store.write() as tx:
        rollouts.put(tx, at_once)
        asked(tx, "d1", AMY)
        feedback.record(tx, thumb("later", "d1", user=AMY, created_at=5 * DAY))
    assert told(store, 6 * DAY, replace(RULES, settle_s=0.0), at_once).trials == (Settled(True, 1.0),), "at once"


@pytest.mark.parametrize("away_s", [0.0, 10 * DAY])
def test_a_trial_comes_to_what_stood_when_it_was_due_however_late_it_is_settled(store: Store, away_s: float) -> None:
    """Where the controller was away, what is turned, withdrawn or edited meanwhile is too late."""
    due = 100.0 + DAY
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        for name, user in (("a1", ANN), ("a2", ANN), ("b1", ART), ("c1", AMY), ("d1", BOB)):
            asked(tx, name, user)
        for name, user in (("a1", ANN), ("a2", ANN), ("b1", ART), ("c1", AMY), ("d1", BOB)):
            judged(tx, name, user, True)
        feedback.withdraw(tx, "f-d1", due - 1)
    if not away_s:
        told(store, due)
    with store.write() as tx:
        feedback.record(tx, thumb("turned", "a1", value=False, user=ANN, created_at=due + 1))
        feedback.withdraw(tx, "f-b1", due + 1)
        edited = thumb("edited", "c1", value=None, kind=FeedbackKind.EDIT, text="Better.", user=AMY)
        feedback.record(tx, replace(edited, created_at=due + 1))
    found = told(store, due + away_s)
    assert found.trials == (Settled(True, 1.0),) * 3 and found.waiting == 0


def test_who_withdraws_all_before_has_no_trial_and_may_have_one_later(store: Store) -> None:
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        asked(tx, "a1", ANN)
        judged(tx, "a1", ANN, True)
        feedback.withdraw(tx, "f-a1", 200.0)
    assert told(store, 2 * DAY).trials == ()
    with store.write() as tx:
        judged(tx, "a1", ANN, False, of="again")
    assert told(store, 2 * DAY).trials == (Settled(True, 0.0),)


def test_only_users_seen_before_the_test_count_unless_the_rules_say_so(store: Store) -> None:
    with store.write() as tx:
        completions.insert(tx, completion("old", user=ANN))
        rollouts.put(tx, STAGE)
        asked(tx, "a1", ANN)
        asked(tx, "b1", ART)
        for name, user in (("a1", ANN), ("b1", ART)):
            judged(tx, name, user, True)
    found = told(store, 2 * DAY, replace(RULES, new_users=False))
    assert found.trials == (Settled(True, 1.0),)
    assert (found.challenger.users, found.challenger.known) == (2, 1)


@pytest.mark.parametrize(("vouch", "known"), [(("app",), 2), (("app", "bots"), 3), (("none",), 1), (True, 3)])
def test_new_users_count_of_the_applications_that_the_rules_name(
    store: Store, vouch: bool | tuple[str, ...], known: int
) -> None:
    with store.write() as tx:
        completions.insert(tx, completion("old", user=ANN))
        rollouts.put(tx, STAGE)
        asked(tx, "a1", ANN)
        asked(tx, "b1", ART, principal="app")
        asked(tx, "c1", AMY, principal="bots")
    assert told(store, 2 * DAY, replace(RULES, new_users=vouch)).challenger.known == known


def test_who_came_while_a_test_waited_to_begin_was_there_before_it(store: Store) -> None:
    section = RolloutSection(min_users=10, max_users=20)
    begun = machine.start(section, "policy@base", "policy@v1", "r", STAGE.salt, 0.005, 1.0)
    waits = machine.ask_first(replace(begun, weight=STAGE.weight), "few judge", 1.0)
    halves = {**(waits.rules or {}), "stages": [{"name": "ab", "weight": STAGE.weight, "decides": True}]}
    waits = replace(waits, rules=halves)
    with store.write() as tx:
        completions.insert(tx, completion("old", user=ANN))
        rollouts.put(tx, waits)
        asked(tx, "while", ART, arm=Arm.CHAMPION)
        begins = machine.apply(waits, Act.RESUME, 50.0)
        rollouts.put(tx, begins)
        for user in (ANN, ART, AMY):
            asked(tx, f"in-{user}", user)
    found = told(store, 200.0, replace(RULES, new_users=False), begins)
    assert (found.challenger.users, found.challenger.known) == (3, 2)


def test_who_first_comes_in_a_pause_of_a_test_came_during_the_test(store: Store) -> None:
    """Users are split then, too."""
    paused = machine.apply(STAGE, Act.PAUSE, 2.0)
    with store.write() as tx:
        completions.insert(tx, completion("old", user=ANN))
        for state in (STAGE, paused):
            rollouts.put(tx, state)
        asked(tx, "in-the-pause", ART)
        resumed = machine.apply(paused, Act.RESUME, 150.0)
        rollouts.put(tx, resumed)
        for user in (ANN, ART):
            asked(tx, f"in-{user}", user, at=200.0)
    found = told(store, 300.0, replace(RULES, new_users=False), resumed)
    assert (found.challenger.users, found.challenger.known) == (2, 1)


def test_a_stage_has_its_own_trials_and_clock(store: Store) -> None:
    second = replace(STAGE, stage=1, stage_started_at=2.0)
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        asked(tx, "a1", ANN)
        judged(tx, "a1", ANN, False)
    assert told(store, 100.0).waiting == 1
    with store.write() as tx:
        rollouts.put(tx, second)
        rollouts.put(tx, replace(second, status=RolloutStatus.PAUSED))
        judged(tx, "a1", ANN, True, of="late")  # of an answer of the stage before
    assert told(store, 9 * DAY, state=second) == Standing("r", 1)
    with store.write() as tx:
        asked(tx, "a2", ANN, at=9 * DAY)
        judged(tx, "a2", ANN, True)
    assert told(store, 9.5 * DAY, state=second).trials == ()
    assert told(store, 10 * DAY, state=second).trials == (Settled(True, 1.0),)
    assert told(store, 9 * DAY).trials == ()


def test_what_stands_in_for_an_arm_is_in_none(store: Store) -> None:
    """Answers of the weight before, pinned ones, tasks, forced words, and of nobody."""
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        asked(tx, "a", ANN, arm=Arm.CHAMPION)
        asked(tx, "b", ART, arm=Arm.PINNED)
        asked(tx, "c", AMY, task="title")
        asked(tx, "d", BOB, forced=True)
        asked(tx, "e", None)
        for name, user in (("a", ANN), ("b", ART), ("d", BOB)):
            judged(tx, name, user, True)
    assert told(store, 9 * DAY) == Standing("r", 0)


def test_the_first_answers_faults_are_counted(store: Store) -> None:
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        asked(tx, "a", ANN, status="failed")
        asked(tx, "a2", ANN, finish_reason="length")  # her second
        asked(tx, "b", ART, status="aborted", first_token_s=11.0)
        asked(tx, "c", BOB, finish_reason="length", first_token_s=1.0, completion_tokens=9)
        asked(tx, "d", BEN, text="Do you mean Paris?", tool_calls=({"function": {"name": "f"}},), completion_tokens=8)
    found = told(store, 0.0, replace(RULES, long_tokens=8))
    with store.read() as tx:
        parts = trials.history(tx, "r", 0)
    expected = [("aborted", "slow"), ("cut_off", "long"), ("failed",), ("tool_error", "asked_back")]
    assert sorted(part.faults for part in parts) == expected
    assert found.challenger == Exposed(users=2, known=2, failed=1, aborted=1, slow=1)
    champion = Exposed(users=2, known=2, cut_off=1, tool_error=1, asked_back=1, long=1)
    assert found.champion == champion


def test_edits_are_downs_and_reviewers_have_no_vote(store: Store) -> None:
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        for name, user in (("a", ANN), ("b", BOB)):
            asked(tx, name, user)
        edit = thumb("f-a", "a", user=ANN, kind=FeedbackKind.EDIT, value=None)
        feedback.record(tx, replace(edit, text="Better."))
        feedback.record(tx, thumb("f-b", "b", user="rev", value=False, reviewer=True))
    assert told(store, 9 * DAY).trials == (Settled(True, 0.0),)


def test_an_erased_user_leaves_a_trial_without_a_name(store: Store) -> None:
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        asked(tx, "a", ANN)
        asked(tx, "b", ART)
        judged(tx, "a", ANN, True)
        judged(tx, "b", ART, True)
    with store.write() as tx:
        trials.advance(tx, STAGE, replace(RULES, settle_s=0.0), DAY)
        trials.forget(tx, ANN, "erased-1")
    with store.read() as tx:
        assert len(trials.standing(tx, STAGE).trials) == 2
        assert ANN not in [str(row) for row in tx.execute(sa.text('SELECT "user" FROM trials')).scalars()]


def test_a_holdback_counts_the_champions_users_of_a_test_too_and_knows_users_anew_each_week(store: Store) -> None:
    week = replace(STAGE, id="h", kind=RolloutKind.HOLDBACK)
    days = replace(RULES, new_users=False)

    def answered(name: str, user: str, rollout: str | None, arm: Arm) -> None:
        row = completion(name, user=user, arm=arm, rollout=rollout, created_at=100.0)
        completions.insert(tx, replace(row, holdback="h"))
        judged(tx, name, user, True)

    with store.write() as tx:
        for user in (ANN, BOB):
            completions.insert(tx, completion(f"old-{user}", user=user))
        rollouts.put(tx, week)
        assert rollouts.live(tx) is None and rollouts.latest(tx, 9) == [], "it is no test"
        assert rollouts.live(tx, RolloutKind.HOLDBACK) == week
        answered("a", ANN, None, Arm.HOLDBACK)
        answered("b", BOB, "r", Arm.CHAMPION)
        answered("c", ART, None, Arm.HOLDBACK)  # who came since
    assert sorted(told(store, 2 * DAY, days, week).trials, key=repr) == [Settled(False, 1.0), Settled(True, 1.0)]
    second = replace(week, stage=1, stage_started_at=2.0)
    with store.write() as tx:
        rollouts.put(tx, second)
        answered("c2", ART, None, Arm.HOLDBACK)
    assert told(store, 2 * DAY, days, second).trials == (Settled(True, 1.0),)


def test_the_holdback_on_the_base_counts_its_users_and_those_of_whatever_is_champion(store: Store) -> None:
    week = replace(STAGE, id="b", champion="policy@champion", challenger="policy@base", kind=RolloutKind.BASE)
    with store.write() as tx:
        rollouts.put(tx, week)
        rollouts.put(tx, replace(STAGE, id="h", kind=RolloutKind.HOLDBACK))
        for name, user, arm, adapter, counts in (
            ("a", ANN, Arm.HOLDBACK, "policy@base", "b"),
            ("b", BOB, Arm.CHAMPION, "policy@v1", "b"),
            ("c", BEN, Arm.CHAMPION, "policy@v2", "b"),  # after a promotion
            ("d", ART, Arm.HOLDBACK, "policy@v1", "h"),
        ):
            row = completion(name, user=user, arm=arm, adapter=adapter, holdback=counts, created_at=100.0)
            completions.insert(tx, row)
            judged(tx, name, user, name != "c")
        assert rollouts.live(tx, RolloutKind.BASE) == week and rollouts.latest(tx, 9) == []
        assert rollouts.finished(tx) == [], "it costs the budget nothing"
    found = told(store, 2 * DAY, RULES, week)
    assert sorted(found.trials, key=repr) == [Settled(False, 0.0), Settled(False, 1.0), Settled(True, 1.0)]
    assert (found.champion.users, found.challenger.users) == (2, 1)
    with store.write() as tx:
        rollouts.put(tx, replace(week, stage=1, stage_started_at=2.0, salt="another"))
        trials.forget(tx, ANN, "erased-1")
    with store.read() as tx:
        assert len(trials.standing(tx, week).trials) == 3


def test_a_test_that_asked_counts_from_when_it_was_resumed(store: Store) -> None:
    asks = machine.ask_first(replace(STAGE, rules=RolloutSection().model_dump(mode="json")), "it is blind", 50.0)
    with store.write() as tx:
        rollouts.put(tx, asks)
        asked(tx, "a", ANN, rollout=None, arm=Arm.CHAMPION)
    assert told(store, DAY, state=asks) == Standing("r", 0)
    begun = machine.apply(asks, Act.RESUME, 60.0)
    with store.write() as tx:
        rollouts.put(tx, begun)
        assert rollouts.live(tx) == begun and begun.weight == 0.1
        user = next(name for name in drawn(challenger=True, weight=0.1))
        asked(tx, "b", user)
    assert told(store, DAY, state=begun).challenger.users == 1


def test_nobody_enters_while_all_is_new_and_what_was_said_then_is_in_no_mean(store: Store) -> None:
    with store.write() as tx:
        rollouts.put(tx, STAGE)
        asked(tx, "a", ANN)
        asked(tx, "b", BOB)
        asked(tx, "a2", ANN, at=DAY)
        judged(tx, "a", ANN, True)
        judged(tx, "a2", ANN, False)
        judged(tx, "b", BOB, True)
    found = told(store, 2 * DAY, replace(RULES, since=DAY))
    assert (found.champion.users, found.challenger.users) == (0, 1)
    assert found.trials == (Settled(True, 0.0),)


def test_gateways_that_write_meanwhile_lose_no_trial(store: Store) -> None:
    """As a drain of two spools does it: answers and their thumbs in one transaction, while the loop ticks."""
    with store.write() as tx:
        rollouts.put(tx, STAGE)

    def gateway(number: int) -> None:
        for batch in range(6):
            names = [f"g{number}-{batch}-{i}" for i in range(40)]
            with store.write() as tx:
                for name in names:
                    asked(tx, f"c{name}", name)
                feedback.record_all(tx, [thumb(f"f{name}", f"c{name}", value=True, user=name) for name in names])

    writers = [threading.Thread(target=gateway, args=(number,)) for number in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        with store.write() as tx:
            trials.advance(tx, STAGE, RULES, 3 * DAY)
    for _ in range(3):
        with store.write() as tx:
            trials.advance(tx, STAGE, RULES, 3 * DAY)
    found = told(store, 3 * DAY)
    assert len(found.trials) == found.champion.users + found.challenger.users == 480


def test_what_is_committed_late_and_said_at_the_last_moment_is_not_lost(store: Store) -> None:
    if store.sqlite:
        pytest.skip("its writers are one after the other")
    with store.write() as tx:
        rollouts.put(tx, STAGE)
    with store.write() as late:
        asked(late, "a", ANN)  # an earlier number
        with store.write() as tx:
            asked(tx, "b", BOB)
            judged(tx, "b", BOB, True)
        assert told(store, 0.0).champion.users == 1
    with store.write() as tx:
        trials.advance(tx, STAGE, RULES, 0.0)
        [due] = trials._marked(tx, STAGE, voters.c.due_at.is_not(None))
        assert trials.standing(tx, STAGE).challenger.users == 1
        with store.write() as gateway:  # between reading what BOB said and taking his mark away
            asked(gateway, "b2", BOB)
            judged(gateway, "b2", BOB, False)
        trials._drop(tx, STAGE, [due])
    assert told(store, 2 * DAY).trials == (Settled(False, 0.5),)


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_ticks_settles_the_same_trials(store: Store, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the rule said plainly, with few rows a tick, and users who judge again and again."""
    monkeypatch.setattr(trials, "ANSWERS", 7)
    monkeypatch.setattr(trials, "VOTERS", 3)
    chance = random.Random(seed)
    first: dict[str, float] = {}
    said: dict[str, dict[str, bool]] = {}
    settled: dict[str, Settled] = {}
    with store.write() as tx:
        rollouts.put(tx, STAGE)
    for i in range(120):
        now, user = i * DAY / 20, f"u{chance.randrange(15)}"
        with store.write() as tx:
            asked(tx, f"c{i}", user, at=now)
            if chance.random() < 0.5:
                up = chance.random() < 0.5
                judged(tx, f"c{i}", user, up)
                said.setdefault(user, {})[f"c{i}"] = up
        first.setdefault(user, now)
        for name, votes in said.items():
            if name not in settled and first[name] + DAY <= now:
                arm = unit_interval(STAGE.salt, name) < STAGE.weight
                settled[name] = Settled(arm, sum(votes.values()) / len(votes))
        for _ in range(30):
            with store.write() as tx:
                trials.advance(tx, STAGE, RULES, now)
            with store.read() as tx:
                if not trials.due(tx, STAGE, now):
                    break
    with store.read() as tx:
        found = trials.standing(tx, STAGE)
    assert sorted(found.trials, key=repr) == sorted(settled.values(), key=repr) and len(settled) > 8
    assert found.champion.users + found.challenger.users == len(first)
