"""From a thumb to every snapshot, adapter and arm it touched, and back.

The store knows who answered and in which test; a snapshot's index names the completion and the hashed user of its
rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from kto_ray.config import Config
from kto_ray.data import rows
from kto_ray.data.snapshot import load_manifest
from kto_ray.data.tombstone import Purged, read_tombstone
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.completions import Completion
from kto_ray.records.users import user_hash
from kto_ray.store import Store, adapters, completions, feedback, rollouts, rounds

Told = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Held:
    """A snapshot and how many rows of each split it holds of what was asked for.

    `purged_at` (seconds since the epoch) is set where the rows are deleted. `rows` is None where that was done for
    another user's sake: what else the snapshot held is not known any more.
    """

    snapshot: str
    uri: str
    rows: Mapping[str, int] | None
    purged_at: float | None = None


def lineage(store: Store, config: Config, name: str) -> Told:
    """What `name`, an adapter version, a completion id or a user, touched. Files are read outside of transactions.

    Returns:
        kind, id and, for a completion or a user: completions, feedback, answered_by (adapter and arm), snapshots (split
        and rows of each), adapters trained on these, and unknown (snapshots purged of others, which cannot be asked
        any more). For an adapter: snapshot, purged_at of that, ancestors, descendants, round, rollouts, and how many
        completions it gave.

    Raises:
        ValueError: nothing of that name is known.
    """
    with store.read() as tx:
        version = adapters.get(tx, name)
        if version is not None:
            return _of_adapter(tx, config, version)
        asked = _asked(tx, name)
        snapshots = adapters.every_snapshot(tx)
    user = user_hash(config.salt, name) if asked.kind == "user" else None
    held = held_rows(snapshots, user, asked.completions)
    if not asked.found and not any(h.rows for h in held):
        raise ValueError(
            f"{name!r} is no adapter version, no completion and no user that the store or a snapshot knows"
        )
    with store.read() as tx:
        told = _of_rows(tx, config, asked.found, held)
    return {"kind": asked.kind, "id": name, "feedback": asked.feedback, **told}


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the store knows of a completion or a user: `found` are completions that they asked for or judged,
    `completions` the ids of those that they asked for, `feedback` ids of what was said."""

    kind: str
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
            here = Held(snapshot, uri, rows.held(uri, load_manifest(uri), user, asked))
        except Purged as gone:
            grave = gone.tombstone
            here = Held(snapshot, uri, grave.rows if grave.user_hash == user else None, grave.purged_at)
        if here.rows is None or here.rows:
            held.append(here)
    return held


def _of_rows(tx: sa.Connection, config: Config, found: Sequence[Completion], held: Sequence[Held]) -> Told:
    """Who gave these completions, and which snapshots and adapters hold rows of them."""
    tests = {c.rollout: rollouts.get(tx, c.rollout) for c in found if c.rollout}
    statuses = {name: state.status.value for name, state in tests.items() if state is not None}
    answered = Counter((c.adapter, c.arm.value, c.rollout or "") for c in found)
    trained = {h.snapshot for h in held if h.rows and "train" in h.rows}
    return {
        "completions": [c.id for c in found],
        "answered_by": [
            {"adapter": adapter, "arm": arm, "rollout": test, "status": statuses.get(test), "completions": n}
            for (adapter, arm, test), n in sorted(answered.items())
        ],
        "snapshots": [
            {"snapshot": h.snapshot, "rows": dict(h.rows), "purged_at": h.purged_at} for h in held if h.rows is not None
        ],
        "adapters": [_summary(tx, config, v) for v in adapters.every(tx) if v.snapshot in trained],
        "unknown": [h.snapshot for h in held if h.rows is None],
    }


def _of_adapter(tx: sa.Connection, config: Config, version: AdapterVersion) -> Told:
    by_name = {v.name: v for v in adapters.every(tx)}
    ancestors, parent = [], version.parent
    while parent in by_name and parent not in ancestors:
        ancestors.append(parent)
        parent = by_name[parent].parent
    uri = adapters.snapshot_uri(tx, version.snapshot or "")
    grave = read_tombstone(uri) if uri else None
    return {
        "kind": "adapter",
        "id": version.name,
        **_summary(tx, config, version),
        "purged_at": grave.purged_at if grave else None,
        "reference": version.reference,
        "ancestors": ancestors,
        "children": [v.name for v in by_name.values() if v.parent == version.name],
        "rounds": rounds.of_adapter(tx, version.name),
        "rollouts": [
            {
                "rollout": state.id,
                "arm": "champion" if state.champion == version.name else "challenger",
                "status": state.status.value,
            }
            for state in rollouts.of_adapter(tx, version.name)
        ],
        "completions": completions.count_of_adapter(tx, version.name),
    }


def _summary(tx: sa.Connection, config: Config, version: AdapterVersion) -> Told:
    gate = adapters.get_gate(tx, version.name)
    held = [alias for alias, name in adapters.aliases(tx, config.base_name).items() if name == version.name]
    return {
        "adapter": version.name,
        "snapshot": version.snapshot,
        "gate": gate.decision.value if gate else None,
        "aliases": held,
    }
