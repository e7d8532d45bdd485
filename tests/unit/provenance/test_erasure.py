"""A user taken out of a real store and of real shards, and nothing else with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kto_ray.config import Config
from kto_ray.data.shards import verified
from kto_ray.data.snapshot import load_manifest, read_split
from kto_ray.data.tombstone import Purged, Tombstone, read_tombstone
from kto_ray.provenance.erasure import purge, reach_of, to_replace
from kto_ray.provenance.lineage import lineage
from kto_ray.records.completions import ExternalRef
from kto_ray.records.feedback import Feedback, FeedbackKind
from kto_ray.store import (
    Store,
    adapters,
    completions,
    feedback,
    labels,
    open_store,
    rounds,
    sequence,
    snapshots,
    tallies,
    users,
)
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


def test_erasing_takes_the_users_rows_and_no_others(filled: Any) -> None:
    with filled.write() as tx:
        found = users.rows_of(tx, "ann")
        assert users.erase(tx, "ann") == found == users.UserRows(completions=1, feedback=4, feedback_of_others=1)
    with filled.write() as tx:
        assert completions.get(tx, "of-ann") is None and completions.get(tx, "of-bob") is not None
        assert {e.id for e in feedback.events(tx, "of-bob")} == {"bob-on-bob", "somebody-on-bob"}
        assert users.erase(tx, "ann") == users.UserRows(0, 0, 0)
        assert users.erase(tx, "nobody") == users.UserRows(0, 0, 0)
        assert tallies.total(tx) == Tally(completions=1, stored=2, up=1, came=1)


def test_erased_text_is_overwritten_in_sqlite(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/kto.db")
    with store.write() as tx:
        completions.insert(tx, replace(completion("of-ann", "ann"), text="my secret garden"))
    with store.write() as tx:
        users.erase(tx, "ann")
    store.close()  # the last connection moves the log into the database
    assert b"my secret garden" not in b"".join(f.read_bytes() for f in tmp_path.iterdir())


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


def test_a_purge_takes_the_shards_that_hold_the_user(learnt: Any) -> None:
    store, config = learnt
    with store.read() as tx:
        before = reach_of(tx, config, "ann")
    assert [v.name for v in before.adapters] == ["policy@v2-aaaaaa", "policy@v3-aaaaaa"]
    assert [v.name for v in to_replace(before)] == ["policy@v2-aaaaaa"]  # the one in service
    assert [v.name for v in to_replace(replace(before, aliases={}))] == ["policy@v3-aaaaaa"]  # or the newest
    assert purge(store, config, "ann") == before
    for version in (1, 4):
        _, uri = snapshot_of(store, version)
        assert all(verified(uri, shard) for shard in load_manifest(uri).shards)
    for version in (2, 3):
        name, uri = snapshot_of(store, version)
        assert sorted(p.name for p in Path(uri).iterdir()) == ["manifest.json", "purged.json"]
        assert load_manifest(uri).id == name
        with pytest.raises(Purged, match=r"purged of a user on 2.*its rows are deleted"):
            read_split(uri, load_manifest(uri), "train")


def test_a_purged_snapshot_is_told(learnt: Any) -> None:
    store, config = learnt
    purge(store, config, "ann")
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


def test_a_purge_that_was_killed_ends_when_called_again(learnt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, config = learnt

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("kto_ray.store.users.erase", die)  # the shards are gone, the store's rows are not
        purge(store, config, "ann")
    again = purge(store, config, "ann")
    assert again.rows == users.UserRows(1, 4, 1) and len(again.snapshots) == len(again.adapters) == 2
    third = purge(store, config, "ann")  # nothing is left, and what was affected is still known
    assert third.rows == users.UserRows(0, 0, 0) and third.adapters == again.adapters
    with store.read() as tx, pytest.raises(ValueError, match="'nobody' is in neither the store nor a snapshot"):
        reach_of(tx, config, "nobody")


def test_what_killed_freezes_left_goes_too(learnt: Any) -> None:
    store, config = learnt
    snapshots = Path(config.home) / "snapshots"
    snapshots.mkdir(parents=True)
    unsaid, uri = seal(snapshots, {"train": [("of-ann", "ann")]}, 9)  # sealed, but the store was not told
    Path(uri).rename(snapshots / unsaid.id)
    for half in (snapshots / "half", Path(config.home) / "staging" / "snapshot-1"):
        half.mkdir(parents=True)
        (half / "train-00000.parquet").write_bytes(b"rows")
    purge(store, config, "ann")
    assert sorted(p.name for p in Path(config.home).rglob("*") if p.is_file()) == ["manifest.json", "purged.json"]


def test_no_purge_while_a_snapshot_is_sealed(learnt: Any) -> None:
    store, config = learnt
    with store.write() as tx:
        rounds.insert(tx, 5.0)
    with pytest.raises(ValueError, match="round 1 is sealing a snapshot"):
        purge(store, config, "ann")
    assert read_tombstone(snapshot_of(store, 2)[1]) is None


def test_the_refusal_travels_out_of_ray_tasks() -> None:
    import pickle

    gone = pickle.loads(pickle.dumps(Purged("u", Tombstone("h", {"train": 1}, 5.0))))
    assert "purged of a user on 1970" in str(gone) and gone.tombstone.rows == {"train": 1}
