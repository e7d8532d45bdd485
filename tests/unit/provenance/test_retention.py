"""What is old goes, a step at a time, and comes back when it is asked for; nothing is lost where a step fails."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kto_ray.config import Config
from kto_ray.config.retention import RetentionSection
from kto_ray.data import archive, row_index
from kto_ray.data.manifest import load_manifest
from kto_ray.data.shards import verified
from kto_ray.data.snapshot import read_split
from kto_ray.data.tombstone import Purged
from kto_ray.provenance import retention
from kto_ray.provenance.erasure import erase
from kto_ray.provenance.lineage import lineage
from kto_ray.provenance.retention import DAY_S, START, Kept, beyond, due, keep
from kto_ray.records.completions import Completion
from kto_ray.records.erasure import Subject
from kto_ray.records.evaluation import GateDecision
from kto_ray.records.requests import Act, Done, Request
from kto_ray.records.rollouts import RolloutState, RolloutStatus
from kto_ray.records.rounds import Candidate, Training, Tried
from kto_ray.records.users import user_hash
from kto_ray.store import (
    Store,
    adapters,
    archives,
    completions,
    feedback,
    labels,
    requests,
    rollouts,
    rounds,
    snapshots,
    tallies,
)
from kto_ray.store.archives import Old
from kto_ray.store.custody import Busy, Lost, Work, custody
from kto_ray.store.schema import leases
from tests.support.provenance import adapter, completion, seal, thumb

NOW = 1000 * DAY_S
TEST = RolloutState("test", "policy@base", "policy@v1-aaaaaa", "s", 0, 0.5, RolloutStatus.RUNNING, 1.0, 1.0)


def days(ago: float) -> float:
    return NOW - ago * DAY_S


def config(folder: Path, **changes: Any) -> Config:
    return Config.model_validate({"salt": "s", "home": str(folder / "home"), "retention": changes})


@pytest.mark.parametrize(
    ("changes", "goes"),
    [
        ({}, []),
        ({"completions_days": 30}, ["silent"]),
        ({"judged_days": 30}, ["judged"]),
        ({"completions_days": 30, "judged_days": 90}, ["silent"]),
    ],
)
def test_what_is_due(changes: dict[str, float], goes: list[str]) -> None:
    found = [
        Old("silent", days(40), False, False, None),
        Old("judged", days(40), False, True, "an older test"),
        Old("recent", days(10), False, False, None),
        Old("gone", days(40), True, False, None),
        Old("in-the-test", days(40), False, False, "test"),
    ]
    assert [old.id for old in due(RetentionSection(**changes), found, NOW, "test")] == goes


def test_the_newest_and_the_needed_are_kept() -> None:
    every = ["a", "b", "c", "d"]
    assert beyond(None, every, ()) == []
    assert beyond(2, every, ("b",)) == ["a"]
    assert beyond(9, every, ()) == []


@pytest.fixture
def filled(store: Store) -> Store:
    """Three old completions of which one is judged, and a new one."""
    with store.write() as tx:
        for name, at in (("c1", days(50)), ("c2", days(40)), ("c3", days(40)), ("new", days(1))):
            completions.insert(tx, replace(spoken(name), created_at=at))
        feedback.record(tx, thumb("f3", "c3", "ann"))
    return store


def spoken(name: str) -> Completion:
    return replace(
        completion(name, "ann"),
        text=f"I say {name}",
        params={"temperature": 0.5},
        prompt_ids=b"\x01\x00\x00\x00",
        answer_ids=b"\x02\x00\x00\x00",
        reasoning="because",
        tool_calls=({"function": {"name": "look"}},),
        stop_reason="STOP",
    )


def whole(store: Store, name: str) -> Completion | None:
    """A completion, from its archive where it is in one."""
    with store.read() as tx:
        found = completions.get(tx, name)
        kept = archives.get(tx, found.archive) if found is not None else None
    return archive.restored(found, kept) if found is not None and kept is not None else found


def files(settings: Config) -> list[str]:
    return sorted(str(f) for f in Path(settings.home).rglob("*") if f.is_file())


def test_old_texts_move_to_an_archive_and_are_read_from_there(filled: Store, tmp_path: Path) -> None:
    settings = config(tmp_path, completions_days=30)
    before = {name: whole(filled, name) for name in ("c1", "c2", "c3", "new")}
    assert keep(filled, settings, NOW) == Kept(completions=2)
    with filled.read() as tx:
        skeletons = [completions.get(tx, name) for name in ("c1", "c2")]
        [made] = archives.every(tx)
    for left in skeletons:
        assert left is not None and (left.archive, left.text, left.messages, left.params) == (made.id, "", (), {})
        assert [left.prompt_ids, left.answer_ids, left.reasoning, left.stop_reason] == [None] * 4
        assert (left.user, left.tool_calls) == ("ann", ())
    assert (made.completions, made.oldest_at, made.newest_at) == (2, days(50), days(40))
    assert files(settings) == [made.uri]
    for name, then in before.items():
        now = whole(filled, name)
        assert now is not None and replace(now, archive=None) == then
        assert (now.archive is not None) == (name in ("c1", "c2"))
    assert keep(filled, settings, NOW) == Kept(), "once"


def test_a_judged_text_leaves_training_and_is_counted(filled: Store, tmp_path: Path) -> None:
    with filled.read() as tx:
        assert archives.left_out(tx, 10**6) == 0
    assert keep(filled, config(tmp_path, judged_days=30), NOW) == Kept(completions=1)
    with filled.write() as tx:
        assert labels.of(tx, "c3") == [] and labels.examples(tx, ("", None)) == []
        assert tallies.total(tx).up == 0
        assert (archives.left_out(tx, 10**6), archives.left_out(tx, 1)) == (1, 0)
        feedback.record(tx, thumb("late", "c3", "bob"))
        assert labels.of(tx, "c3") == [], "nobody can judge what is not there to be learnt"


def test_votes_of_a_running_test_stay(filled: Store, tmp_path: Path) -> None:
    with filled.write() as tx:
        rollouts.put(tx, TEST)
        completions.insert(tx, replace(completion("vote", "bob", rollout="test"), created_at=days(99)))
    assert keep(filled, config(tmp_path, completions_days=30), NOW).completions == 2
    with filled.write() as tx:
        rollouts.put(tx, replace(TEST, status=RolloutStatus.ABORTED))
    assert keep(filled, config(tmp_path, completions_days=30), NOW).completions == 1


def test_many_go_in_pages_and_small_archives(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PAGE", 7)
    monkeypatch.setattr(retention, "ROWS", 3)
    with store.write() as tx:
        for i in range(20):
            completions.insert(tx, replace(spoken(f"c{i:02}"), created_at=days(40)))
    settings = config(tmp_path, completions_days=30)
    first = keep(store, settings, NOW, until=0.0)  # no time for more than a page
    assert first == Kept(completions=7, after=(days(40), "c06"))
    assert keep(store, settings, NOW, after=first.after) == Kept(completions=13, after=START)
    with store.read() as tx:
        sizes = [made.completions for made in archives.every(tx)]
    assert sorted(sizes) == sorted([3, 3, 1, 3, 3, 1, 3, 3])
    for i in range(20):
        found = whole(store, f"c{i:02}")
        assert found is not None and replace(found, archive=None) == replace(spoken(f"c{i:02}"), created_at=days(40))


def test_a_full_disk_loses_nothing(filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path, completions_days=30)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", full)
        keep(filled, settings, NOW)
    assert files(settings) == []
    assert keep(filled, settings, NOW) == Kept(completions=2)


def test_killed_between_file_and_rows_nothing_is_lost_or_doubled(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path, completions_days=30)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("kto_ray.store.archives.insert", die)
        keep(filled, settings, NOW)
    [left] = files(settings)
    before = whole(filled, "c1")
    assert before is not None and before.archive is None and before.text == "I say c1"
    assert keep(filled, settings, NOW) == Kept(completions=2)
    with filled.read() as tx:
        [made] = archives.every(tx)
    assert files(settings) == [made.uri] != [left]


def test_what_is_judged_on_its_way_stays(filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path, completions_days=30)
    write = archive.write

    def judged_meanwhile(*arguments: Any) -> Any:
        with filled.write() as tx:
            feedback.record(tx, thumb("meanwhile", "c1", "ann"))
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(archive, "write", judged_meanwhile)
        assert keep(filled, settings, NOW) == Kept()
    assert files(settings) == []
    with filled.read() as tx:
        assert len(labels.of(tx, "c1")) == 1
    assert keep(filled, settings, NOW) == Kept(completions=1)


def test_who_is_erased_leaves_archives_too(filled: Store, tmp_path: Path) -> None:
    settings = config(tmp_path, completions_days=30)
    with filled.write() as tx:
        completions.insert(tx, replace(spoken("of-bob"), user="bob", created_at=days(45)))
    keep(filled, settings, NOW)
    done = erase(filled, settings, Subject("completion", "c1"))
    assert done.archived == 1 and whole(filled, "c1") is None
    with filled.read() as tx:
        [made] = archives.every(tx)
    assert made.completions == 2 and files(settings) == [made.uri]
    bob = whole(filled, "of-bob")
    assert bob is not None and bob.text == "I say of-bob"
    assert erase(filled, settings, Subject("user", "ann")).archived == 1
    bob = whole(filled, "of-bob")
    assert bob is not None and bob.text == "I say of-bob"
    assert erase(filled, settings, Subject("user", "bob")).archived == 1
    with filled.read() as tx:
        assert archives.every(tx) == [] and files(settings) == []


def test_a_damaged_archive_is_told(filled: Store, tmp_path: Path) -> None:
    settings = config(tmp_path, completions_days=30)
    keep(filled, settings, NOW)
    [path] = files(settings)
    Path(path).write_bytes(b"other")
    with pytest.raises(ValueError, match="is damaged"):
        whole(filled, "c1")
    with pytest.raises(ValueError, match="is damaged"):
        erase(filled, settings, Subject("user", "ann"))
    Path(path).unlink()
    with pytest.raises(ValueError, match="is missing"):
        whole(filled, "c1")


def test_nothing_is_archived_while_a_snapshot_is_sealed(filled: Store, tmp_path: Path) -> None:
    with custody(filled, Work.SEALING), pytest.raises(Busy):
        keep(filled, config(tmp_path, completions_days=30), NOW)


def stands_still(store: Store, config: Config, patch: pytest.MonkeyPatch, what: str) -> None:
    """The process of the next `archive.write` or `without` stands still when its file is there, while zoe is erased."""
    act = getattr(archive, what)

    def still(*arguments: Any) -> Any:
        patch.setattr(archive, what, act)
        made = act(*arguments)
        with store.write() as tx:
            tx.execute(leases.update().values(expires_at=leases.c.expires_at - 60))
        erase(store, config, Subject("user", "zoe"))
        return made

    patch.setattr(archive, what, still)


def test_who_stood_still_while_another_swept_archives_nothing(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path, completions_days=30)
    with filled.write() as tx:
        completions.insert(tx, replace(spoken("of-zoe"), user="zoe", created_at=days(1)))
    stands_still(filled, settings, monkeypatch, "write")
    with pytest.raises(Lost, match="archiving stood still"):
        keep(filled, settings, NOW)
    assert whole(filled, "c1") == replace(spoken("c1"), created_at=days(50)) and files(settings) == []
    assert keep(filled, settings, NOW) == Kept(completions=2)
    assert whole(filled, "c1") is not None


def test_who_stood_still_while_another_erased_brings_nothing_back(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path, completions_days=30)
    with filled.write() as tx:
        for user in ("bob", "zoe"):
            completions.insert(tx, replace(spoken(f"of-{user}"), user=user, created_at=days(45)))
    keep(filled, settings, NOW)
    stands_still(filled, settings, monkeypatch, "without")
    with pytest.raises(Busy, match="erasing stood still"):
        erase(filled, settings, Subject("user", "ann"))
    bob = whole(filled, "of-bob")
    assert bob is not None and bob.text == "I say of-bob"
    assert erase(filled, settings, Subject("user", "ann")).archived == 2
    with filled.read() as tx:
        [made] = archives.every(tx)
    assert made.completions == 1 and files(settings) == [made.uri]


@pytest.fixture
def learnt(store: Store, tmp_path: Path) -> dict[int, str]:
    """Four versions, each with a snapshot; v2 is the champion. URIs of the snapshots."""
    uris = {}
    with store.write() as tx:
        for number in range(1, 5):
            manifest, uris[number] = seal(tmp_path, {"train": [("c1", "ann")]}, number)
            snapshots.insert(tx, manifest, uris[number])
            weights = tmp_path / f"v{number}"
            weights.mkdir()
            for name in ("adapter_model.safetensors", "manifest.json"):
                (weights / name).write_bytes(b"x")
            adapters.insert(tx, replace(adapter(number, manifest.id, None), uri=str(weights)))
        adapters.set_alias(tx, "champion", "policy@v2-aaaaaa", 4.0)
    return uris


def test_old_snapshots_lose_their_rows_and_keep_their_lineage(
    store: Store, learnt: dict[int, str], tmp_path: Path
) -> None:
    settings = config(tmp_path, snapshots=1)
    assert keep(store, settings, NOW).snapshots == 2
    assert keep(store, settings, NOW).snapshots == 0, "once"
    for number in (1, 3):
        left = {path.name for path in Path(learnt[number]).iterdir()}
        assert left == {"manifest.json", "purged.json", "rows.parquet"}
        with pytest.raises(Purged, match=r"expired on .*its manifest is kept, its rows are deleted"):
            read_split(learnt[number], load_manifest(learnt[number]), "train")
    for number in (2, 4):
        assert all(verified(learnt[number], shard) for shard in load_manifest(learnt[number]).shards)
    told: Any = lineage(store, settings, "ann")
    assert [(s.rows, s.purged_at) for s in told.snapshots] == [({"train": 1}, at) for at in (NOW, None, NOW, None)]
    assert len(told.adapters) == 4 and told.unknown == ()
    erase(store, settings, Subject("user", "ann"))
    with pytest.raises(Purged, match="purged of a user"):
        row_index.held(learnt[1], load_manifest(learnt[1]), user_hash("s", "ann"), [])
    assert not Path(learnt[1], "rows.parquet").exists()


def test_the_snapshot_of_a_round_in_progress_stays(store: Store, learnt: dict[int, str], tmp_path: Path) -> None:
    with store.write() as tx:
        rounds.update(tx, rounds.insert(tx, 5.0).to(Training(load_manifest(learnt[1]).id), 6.0))
    assert keep(store, config(tmp_path, snapshots=1), NOW).snapshots == 1


def test_old_weights_go(store: Store, learnt: dict[int, str], tmp_path: Path) -> None:
    settings = config(tmp_path, adapters=1)
    assert (keep(store, settings, NOW).adapters, keep(store, settings, NOW).adapters) == (2, 0)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("v*/*") if p.suffix == ".safetensors")
    assert left == ["v2/adapter_model.safetensors", "v4/adapter_model.safetensors"]
    assert (tmp_path / "v1" / "manifest.json").exists()


def test_the_weights_of_a_candidate_stay_while_its_round_may_load_it_again(
    store: Store, learnt: dict[int, str], tmp_path: Path
) -> None:
    with store.write() as tx:
        first = adapters.every(tx)[0].name
        passed = Tried(first, GateDecision.PROMOTE_TO_CANARY, "sane", 0.05)
        begun = rounds.insert(tx, 5.0, (Candidate("kto", {}, passed), Candidate("apo")))
        rounds.update(tx, begun.to(Training(load_manifest(learnt[1]).id), 6.0))
    assert keep(store, config(tmp_path, adapters=1), NOW).adapters == 1
    assert (tmp_path / "v1" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "v3" / "adapter_model.safetensors").exists()


def test_old_training_folders_go_but_not_that_of_the_round(store: Store, tmp_path: Path) -> None:
    settings = config(tmp_path, training_days=30)
    now = time.time()
    for run, at in (("round-1", now - 40 * DAY_S), ("cli-a-1", now - 40 * DAY_S), ("cli-b-2", now)):
        file = tmp_path / "home" / "training" / run / "checkpoint" / "weights"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x")
        os.utime(file, (at, at))
    with store.write() as tx:
        rounds.update(tx, rounds.insert(tx, 5.0).to(Training("s"), 6.0))
    assert keep(store, settings, now).trainings == 1
    assert sorted(p.name for p in (tmp_path / "home" / "training").iterdir()) == ["cli-b-2", "round-1"]


def test_answered_requests_go(store: Store, tmp_path: Path) -> None:
    with store.write() as tx:
        for at in (days(40), days(40), days(1)):
            requests.answer(tx, requests.ask(tx, Act.RUN, at), Done("round 1 begins"), at)
        waits = requests.ask(tx, Act.RUN, days(40))
    assert keep(store, config(tmp_path, requests_days=30), NOW).requests == 2
    with store.read() as tx:
        assert requests.asked(tx) == [Request(waits, Act.RUN)] and requests.answered(tx, 3) == Done("round 1 begins")
