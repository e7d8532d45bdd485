"""From a thumb to every snapshot, adapter and arm it touched, and back.

The store knows who answered and in which test; a snapshot's index names the completion and the hashed user of its
rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import sqlalchemy as sa

from kto_ray.config import Config
from kto_ray.data import row_index
from kto_ray.data.manifest import load_manifest
from kto_ray.data.tombstone import Purged, read_tombstone
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.completions import Completion
from kto_ray.records.lineage import AdapterLineage, AnsweredBy, InTest, RowLineage, RowsIn, Version
from kto_ray.records.users import user_hash
from kto_ray.store import Store, adapters, completions, evaluation, feedback, rollouts, rounds, snapshots


@dataclass(frozen=True, slots=True)
class Held:
    """A snapshot and how many rows of each split it holds of what was asked for.

    `purged_at` (seconds since the epoch) is set where the rows are deleted. `rows` is None where that was done for
    another's sake: what else the snapshot held is not known any more.
    """

    snapshot: str
    uri: str
    rows: Mapping[str, int] | None
    purged_at: float | None = None


def lineage(store: Store, config: Config, name: str) -> RowLineage | AdapterLineage:
    """What `name`, an adapter version, a completion id or a user, touched. Files are read outside of transactions.

    Raises:
        ValueError: nothing of that name is known.
    """
    with store.read() as tx:
        version = adapters.get(tx, name)
        if version is not None:
            return _of_adapter(tx, config, version)
        asked = _asked(tx, name)
        sealed = snapshots.every(tx)
    user = user_hash(config.salt, name) if asked.kind == "user" else None
    held = held_rows(sealed, user, asked.completions)
    if not asked.found and not any(h.rows for h in held):
        raise ValueError(
            f"{name!r} is no adapter version, no completion and no user that the store or a snapshot knows"
        )
    with store.read() as tx:
        return _of_rows(tx, config, name, asked, held)


def trained_on(store: Store, completion_id: str) -> tuple[str, ...]:
    """The adapter versions that learnt from what was said of a completion.

    Raises:
        ValueError, OSError: a snapshot cannot be read.
    """
    with store.read() as tx:
        sealed = snapshots.every(tx)
    learnt = _learnt(held_rows(sealed, None, [completion_id]))
    with store.read() as tx:
        return tuple(version.name for version in adapters.every(tx) if version.snapshot in learnt)


def _learnt(held: Iterable[Held]) -> set[str]:
    return {h.snapshot for h in held if h.rows and "train" in h.rows}


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the store knows of a completion or a user: `found` are completions that they asked for or judged,
    `completions` the ids of those that they asked for, `feedback` ids of what was said."""

    kind: Literal["completion", "user"]
    found: Sequence[Completion]
    completions: Sequence[str]
    feedback: Sequence[str]


def _asked(tx: sa.Connection, name: str) -> _Asked:
    completion = completions.get(tx, name)
    if completion is not None:
        return _Asked("completion", [completion], [name], [e.id for e in feedback.events(tx, name)])
    found = completions.of_user(tx, name)
    given = [e.id for c in found for e in feedback.events(tx, c.id) if name in (e.user, c.user)]
    return _Asked("user", found, [c.id for c in found if c.user == name], given)


def held_rows(snapshots: Iterable[tuple[str, str]], user: str | None, asked: Sequence[str]) -> list[Held]:
    """Which of these snapshots (id, URI) hold rows that a user (their hash) gave, or that anyone gave on one of the
    completions `asked`, and of which it is not known."""
    held = []
    for snapshot, uri in snapshots:
        try:
            found = row_index.held(uri, load_manifest(uri), user, asked)
            grave = read_tombstone(uri) if found else None  # one of retention, which keeps the index
            here = Held(snapshot, uri, found, grave.purged_at if grave else None)
        except Purged as gone:
            grave = gone.tombstone
            here = Held(snapshot, uri, grave.rows if grave.is_of(user, asked) else None, grave.purged_at)
        if here.rows is None or here.rows:
            held.append(here)
    return held


def _of_rows(tx: sa.Connection, config: Config, name: str, asked: _Asked, held: Sequence[Held]) -> RowLineage:
    """Who gave these completions, and which snapshots and adapters hold rows of them."""
    tests = {c.rollout: rollouts.get(tx, c.rollout) for c in asked.found if c.rollout}
    statuses = {name: state.status.value for name, state in tests.items() if state is not None}
    answered = Counter((c.adapter, c.arm.value, c.rollout or "") for c in asked.found)
    learnt = _learnt(held)
    return RowLineage(
        kind=asked.kind,
        id=name,
        completions=tuple(c.id for c in asked.found),
        feedback=tuple(asked.feedback),
        answered_by=tuple(
            AnsweredBy(adapter, arm, test, statuses.get(test), n)
            for (adapter, arm, test), n in sorted(answered.items())
        ),
        snapshots=tuple(RowsIn(h.snapshot, dict(h.rows), h.purged_at) for h in held if h.rows is not None),
        adapters=tuple(_version(tx, config, v) for v in adapters.every(tx) if v.snapshot in learnt),
        unknown=tuple(h.snapshot for h in held if h.rows is None),
    )


def _of_adapter(tx: sa.Connection, config: Config, version: AdapterVersion) -> AdapterLineage:
    by_name = {v.name: v for v in adapters.every(tx)}
    ancestors, parent = [], version.parent
    while parent in by_name and parent not in ancestors:
        ancestors.append(parent)
        parent = by_name[parent].parent
    uri = snapshots.uri_of(tx, version.snapshot)
    grave = read_tombstone(uri) if uri else None
    return AdapterLineage(
        **asdict(_version(tx, config, version)),
        kind="adapter",
        id=version.name,
        purged_at=grave.purged_at if grave else None,
        reference=version.reference,
        ancestors=tuple(ancestors),
        children=tuple(v.name for v in by_name.values() if v.parent == version.name),
        rounds=tuple(rounds.of_adapter(tx, version.name)),
        rollouts=tuple(
            InTest(state.id, "champion" if state.champion == version.name else "challenger", state.status.value)
            for state in rollouts.of_adapter(tx, version.name)
        ),
        completions=completions.count_of_adapter(tx, version.name),
    )


def _version(tx: sa.Connection, config: Config, version: AdapterVersion) -> Version:
    gate = evaluation.get(tx, version.name)
    held = tuple(alias for alias, name in adapters.aliases(tx, config.base_name).items() if name == version.name)
    return Version(version.name, version.snapshot, gate.decision.value if gate else None, held)
