"""A user taken out of a real store and of real shards, and nothing else with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kto_ray.config import Config
from kto_ray.data.manifest import load_manifest
from kto_ray.data.shards import verified
from kto_ray.data.snapshot import read_split
from kto_ray.data.tombstone import Purged, Tombstone, read_tombstone
from kto_ray.provenance.erasure import Reach, Unknown, erase, reach_of, to_replace
from kto_ray.provenance.lineage import lineage
from kto_ray.records.completions import ExternalRef
from kto_ray.records.erasure import AffectedAdapter, AffectedRound, ErasedRows, Subject
from kto_ray.records.feedback import Feedback, FeedbackKind
from kto_ray.records.requests import Act
from kto_ray.records.rounds import Awaiting, Reloading, Training
from kto_ray.store import (
    Store,
    adapters,
    completions,
    feedback,
    labels,
    requests,
    rounds,
    sequence,
    snapshots,
    tallies,
    users,
)
from kto_ray.store.custody import Busy, Lost, Work, custody
from kto_ray.store.tallies import Tally
from tests.support.provenance import adapter, completion, seal, thumb


def edit(name: str, completion_id: str, user: str | None) -> Feedback:
    return Feedback(name, 2.0, FeedbackKind.EDIT, completion_id, user=user, text="better")


@pytest.fixture
def filled(store: Store) -> Store:
    """ann and bob each asked once; each judged both answers, and each their own once more without a name; ann has one
    event pending."""
    elsewhere = ExternalRef("web", "chat", "1")
    with store.write() as tx:
        completions.insert(tx, completion("of-ann", "ann"))
        completions.insert(tx, completion("of-bob", "bob"))
        for event in (
            thumb("ann-on-ann", "of-ann", "ann"),
            edit("ann-edits-bob", "of-bob", "ann"),
            replace(thumb("ann-pending", "x", "ann"), completion_id=None, external=elsewhere),
            thumb("bob-on-ann", "of-ann", "bob"),
            edit("somebody-on-ann", "of-ann", None),
            thumb("bob-on-bob", "of-bob", "bob"),
            thumb("somebody-on-bob", "of-bob", None),
        ):
            feedback.record(tx, event)
    return store


def rows(store: Store, subject: Subject) -> ErasedRows:
    with store.write() as tx:
        return users.erase_some(tx, subject)


ANN, BOB = Subject("user", "ann"), Subject("user", "bob")


def test_erasing_takes_the_users_rows_and_no_others(filled: Any) -> None:
    with filled.read() as tx:
        assert users.rows_of(tx, ANN) == ErasedRows(completions=1, feedback=4, feedback_of_others=1)
    assert rows(filled, ANN) == ErasedRows(1, 2, 1), "what she asked for, with all that was said of it"
    assert rows(filled, ANN) == ErasedRows(0, 2, 0), "what she said elsewhere"
    assert rows(filled, ANN) == rows(filled, Subject("user", "nobody")) == users.NOTHING
    with filled.read() as tx:
        assert completions.get(tx, "of-ann") is None and completions.get(tx, "of-bob") is not None
        assert {e.id for e in feedback.events(tx, "of-bob")} == {"bob-on-bob", "somebody-on-bob"}
        assert tallies.total(tx) == Tally(completions=1, stored=2, up=1, came=1)


def test_erasing_one_completion_takes_what_was_said_of_it(filled: Any) -> None:
    one = Subject("completion", "of-ann")
    with filled.read() as tx:
        found = users.rows_of(tx, one)
    assert rows(filled, one) == found == ErasedRows(completions=1, feedback=0, feedback_of_others=3)
    assert rows(filled, one) == users.NOTHING
    with filled.read() as tx:
        assert completions.get(tx, "of-ann") is None
        assert len(feedback.events(tx, "of-bob")) == 3, "hers too"


def test_feedback_that_waits_for_a_completion_goes_by_its_id(store: Store) -> None:
    with store.write() as tx:
        feedback.record(tx, thumb("early", "not-yet", "ann"))
    assert rows(store, Subject("completion", "not-yet")) == ErasedRows(0, 0, 1)
    with store.read() as tx:
        assert tallies.total(tx) == Tally()


def test_rows_go_in_small_transactions(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "CHUNK", 4)
    with store.write() as tx:
        completions.insert(tx, completion("of-bob", "bob"))
        for i in range(10):
            completions.insert(tx, completion(f"c{i}", "ann"))
            feedback.record(tx, thumb(f"f{i}", "of-bob", "ann"))
    found = []
    while (some := rows(store, ANN)) != users.NOTHING:
        found.append((some.completions, some.feedback))
    assert found == [(4, 0), (4, 0), (2, 0), (0, 4), (0, 4), (0, 2)]
    with store.read() as tx:
        assert tallies.total(tx) == Tally(completions=1)


def test_counts_and_labels_stop_at_a_number(filled: Any) -> None:
    with filled.write() as tx:
        before = sequence.last(tx)
        feedback.record(tx, replace(thumb("late", "of-bob", "bob"), created_at=3.0, value=False))
    with filled.read() as tx:
        assert (feedback.left_out(tx).newest_at, feedback.left_out(tx).newest_seq) == (3.0, before + 1)
        assert feedback.left_out(tx, before) == feedback.LeftOut(
            0, 0, 1, newest_at=2.0, newest_seq=before, not_theirs=2
        )
        events = {c.id: [e.id for e in log] for c, log in labels.with_feedback(tx, "", None, until=before)}
        assert "late" not in events["of-bob"] and len(events["of-bob"]) == 3
        assert labels.with_feedback(tx, "", None, until=2) == []


@pytest.fixture
def learnt(filled: Any, tmp_path: Path) -> tuple[Store, Config]:
    """v1 learnt from bob, v2 from ann as well, v3 from bob's judgement of an answer to ann, v4 again from bob."""
    config = Config(salt="s", home=str(tmp_path / "home"))
    rows = [[("of-bob", "bob")], [("of-bob", "bob"), ("of-bob", "ann")], [("of-ann", "bob")], [("of-bob", "bob")]]
    with filled.write() as tx:
        for number, held in enumerate(rows, 1):
            manifest, uri = seal(tmp_path, {"train": held}, number)
            snapshots.insert(tx, manifest, uri)
            adapters.insert(tx, adapter(number, manifest.id, None))
        adapters.set_alias(tx, "champion", "policy@v2-aaaaaa", 4.0)
    return filled, config


def snapshot_of(store: Store, version: int) -> tuple[str, str]:
    with store.read() as tx:
        found = adapters.get(tx, f"policy@v{version}-aaaaaa")
        assert found is not None and found.snapshot is not None
        uri = snapshots.uri_of(tx, found.snapshot)
        assert uri is not None
        return found.snapshot, uri


def told(store: Store, config: Config, name: str) -> Any:
    return lineage(store, config, name)


def reach(store: Store, config: Config, subject: Subject) -> Reach:
    with store.read() as tx:
        return reach_of(tx, config, subject)


def asked(store: Store) -> list[Any]:
    with store.read() as tx:
        return [request.act for request in requests.asked(tx)]


def test_an_erasure_takes_the_shards_that_hold_the_user(learnt: Any) -> None:
    store, config = learnt
    before = reach(store, config, ANN)
    assert [v.name for v in before.adapters] == ["policy@v2-aaaaaa", "policy@v3-aaaaaa"]
    assert [v.name for v in to_replace(before)] == ["policy@v2-aaaaaa"]  # the one in service
    assert [v.name for v in to_replace(replace(before, aliases={}))] == ["policy@v3-aaaaaa"]  # or the newest
    done = erase(store, config, ANN)
    assert replace(done, remains=()) == before.told() and bool(done.remains) != store.sqlite
    assert done.adapters[0] == AffectedAdapter("policy@v2-aaaaaa", ("champion",))
    assert asked(store) == [], "the config says to list what is affected"
    for version in (1, 4):
        _, uri = snapshot_of(store, version)
        assert all(verified(uri, shard) for shard in load_manifest(uri).shards)
    for version in (2, 3):
        name, uri = snapshot_of(store, version)
        assert sorted(p.name for p in Path(uri).iterdir()) == ["manifest.json", "purged.json"]
        assert load_manifest(uri).id == name
        with pytest.raises(Purged, match=r"purged of a user on 2.*its rows are deleted"):
            read_split(uri, load_manifest(uri), "train")


def test_one_completion_is_erased_with_the_snapshots_that_hold_it(learnt: Any) -> None:
    store, config = learnt
    one = Subject("completion", "of-ann")
    done = erase(store, config, one)
    third = snapshot_of(store, 3)[0]
    assert [held.snapshot for held in done.snapshots] == [third] and done.rows == ErasedRows(1, 0, 3)
    again = erase(store, config, one)
    assert [held.snapshot for held in again.snapshots] == [third] and again.rows == users.NOTHING
    grave = read_tombstone(snapshot_of(store, 3)[1])
    assert grave is not None and (grave.user_hash, grave.completion) == (None, "of-ann")
    assert reach(store, config, BOB).unknown == (third,)
    with pytest.raises(Unknown, match="completion 'none' is in neither the store nor a snapshot"):
        erase(store, config, Subject("completion", "none"))


def test_what_started_from_an_affected_adapter_is_affected(learnt: Any) -> None:
    store, config = learnt
    with store.write() as tx:
        adapters.insert(tx, replace(adapter(5, "s", None), reference="policy@v2-aaaaaa"))
    assert [v.number for v in reach(store, config, ANN).adapters] == [2, 3, 5]


@pytest.mark.parametrize(("after", "acts"), [("retire", [Act.FORGET]), ("retrain", [Act.RUN])])
def test_the_config_says_what_becomes_of_affected_adapters(learnt: Any, after: str, acts: list[Act]) -> None:
    store, config = learnt
    chosen = Config.model_validate({**config.model_dump(), "retention": {"after_erasure": after}})
    done = erase(store, chosen, ANN)
    assert asked(store) == acts and len(done.asked) == 1
    with store.write() as tx:
        adapters.set_alias(tx, "champion", None, 5.0)
    erase(store, chosen, ANN)
    assert asked(store) == acts, "nobody is served by an affected one any more"


@pytest.mark.parametrize("state", [Training, Reloading, Awaiting])
def test_a_round_in_progress_is_ended_and_begun_anew(learnt: Any, state: Any) -> None:
    store, config = learnt
    with store.write() as tx:
        snapshot = snapshot_of(store, 2)[0]
        before_users = Training(snapshot) if state is Training else state(snapshot, "policy@v9")
        rounds.update(tx, rounds.insert(tx, 5.0).to(before_users, 6.0))
    done = erase(store, config, ANN)
    assert done.rounds == (AffectedRound(1, before_users.stage.value),)
    assert asked(store) == [Act.FORGET, Act.RUN]


def test_a_round_on_another_snapshot_goes_on(learnt: Any) -> None:
    store, config = learnt
    with store.write() as tx:
        rounds.update(tx, rounds.insert(tx, 5.0).to(Training(snapshot_of(store, 1)[0]), 6.0))
    assert erase(store, config, ANN).rounds == () and asked(store) == []


def test_what_is_sealed_meanwhile_is_never_published(learnt: Any) -> None:
    store, config = learnt
    with store.write() as tx:
        rounds.insert(tx, 5.0)
    with custody(store, Work.SEALING) as sealing:
        assert erase(store, config, ANN).rounds == (AffectedRound(1, "snapshot"),)
        with pytest.raises(Lost):
            sealing.publish()
    assert asked(store) == [], "sealing begins anew by itself"


def test_an_erasure_waits_for_what_is_published(learnt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, config = learnt
    monkeypatch.setattr("kto_ray.provenance.erasure.PATIENCE_S", 0.0)
    with custody(store, Work.SEALING) as sealing:
        sealing.publish()
        with pytest.raises(Busy):
            erase(store, config, ANN)
    assert read_tombstone(snapshot_of(store, 2)[1]) is None


def test_a_purged_snapshot_is_told(learnt: Any) -> None:
    store, config = learnt
    erase(store, config, ANN)
    second, third = snapshot_of(store, 2)[0], snapshot_of(store, 3)[0]
    found = told(store, config, "ann")  # the store forgot her; what learnt from her is still named
    assert (found.completions, found.feedback, found.answered_by) == ((), (), ())
    assert [(s.snapshot, s.rows) for s in found.snapshots] == [(second, {"train": 1}), (third, {"train": 1})]
    assert all(s.purged_at > 0 for s in found.snapshots)
    assert [a.adapter for a in found.adapters] == ["policy@v2-aaaaaa", "policy@v3-aaaaaa"]
    bobs = told(store, config, "bob")
    assert len(bobs.snapshots) == 2 and bobs.unknown == (second, third)
    assert told(store, config, "policy@v2-aaaaaa").purged_at > 0
    assert told(store, config, "policy@v1-aaaaaa").purged_at is None


def test_an_erasure_that_was_killed_ends_when_called_again(learnt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, config = learnt

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("kto_ray.store.users.erase_some", die)  # the shards are gone, the store's rows are not
        erase(store, config, ANN)
    again = erase(store, config, ANN)
    assert again.rows == ErasedRows(1, 4, 1) and len(again.snapshots) == len(again.adapters) == 2
    third = erase(store, config, ANN)  # nothing is left, and what was affected is still known
    assert third.rows == users.NOTHING and third.adapters == again.adapters
    with pytest.raises(Unknown, match="user 'nobody' is in neither the store nor a snapshot"):
        reach(store, config, Subject("user", "nobody"))


def test_what_killed_freezes_left_goes_too(learnt: Any) -> None:
    store, config = learnt
    snapshots = Path(config.home) / "snapshots"
    snapshots.mkdir(parents=True)
    unsaid, uri = seal(snapshots, {"train": [("of-ann", "ann")]}, 9)  # sealed, but the store was not told
    Path(uri).rename(snapshots / unsaid.id)
    for half in (snapshots / "half", Path(config.home) / "staging" / "snapshot-1"):
        half.mkdir(parents=True)
        (half / "train-00000.parquet").write_bytes(b"rows")
    erase(store, config, ANN)
    assert sorted(p.name for p in Path(config.home).rglob("*") if p.is_file()) == ["manifest.json", "purged.json"]


def test_the_refusal_travels_out_of_ray_tasks() -> None:
    import pickle

    gone = pickle.loads(pickle.dumps(Purged("u", Tombstone("h", {"train": 1}, 5.0))))
    assert "purged of a user on 1970" in str(gone) and gone.tombstone.rows == {"train": 1}
