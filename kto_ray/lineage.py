"""From a thumb to every snapshot, adapter and arm it touched, and back.

Nothing is recorded for this: the store knows who answered and in which test, and every shard names the completion and
the hashed user of its rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from pyarrow import BufferReader
from pyarrow import compute as pc

from kto_ray.config import Config
from kto_ray.data.heads import user_hash
from kto_ray.data.shards import verified
from kto_ray.data.snapshot import load_manifest
from kto_ray.data.tombstone import Purged, read_tombstone
from kto_ray.store import adapters, completions, feedback, rollouts, rounds
from kto_ray.types import AdapterVersion, Completion

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


def lineage(tx: sa.Connection, config: Config, name: str) -> Told:
    """What `name`, an adapter version, a completion id or a user, touched.

    Returns:
        kind, id and, for a completion or a user: completions, feedback, answered_by (adapter and arm), snapshots (split
        and rows of each), adapters trained on these, and unknown (snapshots purged of others, which cannot be asked
        any more). For an adapter: snapshot, purged_at of that, ancestors, descendants, round, rollouts, and how many
        completions it gave.

    Raises:
        ValueError: nothing of that name is known.
    """
    version = adapters.get(tx, name)
    if version is not None:
        return _of_adapter(tx, version)
    completion = completions.get(tx, name)
    if completion is not None:
        told = _of_rows(tx, [completion], held_rows(adapters.every_snapshot(tx), None, [name]))
        return {"kind": "completion", "id": name, "feedback": [e.id for e in feedback.events(tx, name)], **told}
    found = completions.of_user(tx, name)
    asked = [c.id for c in found if c.user == name]
    held = held_rows(adapters.every_snapshot(tx), user_hash(config.salt, name), asked)
    if found or any(h.rows for h in held):
        given = [e.id for c in found for e in feedback.events(tx, c.id) if name in (e.user, c.user)]
        return {"kind": "user", "id": name, "feedback": given, **_of_rows(tx, found, held)}
    raise ValueError(f"{name!r} is no adapter version, no completion and no user that the store or a snapshot knows")


def held_rows(snapshots: Iterable[tuple[str, str]], user: str | None, asked: Sequence[str]) -> list[Held]:
    """Which of these snapshots (id, URI) hold rows that a user (their hash) gave, or that anyone gave on one of the
    completions `asked`, and of which it is not known."""
    held = []
    for snapshot, uri in snapshots:
        try:
            here = Held(snapshot, uri, _rows(uri, user, asked))
        except Purged as gone:
            grave = gone.tombstone
            here = Held(snapshot, uri, grave.rows if grave.user_hash == user else None, grave.purged_at)
        if here.rows is None or here.rows:
            held.append(here)
    return held


def _of_rows(tx: sa.Connection, found: Sequence[Completion], held: Sequence[Held]) -> Told:
    """Who gave these completions, and which snapshots and adapters hold rows of them."""
    statuses = {state.id: state.status.value for state in rollouts.every(tx)}
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
        "adapters": [_summary(tx, v) for v in adapters.every(tx) if v.snapshot in trained],
        "unknown": [h.snapshot for h in held if h.rows is None],
    }


def _rows(uri: str, user: str | None, asked: Sequence[str]) -> dict[str, int]:
    """How many rows of each split are of this user (their hash) or of these completions."""
    rows: Counter[str] = Counter()
    ids = pa.array(asked, pa.string())
    for shard in load_manifest(uri).shards:
        table = pq.read_table(BufferReader(verified(uri, shard)), columns=["user_hash", "completion_id"])
        theirs = pc.is_in(table["completion_id"], value_set=ids)
        if user is not None:
            theirs = pc.or_(theirs, pc.equal(table["user_hash"], user))
        if n := pc.sum(theirs).as_py():
            rows[shard.split] += n
    return dict(rows)


def _of_adapter(tx: sa.Connection, version: AdapterVersion) -> Told:
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
        **_summary(tx, version),
        "purged_at": grave.purged_at if grave else None,
        "reference": version.reference,
        "ancestors": ancestors,
        "children": [v.name for v in by_name.values() if v.parent == version.name],
        "rounds": [r.id for r in rounds.every(tx) if r.adapter == version.name],
        "rollouts": [
            {
                "rollout": state.id,
                "arm": "champion" if state.champion == version.name else "challenger",
                "status": state.status.value,
            }
            for state in rollouts.every(tx)
            if version.name in (state.champion, state.challenger)
        ],
        "completions": completions.count_of_adapter(tx, version.name),
    }


def _summary(tx: sa.Connection, version: AdapterVersion) -> Told:
    gate = adapters.get_gate(tx, version.name)
    held = [alias for alias, name in adapters.get_aliases(tx).items() if name == version.name]
    return {
        "adapter": version.name,
        "snapshot": version.snapshot,
        "gate": gate.decision.value if gate else None,
        "aliases": held,
    }
