"""Take a user, or one completion, out of all that is kept, while the service runs; and train again what learnt from it.

With a completion go the later turns that quote it. Rows leave the store and its files, texts leave archives and spools,
and affected snapshots lose their shards. Adapters keep their weights: one may be answering at this moment. The loop is
asked to let go of what it holds of a snapshot that is gone, and the config says whether affected adapters go on serving
(`retention.after_erasure`). What replaces one is trained on the feedback up to the same number in the
order of the store, as it stands now: see `kto_ray.data.seal`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import sqlalchemy as sa

from kto_ray.adapters.publish import as_trained
from kto_ray.config import Config
from kto_ray.data import archive
from kto_ray.data.manifest import load_manifest
from kto_ray.data.seal import seal
from kto_ray.data.tombstone import Tombstone, purge_rows, read_tombstone
from kto_ray.paths import SNAPSHOT_MANIFEST, Paths, filesystem, join
from kto_ray.provenance import spooled
from kto_ray.provenance.later import quoting
from kto_ray.provenance.lineage import Held, held_rows
from kto_ray.provenance.taint import learnt_from
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.erasure import AffectedAdapter, AffectedRound, ErasedRows, Erasure, Subject
from kto_ray.records.lineage import RowsIn
from kto_ray.records.requests import Act
from kto_ray.records.rounds import Awaiting, Judging, Loading, Reloading, Round, Sealing, Training
from kto_ray.records.snapshots import SnapshotManifest
from kto_ray.records.users import user_hash
from kto_ray.store import Store, adapters, archives, requests, rounds, snapshots, users
from kto_ray.store.custody import Custody, Work, custody
from kto_ray.store.scrub import scrub

PATIENCE_S = 60.0  # that one erasure waits for another, and for a snapshot that is being published


class Unknown(ValueError):
    """Nothing is kept of a user or a completion."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a user or a completion reaches. `completions` are the ids of what goes, and `later` those of the turns
    that quote a completion and go too; `adapters` learnt from one of `snapshots`, oldest first; `unknown` are the
    snapshots purged for another's sake before, which cannot be asked any more."""

    subject: Subject
    rows: ErasedRows
    completions: Sequence[str]
    later: tuple[str, ...]
    snapshots: tuple[Held, ...]
    adapters: tuple[AdapterVersion, ...]
    aliases: Mapping[str, str]  # alias -> adapter name
    round: Round | None  # in progress, and sealing or with one of `snapshots`
    unknown: tuple[str, ...]

    def served_as(self, version: AdapterVersion) -> list[str]:
        return [alias for alias, name in self.aliases.items() if name == version.name]

    def told(self, archived: int = 0, asked: Sequence[str] = (), remains: Sequence[str] = ()) -> Erasure:
        rounds = () if self.round is None else (AffectedRound(self.round.id, self.round.stage.value),)
        return Erasure(
            kind=self.subject.kind,
            id=self.subject.name,
            rows=self.rows,
            archived=archived,
            snapshots=tuple(RowsIn(h.snapshot, dict(h.rows or {}), h.purged_at) for h in self.snapshots),
            adapters=tuple(AffectedAdapter(v.name, tuple(self.served_as(v))) for v in self.adapters),
            rounds=rounds,
            later=self.later,
            unknown=self.unknown,
            asked=tuple(asked),
            remains=tuple(remains),
        )


def reach_of(tx: sa.Connection, config: Config, subject: Subject) -> Reach:
    """What an erasure takes, or has taken before: one that was killed is found again, and ends.

    Raises:
        Unknown: neither the store nor a snapshot knows the user or the completion.
        ValueError: an archive that may hold a turn that quotes the completion is damaged.
    """
    asked = users.completions_of(tx, subject)
    later = quoting(tx, subject.name) if subject.kind == "completion" else ()
    found = _sum(users.rows_of(tx, each) for each in (*map(_completion, later), subject))
    ids = asked if subject.kind == "user" else [subject.name, *later]
    held = held_rows(_snapshots(tx, config), _hash(config, subject), ids)
    theirs = tuple(h for h in held if h.rows)
    if found == users.NOTHING and not theirs:
        raise Unknown(f"{subject.kind} {subject.name!r} is in neither the store nor a snapshot: nothing to erase")
    purged = {h.snapshot for h in theirs}
    return Reach(
        subject=subject,
        rows=found,
        completions=asked,
        later=later,
        snapshots=theirs,
        adapters=learnt_from(adapters.every(tx), purged),
        aliases=adapters.aliases(tx, config.base_name),
        round=_round_with(tx, purged),
        unknown=tuple(h.snapshot for h in held if h.rows is None),
    )


def erase(store: Store, config: Config, subject: Subject) -> Erasure:
    """Erase a user or a completion; returns what that took. Again is fine.

    Files go first: the store knows which completions these were until its rows are gone. Killed between, it is called
    again. A snapshot that is being sealed is never published, for its rows may have been read.

    Raises:
        Unknown: as `reach_of`.
        Busy: another erasure, or the publishing of a snapshot, goes on for too long; or another has taken the files
            while this stood still (`Lost`).
        ValueError: an archive that holds their texts is damaged.
    """
    left = spooled.bring(store, Path(config.spool), subject, config.feedback)
    left += () if config.embedded else (spooled.ELSEWHERE,)
    with custody(store, Work.ERASING, PATIENCE_S) as files:
        with store.read() as tx:
            reach = reach_of(tx, config, subject)
        _bury(config, subject, reach.snapshots)
        with store.write() as tx:
            asked = _ask_the_loop(tx, config, reach)
        archived, rows = 0, []
        # A completion's own text last: it is how the turns that quote it are found again.
        for ids, subjects in ((reach.later, [*map(_completion, reach.later)]), (reach.completions, [subject])):
            archived += _from_archives(store, config, files, ids)
            rows += [_rows(store, each) for each in subjects]
        _sweep(config, files)
    remains = (*left, *scrub(store))
    with store.read() as tx:  # an adapter may have come of a training that was at its end
        learnt = learnt_from(adapters.every(tx), {h.snapshot for h in reach.snapshots})
        aliases = adapters.aliases(tx, config.base_name)
    return replace(reach, rows=_sum(rows), adapters=learnt, aliases=aliases).told(archived, asked, remains)


def to_replace(reach: Reach) -> list[AdapterVersion]:
    """The affected versions behind an alias, or the newest affected one where none is."""
    served = [version for version in reach.adapters if reach.served_as(version)]
    return served or list(reach.adapters[-1:])


def replacing(config: Config, version: AdapterVersion) -> Config:
    """The settings that a version's replacement is trained with: its own, but from the base model, for a champion that
    it started from may know the user too."""
    sealed = as_trained(config, version)
    return sealed.model_copy(update={"kto": sealed.kto.model_copy(update={"reference": "base"})})


def rebuild(store: Store, config: Config, version: AdapterVersion) -> tuple[SnapshotManifest, AdapterVersion | None]:
    """Seal a version's snapshot anew from what the store holds now of the feedback that it was made of; Ray must be up.

    Returns:
        The manifest, and the version that was trained on it with the same settings if there is one already.

    Raises:
        ValueError: what is left cannot be trained on (see `freeze`).
    """
    sealed = replacing(config, version)
    with store.read() as tx:
        uri = snapshots.uri_of(tx, version.snapshot)
    assert uri is not None, "an affected version has a snapshot"
    manifest = seal(sealed, until=load_manifest(uri).newest_seq)
    with store.read() as tx:
        twins = [v for v in adapters.every(tx) if v.snapshot == manifest.id and as_trained(config, v) == sealed]
    return manifest, twins[-1] if twins else None


def _hash(config: Config, subject: Subject) -> str | None:
    return user_hash(config.salt, subject.name) if subject.kind == "user" else None


def _round_with(tx: sa.Connection, purged: Collection[str]) -> Round | None:
    current = rounds.current(tx)
    if current is None:
        return None
    concerned = isinstance(current.state, Sealing) or getattr(current.state, "snapshot", None) in purged
    return current if concerned else None


def _ask_the_loop(tx: sa.Connection, config: Config, reach: Reach) -> tuple[str, ...]:
    """Have the loop let go of what is gone; returns what it was asked, in words."""
    served = [version.name for version in reach.adapters if reach.served_as(version)]
    after = config.retention.after_erasure if served else "list"
    before_users = (Training, Loading, Judging, Reloading, Awaiting)
    current = reach.round if reach.round and isinstance(reach.round.state, before_users) else None
    asked: list[tuple[Act, str]] = []
    if current is not None:
        asked.append((Act.FORGET, f"to end round {current.id}"))
    elif after == "retire":
        asked.append((Act.FORGET, f"to take {', '.join(served)} out of service"))
    if current is not None or after == "retrain":
        asked.append((Act.RUN, "to begin a round on what is left"))
    for act, _ in asked:
        requests.ask(tx, act, time.time())
    return tuple(words for _, words in asked)


def _bury(config: Config, subject: Subject, snapshots: Sequence[Held]) -> None:
    for held in snapshots:
        assert held.rows, "only snapshots that hold rows of the subject"
        at = held.purged_at if held.purged_at is not None else time.time()
        completion = subject.name if subject.kind == "completion" else None
        grave = Tombstone(_hash(config, subject), held.rows, at, completion)
        purge_rows(held.uri, load_manifest(held.uri), grave)


def _from_archives(store: Store, config: Config, files: Custody, ids: Sequence[str]) -> int:
    """Write the archives that hold texts of these completions anew without them; how many texts that were."""
    gone = 0
    with store.read() as tx:
        touched = archives.holding(tx, ids)
    for old in touched:
        new, rows = archive.without(config.home, old, ids)
        if rows:
            with files.naming() as tx:  # the file of an erasure that has lost them is swept by the next
                archives.replace(tx, new)
            archive.delete(old)
            gone += rows
    return gone


def _rows(store: Store, subject: Subject) -> ErasedRows:
    gone: list[ErasedRows] = []
    while True:
        with store.write() as tx:
            some = users.erase_some(tx, subject)
        if some == users.NOTHING:
            return _sum(gone)
        gone.append(some)


def _sum(rows: Iterable[ErasedRows]) -> ErasedRows:
    return ErasedRows(*map(sum, zip(*map(astuple, (users.NOTHING, *rows)), strict=True)))


def _completion(name: str) -> Subject:
    return Subject("completion", name)


def _snapshots(tx: sa.Connection, config: Config) -> list[tuple[str, str]]:
    """(id, URI) of all that the store knows, and of those sealed by a process that was killed before it said so."""
    home = Paths(config.home)
    fs, folder = filesystem(home.snapshots())
    sealed = [str(path).split("/")[-2] for path in fs.glob(join(folder, "*", SNAPSHOT_MANIFEST))]
    return list(({name: home.snapshot(name) for name in sealed} | dict(snapshots.every(tx))).items())


def _sweep(config: Config, files: Custody) -> None:
    """Delete what was staged and never published, what killed purges left, and files of archives that no row names: it
    may hold anyone's rows."""
    home = Paths(config.home)
    fs, folder = filesystem(home.snapshots())
    with files.naming() as tx:
        parts = fs.ls(folder, detail=False) if fs.exists(folder) else []
        torn = [str(part) for part in parts if not fs.exists(join(part, SNAPSHOT_MANIFEST))]
        leftovers = [filesystem(home.staging())[1], *torn]
        for leftover in leftovers:
            if fs.exists(leftover):
                fs.rm(leftover, recursive=True)
        archive.sweep(config.home, archives.every(tx))
    for name in (str(part).split("/")[-1] for part in parts if str(part) not in leftovers):
        uri = home.snapshot(name)
        if grave := read_tombstone(uri):
            purge_rows(uri, load_manifest(uri), grave)
