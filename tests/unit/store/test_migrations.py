"""The schema by migrations is the schema of the code, on both databases. Old data is carried along, and an older
program is told where it stands."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext

from kto_ray.config import Config
from kto_ray.config.deciding import RolloutSection
from kto_ray.records.completions import ExternalRef
from kto_ray.records.keys import Principal, Scope
from kto_ray.records.requests import Act
from kto_ray.records.rollouts import BudgetReset, RolloutKind
from kto_ray.records.rounds import Awaiting, Candidate
from kto_ray.records.trainings import TrainingRun
from kto_ray.rollout import base, machine
from kto_ray.rollout.begun import rules_of
from kto_ray.serve.gateway.whose import signed
from kto_ray.store import Store, completions, feedback, labels, open_store, rollouts, rounds, tallies, trainings, trials
from kto_ray.store.database import MIGRATIONS
from kto_ray.store.recording import Recorded
from kto_ray.store.schema import metadata
from kto_ray.store.tallies import Tally
from tests.support.rows import completion, thumb


def migrate(store: Store, how: str, revision: str) -> None:
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS))
    with store.engine.connect() as tx, tx.begin():
        config.attributes["connection"] = tx
        getattr(command, how)(config, revision)


def test_the_migrations_make_the_schema(store: Store) -> None:
    with store.read() as tx:
        assert compare_metadata(MigrationContext.configure(tx), metadata) == []
    migrate(store, "downgrade", "base")
    with store.read() as tx:
        assert set(sa.inspect(tx).get_table_names()) == {"alembic_version"}
    migrate(store, "upgrade", "head")
    with store.read() as tx:
        assert compare_metadata(MigrationContext.configure(tx), metadata) == []


def test_data_of_the_schema_before_labels_is_carried_along(store: Store) -> None:
    migrate(store, "downgrade", "0002")
    with store.write() as tx:
        for name, task in (("c1", None), ("c2", "title"), ("c4", None)):
            tx.execute(
                sa.text(
                    "INSERT INTO completions (id, created_at, model, adapter, arm, status, messages, params, text, "
                    "task, prompt_tokens, completion_tokens, latency_s) VALUES (:id, 1, 'policy', 'policy@base', "
                    "'champion', 'complete', '[]', '{}', 'Hello.', :task, 1, 1, 0.1)"
                ),
                {"id": name, "task": task},
            )
        for name, of, value, gone, at in (
            ("f1", "c1", True, None, 2.0),
            ("f2", "c2", True, None, 2.0),
            ("f3", None, False, 5.0, 2.0),
            ("f4", "c4", False, None, 9.0),  # after the round began
        ):
            tx.execute(
                sa.text(
                    "INSERT INTO feedback (id, created_at, kind, completion_id, named_completion, value, reason_codes, "
                    "tags, withdrawn_at) VALUES (:id, :at, 'thumb', :of, 'x', :value, '[]', '{}', :gone)"
                ),
                {"id": name, "of": of, "value": value, "gone": gone, "at": at},
            )
        figures = {"steps": 2, "loss_last": 0.4, "history": [{"step": 1}, {"step": 2}]}
        tx.execute(
            sa.text(
                "INSERT INTO rounds (id, stage, started_at, stage_started_at, snapshot, attempts, stage_s, "
                "train_metrics) VALUES (1, 'train', 3, 4, 's', 0, '{}', :figures)"
            ),
            {"figures": json.dumps(figures)},
        )
    migrate(store, "upgrade", "head")
    with store.read() as tx:
        assert tallies.total(tx) == Tally(completions=3, stored=4, pending=1, withdrawn=1, up=1, down=1, came=1)
        run = trainings.get(tx, "round-1")
        assert run is not None and run.figures == {"step": 2, "steps": 2, "loss_last": 0.4}
        assert run.history == ({"step": 1}, {"step": 2})
        assert rounds.new_labels(tx) == 1, "what came since the round began"


def insert_completion(tx: sa.Connection, name: str, user: str | None) -> None:
    """At revision 0003."""
    tx.execute(
        sa.text(
            "INSERT INTO completions (id, created_at, model, adapter, arm, status, messages, params, text, "
            "\"user\", prompt_tokens, completion_tokens, latency_s) VALUES (:id, 1, 'policy', 'policy@base', "
            "'champion', 'complete', '[]', '{}', 'Hello.', :user, 1, 1, 0.1)"
        ),
        {"id": name, "user": user},
    )


def insert_thumb(tx: sa.Connection, name: str, of: str, user: str | None, value: bool, at: float = 2.0) -> None:
    """At revision 0003, with its label."""
    event = {"id": name, "of": of, "named": of, "user": user, "value": value, "at": at, "key": f"key-{name}"}
    event |= {"judge": user or f"anonymous:{of}", "verdict": "up" if value else "down"}
    tx.execute(
        sa.text(
            'INSERT INTO feedback (id, created_at, kind, completion_id, named_completion, "user", value, reason_codes, '
            "tags, idempotency_key, body_hash) VALUES (:id, :at, 'thumb', :of, :named, :user, :value, '[]', '{}', "
            ":key, 'old')"
        ),
        event,
    )
    tx.execute(
        sa.text(
            'INSERT INTO labels (completion_id, "user", verdict, at, arm, asker, asked_at, since) '
            "SELECT id, CAST(:judge AS TEXT), CAST(:verdict AS TEXT), :at, 'champion', \"user\", 1, 0 "
            "FROM completions WHERE id = :of"
        ),
        event,
    )


def test_nobody_and_a_user_called_anonymous_are_told_apart(store: Store) -> None:
    migrate(store, "downgrade", "0003")
    with store.write() as tx:
        for name in ("c1", "c2"):
            insert_completion(tx, name, None)
        insert_thumb(tx, "f1", "c1", None, True)
        insert_thumb(tx, "f2", "c1", "anonymous", False)
        insert_thumb(tx, "f3", "c2", None, False)
        tx.execute(sa.text("UPDATE tallies SET completions = 2, stored = 3, up = 1, down = 2, came = 3 WHERE slot = 0"))
    migrate(store, "upgrade", "head")
    with store.write() as tx:
        made = [[(one.user, one.verdict.value) for one in labels.of(tx, name)] for name in ("c1", "c2")]
        assert made == [[("anonymous", "up")], [("anonymous", "down")]]
        assert tallies.total(tx) == Tally(completions=2, stored=3, up=1, down=1, came=2, strangers=1)
        assert labels.refresh(tx, ["c1", "c2"]) == Tally(), "as they would be made now"


def test_a_key_counts_once_across_the_migration(store: Store) -> None:
    migrate(store, "downgrade", "0003")
    with store.write() as tx:
        insert_completion(tx, "c1", "ann")
        for name, user in (("f1", "ann"), ("f2", None)):
            insert_thumb(tx, name, "c1", user, True)
        tx.execute(
            sa.text(
                "INSERT INTO feedback (id, created_at, kind, external_system, external_conversation, value, "
                "reason_codes, tags, idempotency_key, body_hash) VALUES ('f3', 2, 'thumb', 'web', :talk, :up, '[]', "
                "'{}', 'key-f3', 'old')"
            ),
            {"talk": "k" * 255, "up": True},
        )
    migrate(store, "upgrade", "head")
    here, talk = Principal(None, frozenset({Scope.FEEDBACK})), ExternalRef("web", "k" * 255)
    again = (("f1", "ann", "c1", None), ("f2", None, "c1", None), ("f3", None, None, talk))
    with store.write() as tx:
        for name, user, of, external in again:
            event = thumb(f"{name}-again", of, user=user, external=external, created_at=3.0, body_hash="new")
            sent = signed(Config(), replace(event, idempotency_key=f"key-{name}"), here, None)
            assert feedback.record(tx, sent).status is Recorded.DUPLICATE
        other = signed(Config(), thumb("f4", "c1", user="bob", idempotency_key="key-f1"), here, None)
        assert feedback.record(tx, other).status is Recorded.RECORDED, "another's key is another key"


def test_labels_of_others_go_and_what_named_nobody_is_the_askers(store: Store) -> None:
    migrate(store, "downgrade", "0003")
    said = (("f1", "of-ann", "bob", True), ("f2", "of-ann", None, False), ("f3", "of-none", None, True))
    others = (("f4", "of-none", "eve", True), ("f5", "of-bob", "bob", True))
    with store.write() as tx:
        for name, user in (("of-ann", "ann"), ("of-none", None), ("of-bob", "bob")):
            insert_completion(tx, name, user)
        for number, (name, of, user, value) in enumerate((*said, *others)):
            insert_thumb(tx, name, of, user, value, 2.0 + number)
        tx.execute(sa.text("UPDATE tallies SET completions = 3, stored = 5, up = 4, down = 1, came = 5 WHERE slot = 0"))
    migrate(store, "upgrade", "head")
    with store.write() as tx:
        expected = {"of-ann": [("ann", "down")], "of-none": [("anonymous", "up")], "of-bob": [("bob", "up")]}
        made = {name: [(one.user, one.verdict.value) for one in labels.of(tx, name)] for name in expected}
        assert made == expected
        assert tallies.total(tx) == Tally(completions=3, stored=5, up=2, down=1, came=3, strangers=2)
        assert labels.refresh(tx, expected) == Tally(), "as they would be made now"


def test_a_test_that_goes_on_has_its_level_at_risk_and_spends_it(store: Store) -> None:
    migrate(store, "downgrade", "0004")
    states = (("ended", "aborted", 3), ("runs", "running", None), ("waits", "paused", None))
    with store.write() as tx:
        for at, (name, status, ended) in enumerate(states):
            tx.execute(
                sa.text(
                    "INSERT INTO rollouts (id, champion, challenger, salt, stage, weight, status, started_at, "
                    "stage_started_at, stage_started_seq, ended_at) VALUES (:id, 'policy@base', 'policy@v1', 's', 1, "
                    "0.5, :status, :at, 2, 0, :ended)"
                ),
                {"id": name, "status": status, "at": at, "ended": ended},
            )
    migrate(store, "upgrade", "head")
    rules = RolloutSection()
    with store.write() as tx:
        assert [each.level for each in rollouts.latest(tx, 3)] == [0.0, 0.005, 0.005]
        runs = rollouts.live(tx)
        assert runs is not None
        assert machine.level_of(rules, runs) == pytest.approx(runs.level), "judged at what it spends"
        rollouts.put(tx, machine.apply(runs, Act.ABORT, 5.0))
        assert [each.id for each in rollouts.finished(tx)] == [runs.id]


def test_tests_of_before_resets_are_of_the_present_life_and_all_of_one_again_for_who_goes_back(store: Store) -> None:
    began = machine.start(RolloutSection(), "policy@base", "policy@v1", "r1", "salt", 0.005, 1.0)
    with store.write() as tx:
        rollouts.put(tx, machine.apply(began, Act.ABORT, 2.0))
    migrate(store, "downgrade", "0008")
    migrate(store, "upgrade", "head")
    with store.write() as tx:
        assert [each.id for each in rollouts.finished(tx)] == ["r1"]
        rollouts.reset_budget(tx, BudgetReset(3.0, "ops", "another product"))
        assert rollouts.finished(tx) == []
    migrate(store, "downgrade", "0008")
    migrate(store, "upgrade", "head")
    with store.read() as tx:
        assert [each.id for each in rollouts.finished(tx)] == ["r1"] and rollouts.last_reset(tx) is None


def test_rounds_of_before_have_one_candidate_and_go_back_to_one_training(store: Store) -> None:
    migrate(store, "downgrade", "0005")
    with store.write() as tx:
        columns = "id, stage, started_at, stage_started_at, snapshot, adapter, attempts, stage_s"
        tx.execute(sa.text(f"INSERT INTO rounds ({columns}) VALUES (1, 'gate', 3, 4, 's', 'policy@v1', 0, '{{}}')"))
    migrate(store, "upgrade", "head")
    with store.write() as tx:
        there = rounds.current(tx)
        assert there is not None and (there.candidates, there.run) == ((Candidate(),), "round-1")
        rounds.update(tx, there.to(Awaiting("s", "policy@v1"), 5.0))
        for name, at in (("a", 9.0), ("b", 9.0), ("c", 2.0)):
            trainings.put(tx, TrainingRun(f"round-1-{name}", "s", at, round=1))
        trainings.put(tx, TrainingRun("by-hand", "s", 1.0))
    migrate(store, "downgrade", "0005")
    with store.read() as tx:
        left = tx.execute(sa.text("SELECT run FROM trainings ORDER BY run")).scalars().all()
        assert left == ["by-hand", "round-1-b"]
        assert tx.execute(sa.text("SELECT stage FROM rounds")).scalar_one() == "load", "it is judged again"


def test_a_newer_schema_is_used_where_it_can_be_and_told_where_it_cannot(store: Store) -> None:
    url = store.engine.url.render_as_string(hide_password=False)
    with store.write() as tx:
        tx.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    open_store(url).close()
    with store.write() as tx:
        tx.execute(sa.text("UPDATE compatibility SET oldest = '9000'"))
    with pytest.raises(ValueError, match=r"schema is 9999, of a newer kto_ray.*run the newer version"):
        open_store(url)


def test_a_test_that_is_paused_has_its_hours_from_the_migration_on(store: Store) -> None:
    migrate(store, "downgrade", "0004")
    insert = (
        "INSERT INTO rollouts (id, champion, challenger, salt, stage, weight, status, started_at, stage_started_at) "
        "VALUES (:id, 'policy@base', 'policy@v1', 's', 1, 0.5, :status, 1, 2)"
    )
    with store.write() as tx:
        for status in ("running", "paused"):
            tx.execute(sa.text(insert), {"id": status, "status": status})
    before = time.time()
    migrate(store, "upgrade", "head")
    with store.read() as tx:
        paused, running = rollouts.get(tx, "paused"), rollouts.get(tx, "running")
    assert paused is not None and paused.status_at is not None and before <= paused.status_at <= time.time()
    assert running is not None and (running.status_at, running.asked) == (None, ())


def test_a_test_that_goes_on_is_guarded_by_what_it_began_with(store: Store) -> None:
    """Of those who are in it, nobody will know what they did; what is counted of new ones is their own."""
    migrate(store, "downgrade", "0005")
    new = ("guards", "max_style_rise", "long_tokens")
    rules = {name: value for name, value in RolloutSection().model_dump(mode="json").items() if name not in new}
    with store.write() as tx:
        tx.execute(
            sa.text(
                "INSERT INTO rollouts (id, champion, challenger, salt, stage, weight, status, started_at, "
                "stage_started_at, rules) VALUES ('runs', 'policy@base', 'policy@v1', 's', 1, 0.5, 'running', 1, 2, "
                ":rules)"
            ),
            {"rules": json.dumps(rules)},
        )
        tx.execute(
            sa.text(
                'INSERT INTO trials (rollout, stage, "user", challenger, known, first_at, first_seq) VALUES '
                "('runs', 1, 'ann', :yes, :yes, 3, 1)"
            ),
            {"yes": True},
        )
        tx.execute(
            sa.text("INSERT INTO exposures (rollout, stage, challenger, users, known) VALUES ('runs', 1, :yes, 1, 1)"),
            {"yes": True},
        )
    migrate(store, "upgrade", "head")
    with store.read() as tx:
        runs = rollouts.live(tx)
        assert runs is not None
        assert rules_of(RolloutSection(max_style_rise=0.3), runs).guards == (
            "failed",
            "aborted",
            "cut_off",
            "slow",
        )
        assert not trials.due(tx, runs, 1e12)
        found = trials.standing(tx, runs)
        assert (found.challenger.known, found.challenger.observed) == (1, 0)
        [part] = trials.history(tx, "runs", 1)
        assert (part.react_by, part.reactions) == (None, None)


def test_who_goes_back_finds_rules_that_it_knows_and_no_holdback_that_it_does_not(store: Store) -> None:
    rules = RolloutSection()
    began = machine.start(rules, "policy@base", "policy@v1", "runs", "salt", 0.005, 1.0)
    on_base = base.start(rules, "policy@base", "on-base", "salt", 1.0)
    assert on_base is not None
    with store.write() as tx:
        for state in (began, on_base):
            rollouts.put(tx, state)
        completions.insert(tx, replace(completion("c", user="ann"), holdback="on-base"))
        assert tx.execute(sa.text("SELECT count(*) FROM arrivals")).scalar_one() == 1
    migrate(store, "downgrade", "0005")
    with store.read() as tx:
        query = sa.text("SELECT id, status, rules FROM rollouts ORDER BY id").columns(rules=sa.JSON)
        gone, runs = tx.execute(query).all()
        assert (gone.id, gone.status, runs.status) == ("on-base", "aborted", "running")
        new = {"guards", "max_style_rise", "long_tokens", "max_detectable", "base_holdback"}
        assert began.rules is not None and set(runs.rules) == set(began.rules) - new
        assert tx.execute(sa.text("SELECT count(*) FROM arrivals")).scalar_one() == 0
    migrate(store, "upgrade", "head")
    with store.read() as tx:
        assert rollouts.live(tx, RolloutKind.BASE) is None, "another begins"
