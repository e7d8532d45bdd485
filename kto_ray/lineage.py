"""From a thumb to every snapshot, adapter and arm it touched, and back.

Nothing is recorded for this: the store knows who answered and in which test, and every shard names the completion and
the hashed user of its rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq
import sqlalchemy as sa
from pyarrow import BufferReader
from pyarrow import compute as pc

from kto_ray.config import Config
from kto_ray.data.heads import user_hash
from kto_ray.data.shards import verified
from kto_ray.data.snapshot import load_manifest
from kto_ray.store import adapters, completions, feedback, rollouts, rounds
from kto_ray.types import AdapterVersion, Completion

Told = dict[str, Any]


def lineage(tx: sa.Connection, config: Config, name: str) -> Told:
    """What `name`, an adapter version, a completion id or a user, touched.

    Returns:
        kind, id and, for a completion or a user: completions, feedback, answered_by (adapter and arm), snapshots (split
        and rows of each), adapters trained on these. For an adapter: snapshot, ancestors, descendants, round, rollouts,
        and how many completions it gave.

    Raises:
        ValueError: nothing of that name is known.
    """
    version = adapters.get(tx, name)
    if version is not None:
        return _of_adapter(tx, version)
    completion = completions.get(tx, name)
    if completion is not None:
        told = _of_rows(tx, [completion], "completion_id", name)
        return {"kind": "completion", "id": name, "feedback": [e.id for e in feedback.events(tx, name)], **told}
    found = completions.of_user(tx, name)
    if found:
        told = _of_rows(tx, found, "user_hash", user_hash(config.salt, name))
        given = [e.id for c in found for e in feedback.events(tx, c.id) if name in (e.user, c.user)]
        return {"kind": "user", "id": name, "feedback": given, **told}
    raise ValueError(f"{name!r} is no adapter version, no completion and no user that the store knows")


def _of_rows(tx: sa.Connection, found: Sequence[Completion], column: str, value: str) -> Told:
    """Who gave these completions, and which snapshots and adapters hold rows whose `column` is `value`."""
    held = {snapshot: rows for snapshot, uri in adapters.every_snapshot(tx) if (rows := _rows(uri, column, value))}
    statuses = {state.id: state.status.value for state in rollouts.every(tx)}
    answered = Counter((c.adapter, c.arm.value, c.rollout or "") for c in found)
    return {
        "completions": [c.id for c in found],
        "answered_by": [
            {"adapter": adapter, "arm": arm, "rollout": test, "status": statuses.get(test), "completions": n}
            for (adapter, arm, test), n in sorted(answered.items())
        ],
        "snapshots": [{"snapshot": snapshot, "rows": dict(rows)} for snapshot, rows in held.items()],
        "adapters": [_summary(tx, v) for v in adapters.every(tx) if "train" in held.get(v.snapshot or "", {})],
    }


def _rows(uri: str, column: str, value: str) -> Counter[str]:
    """How many rows of each split have this value."""
    rows: Counter[str] = Counter()
    for shard in load_manifest(uri).shards:
        values = pq.read_table(BufferReader(verified(uri, shard)), columns=[column])[column]
        n = pc.sum(pc.equal(values, value)).as_py()
        if n:
            rows[shard.split] += n
    return rows


def _of_adapter(tx: sa.Connection, version: AdapterVersion) -> Told:
    by_name = {v.name: v for v in adapters.every(tx)}
    ancestors, parent = [], version.parent
    while parent in by_name and parent not in ancestors:
        ancestors.append(parent)
        parent = by_name[parent].parent
    return {
        "kind": "adapter",
        "id": version.name,
        **_summary(tx, version),
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
