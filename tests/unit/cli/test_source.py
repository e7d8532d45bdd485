"""A command asks the running service, and opens the store only where none runs."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kto_ray.adapters.files import check_adapter
from kto_ray.adapters.publish import publish
from kto_ray.cli import app
from kto_ray.cli.source import Source
from kto_ray.config import Config, load_config
from kto_ray.loop.step import Loop
from kto_ray.records.evaluation import GateDecision
from kto_ray.records.keys import Scope
from kto_ray.records.replicas import ReplicaReport
from kto_ray.records.rollouts import Look
from kto_ray.records.rounds import Awaiting, Candidate, Tried
from kto_ray.rollout import base, holdback, machine
from kto_ray.store import Store, adapters, completions, keys, replicas, rollouts, rounds
from tests.conftest import FreePort
from tests.support.adapters import write
from tests.support.engine import StandIn
from tests.support.loop import labels
from tests.support.provenance import completion
from tests.support.rows import manifest
from tests.support.served import served


@pytest.fixture
def config(tmp_path: Path, free_port: FreePort) -> Config:
    return load_config(None, (f"home={tmp_path}", f"http.port={free_port()}"))


def test_both_tell_the_same(config: Config, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite_store.write() as tx:
        completions.insert(tx, completion("c1", "ann"))
    by_store = Source(config)
    told = (by_store.loop(), by_store.adapters(), by_store.rollout(), by_store.lineage("ann"))
    assert not by_store.running and told[0]["completions"] == 1
    with served(config, sqlite_store, StandIn()):
        monkeypatch.setattr("kto_ray.store.open_store", lambda url: pytest.fail("a service runs"))
        by_http = Source(config)
        assert by_http.running
        assert (by_http.loop(), by_http.adapters(), by_http.rollout(), by_http.lineage("ann")) == _as_json(told)
        assert by_http.readiness()["ready"] is True
        with pytest.raises(ValueError, match="'nobody' is no adapter version"):
            by_http.lineage("nobody")


def test_an_adapter_of_before_there_was_a_key_is_signed(
    config: Config, sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KTO_RAY__ADAPTERS__SIGNING_KEYS", "k" * 32)
    version = publish(config, write(tmp_path / "checkpoint"), 1, manifest(), None, 1.0)
    with sqlite_store.write() as tx:
        adapters.insert(tx, version)
    with pytest.raises(ValueError, match="is not signed"):
        check_adapter(version, 16, ("k" * 32,))
    told = CliRunner().invoke(app, ["adapters", "sign", version.name, "--set", f"home={tmp_path}", "--json"])
    assert told.exit_code == 0 and json.loads(told.stdout) == {"adapter": version.name, "signed": True}
    check_adapter(version, 16, ("k" * 32,))
    unknown = CliRunner().invoke(app, ["adapters", "sign", "policy@v9", "--set", f"home={tmp_path}"])
    assert isinstance(unknown.exception, ValueError) and "is not in the store" in str(unknown.exception)


def test_a_service_of_another_store_is_not_asked(config: Config, sqlite_store: Store, tmp_path: Path) -> None:
    other = load_config(None, (f"home={tmp_path}/other", f"http.port={config.http.port}"))
    with served(config, sqlite_store, StandIn()):
        assert not Source(other).running
        with pytest.raises(
            ValueError, match=r"no service of .*/other.* to rollout pause; start it with `kto-ray serve`"
        ):
            Source(other).ask("rollout", "pause")


@pytest.mark.parametrize("name", ["ann#1", "ann?x=1", "team/../ann", "a%41", "Zoë & co"])
def test_a_name_is_asked_for_as_it_is(config: Config, sqlite_store: Store, name: str) -> None:
    with sqlite_store.write() as tx:
        completions.insert(tx, completion("c1", "ann"))
        completions.insert(tx, completion("c2", name))
    with served(config, sqlite_store, StandIn()):
        told = Source(config).lineage(name)
    assert (told["id"], told["completions"]) == (name, ["c2"])


def test_a_service_is_found_however_its_home_is_spelled_and_past_any_proxy(
    config: Config, sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    (tmp_path / "x").mkdir()
    spelled = load_config(None, (f"home={tmp_path}/x/..", f"http.port={config.http.port}"))
    with served(config, sqlite_store, StandIn()):
        assert Source(spelled).running


@pytest.mark.parametrize(("answers", "code"), [(True, 1), (False, 1)])
def test_an_act_that_was_not_done_is_told_and_exits_1(
    config: Config, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch, answers: bool, code: int
) -> None:
    monkeypatch.setattr("kto_ray.serve.gateway.loop.ANSWER_S", 5.0 if answers else 0.2)
    loop = Loop(config, policy=None)
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(0.05):
            loop.step()

    thread = threading.Thread(target=run)
    with served(config, sqlite_store, StandIn()):
        if answers:
            thread.start()
        settings = ["--set", f"home={config.home}", "--set", f"http.port={config.http.port}"]
        told = CliRunner().invoke(app, ["rollout", "pause", "--json", *settings])
        ended.set()
    if answers:
        thread.join()
    words = "refused: there was no rollout to pause when it was asked" if answers else "has not handled it yet"
    assert told.exit_code == code and words in json.loads(told.stdout)["result"]


def test_a_reset_of_the_budget_is_asked_and_status_says_who_and_why(config: Config, sqlite_store: Store) -> None:
    loop, ended = Loop(config, policy=None), threading.Event()

    def run() -> None:
        while not ended.wait(0.05):
            loop.step()

    thread = threading.Thread(target=run)
    settings = ["--set", f"home={config.home}", "--set", f"http.port={config.http.port}", "--json"]
    with served(config, sqlite_store, StandIn()):
        thread.start()
        asked = (["--why", "two\nlines"], ["--why", "another product & more"])
        told = [CliRunner().invoke(app, ["rollout", "reset-budget", *each, *settings]) for each in asked]
        shown = json.loads(CliRunner().invoke(app, ["status", *settings]).stdout)["budget"]
        ended.set()
    thread.join()
    assert isinstance(told[0].exception, ValueError) and "says why (?why=TEXT" in str(told[0].exception)
    assert told[1].exit_code == 0 and json.loads(told[1].stdout)["action"] == "reset-budget"
    assert (shown["by"], shown["why"]) == ("operator", "another product & more")
    assert "when operator began it anew: another product & more" in shown["in_words"]


def test_a_round_is_begun_and_ended(config: Config, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, ended = Loop(config, policy=None), threading.Event()
    monkeypatch.setattr("kto_ray.loop.work.start", lambda *_: "job")
    monkeypatch.setattr("kto_ray.loop.work.cancel", lambda _: None)
    monkeypatch.setattr("ray.wait", lambda refs, timeout: ([], refs))
    labels(sqlite_store, 1)

    def run() -> None:
        while not ended.wait(0.05):
            loop.step()

    thread = threading.Thread(target=run)
    settings = ["--set", f"home={config.home}", "--set", f"http.port={config.http.port}", "--json"]
    with served(config, sqlite_store, StandIn()):
        thread.start()
        asked = (["run"], ["run"], ["abort", "--round", "2"], ["abort", "--round", "1"])
        told = [CliRunner().invoke(app, ["loop", *each, *settings]) for each in asked]
        ended.set()
    thread.join()
    results = [json.loads(each.stdout)["result"] for each in told]
    assert [each.exit_code for each in told] == [0, 1, 1, 0]
    assert results[0] == "round 1 begins" and "round 1 is in stage snapshot" in results[1]
    assert "it is meant for round 2" in results[2]
    assert results[3] == "round 1 ended by an operator in stage snapshot"


def test_status_tells_of_the_holdback(config: Config, sqlite_store: Store) -> None:
    back = holdback.start(config.rollout, "policy@v2", "policy@v1", "holdback-2", "salt", 1.0)
    assert back is not None
    with sqlite_store.write() as tx:
        rollouts.put(tx, back)
        rollouts.add_look(tx, Look(back.id, 2.0, 0, 90, 54.0, 10, 7.0, -0.125, 0.25))
    told = CliRunner().invoke(app, ["status", "--set", f"home={config.home}"]).stdout
    words = " ".join(told.replace("│", " ").split())  # as wide as a terminal happens to be
    assert "10% of users stay on policy@v1, week 1: it is better by -0.125 to +0.250" in words


def test_status_tells_what_the_loop_gains_and_what_a_test_asks(config: Config, sqlite_store: Store) -> None:
    begun = base.start(config.rollout, "policy@base", "base-1", "salt", 1.0)
    assert begun is not None
    test = machine.start(config.rollout, "policy@base", "policy@v1", "rollout-1", "salt", 0.005, 1.0)
    with sqlite_store.write() as tx:
        rollouts.put(tx, begun)
        rollouts.put(tx, machine.ask_first(test, "it could at best show a gain of 31.0 points", 2.0))
    told = CliRunner().invoke(app, ["status", "--set", f"home={config.home}"]).stdout
    words = " ".join(told.replace("│", " ").split())
    assert "asks for resume or abort before it begins: it could at best show a gain of 31.0 points" in words
    assert "1.0% of users stay on policy@base, drawn anew each week, but within a test: no week is over yet" in words
    with sqlite_store.write() as tx:
        rollouts.put(tx, replace(test, stage=1, weight=0.5, stage_started_at=time.time()))
        rollouts.add_look(
            tx, Look("rollout-1", 2.0, 1, 90, 54.0, 80, 47.0, -0.125, 0.25, evidence={"gain": 1.0, "gain_now": 1.0})
        )
    told = CliRunner().invoke(app, ["status", "--set", f"home={config.home}"]).stdout
    words = " ".join(told.replace("│", " ").split())
    assert "to promote, also: the evidence of a gain is 2.72 to one, of 200 to one; no more users judge" in words
    assert "the evidence of a gain lacks about 731 users who judge as those so far" in words
    assert "what would end it first: the gain may be up to +0.250, of +0 (min_effect), 75% of the way" in words


def test_status_says_what_came_of_each_candidate_and_who_is_waited_for(config: Config, sqlite_store: Store) -> None:
    kto = Candidate("kto", {}, Tried("policy@v1", GateDecision.PROMOTE_TO_CANARY, "sane", 0.05))
    apo = Candidate("apo", {}, Tried(None, None, "train: NaN"))
    with sqlite_store.write() as tx:
        begun = rounds.insert(tx, 1.0, (kto, apo, Candidate("slow")))
        rounds.update(tx, begun.to(Awaiting("s", "policy@v1"), 0.0))
    told = CliRunner().invoke(app, ["status", "--set", f"home={config.home}"]).stdout
    words = " ".join(told.replace("│", " ").split())
    assert "round 1: approval kto: promote-to-canary, AUC gain +0.050: sane apo: failed: train: NaN slow: has" in words
    assert "policy@v1 has passed the gate and waits for a person: kto-ray rollout approve" in words
    assert "on 1970-01-08 00:00 UTC its round ends (loop.approval_hours)" in words


def test_a_candidate_is_approved_by_command(config: Config, sqlite_store: Store) -> None:
    loop, ended = Loop(config, policy=None), threading.Event()
    with sqlite_store.write() as tx:
        rounds.update(tx, rounds.insert(tx, 1.0).to(Awaiting("s", "policy@v1"), time.time()))

    def run() -> None:
        while not ended.wait(0.05):
            loop.step()

    thread = threading.Thread(target=run)
    with served(config, sqlite_store, StandIn()):
        with sqlite_store.write() as tx:
            replicas.report(tx, ReplicaReport("r", "node", 1, ("policy@v1",)), 15.0)
        thread.start()
        settings = ["--json", "--set", f"home={config.home}", "--set", f"http.port={config.http.port}"]
        other = CliRunner().invoke(app, ["rollout", "reject", "--candidate", "policy@v9", *settings])
        told = CliRunner().invoke(app, ["rollout", "approve", "--candidate", "policy@v1", *settings])
        ended.set()
    thread.join()
    assert other.exit_code == 1 and "the candidate that waits is policy@v1" in json.loads(other.stdout)["result"]
    assert told.exit_code == 0 and json.loads(told.stdout)["result"] == "the A/B test of policy@v1 begins"


@pytest.mark.parametrize("flag", [True, False])
def test_a_service_asks_before_users_meet_a_candidate_where_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: bool
) -> None:
    started: list[Config] = []

    def running(config: Config, _: object) -> None:
        started.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("kto_ray.app.running", running)
    CliRunner().invoke(app, ["serve", *(["--require-approval"] if flag else []), "--set", f"home={tmp_path}"])
    assert [config.loop.require_approval for config in started] == [flag]


def test_a_rollback_names_the_champion_to_leave(config: Config, sqlite_store: Store) -> None:
    told = CliRunner().invoke(app, ["rollout", "rollback", "--set", f"home={config.home}"])
    assert told.exit_code != 0 and "--leave policy@base" in str(told.exception)


def test_a_service_that_asks_for_a_key_gets_it_from_the_environment(
    config: Config, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite_store.write() as tx:
        _, ours = keys.create(tx, "ops", [Scope.ADMIN], False, config.salt, 1.0)
        _, theirs = keys.create(tx, "app", [Scope.CHAT], False, config.salt, 1.0)
    with served(config, sqlite_store, StandIn()):
        monkeypatch.setenv("KTO_RAY_KEY", ours)
        asked = Source(config)
        assert asked.running and asked.loop()["completions"] == 0 and asked.readiness()["replicas"] != []
        monkeypatch.setattr("kto_ray.serve.gateway.loop.ANSWER_S", 0.01)
        assert asked.ask("rollout", "pause")[0]["action"] == "pause"
        monkeypatch.setenv("KTO_RAY_KEY", theirs)
        for act in (
            Source(config).loop,
            lambda: Source(config).lineage("x"),
            lambda: Source(config).ask("rollout", "pause"),
        ):
            with pytest.raises(ValueError, match=r"needs a key with the scope admin; .*KTO_RAY_KEY"):
                act()
        monkeypatch.delenv("KTO_RAY_KEY")
        with pytest.raises(ValueError, match="an API key is missing"):
            Source(config).loop()


def test_a_service_that_goes_away_is_told(config: Config, sqlite_store: Store) -> None:
    with served(config, sqlite_store, StandIn()):
        source = Source(config)
    with pytest.raises(ValueError, match="went away"):
        source.loop()


def test_nobody_to_steer_is_told(config: Config) -> None:
    with pytest.raises(ValueError, match="start it with `kto-ray serve`"):
        Source(config).ask("rollout", "promote")


def _as_json(told: object) -> object:
    return tuple(json.loads(json.dumps(told)))
